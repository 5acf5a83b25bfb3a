"""SIGKILL at every write of every command: nothing half-written, and the next run ends as an undisturbed one would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
QUICKSTART = HERE.parents[1] / "experiments" / "quickstart.toml"
SMALL = [
    *("--set", "search.max_trials=2", "--set", "sensitivity.samples=32", "--set", "evaluator.samples=60"),
    *("--set", "space.weights=['int4','int8']", "--set", "space.activations=['int8']"),
    *("--set", "quantization.calibration_samples=32"),
    *("--set", "budgets.latency_ms=1.0", "--set", "budgets.size_bytes='80%'"),
]


EVERY = int(os.environ.get("HAQ_KILL_EVERY", "6"))
"""At every so manieth write; 1: at every one, which takes an hour."""


class Killer:
    """Runs jobs of `killer.py`, whose process stays."""

    def __init__(self, folder: Path, *, own_cache: bool = True) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HAQ_CACHE_DIR": str(folder / "cache")}
        if not own_cache:
            del environment["HAQ_CACHE_DIR"]
        command = [sys.executable, str(HERE / "killer.py")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment
        )

    def __call__(self, argv: list[Any], folder: Path, **options: Any) -> tuple[int, list[str]]:
        """Exit code, and the writes: names of files, or `fsync`."""
        assert self._process.stdin
        assert self._process.stdout
        job = {"argv": [*map(str, argv)], "folder": str(folder), "cwd": str(self.folder), "after": False, "signal": 9}
        self._process.stdin.write(json.dumps({**job, **options}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], answer["writes"]

    def said(self, folder: Path) -> str:
        return Path(f"{folder}.out").read_text()

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def kill(tmp_path_factory) -> Iterator[Killer]:
    killer = Killer(tmp_path_factory.mktemp("kills"))
    yield killer
    killer.close()


def stripped(value: Any) -> Any:
    """A document without what two runs never share: times, dates, command lines, paths."""
    if isinstance(value, dict):
        gone = ("seconds", "processor_seconds", "date", "command", "file", "sha256", "folder", "cache")
        return {key: stripped(entry) for key, entry in value.items() if key not in gone}
    return [stripped(entry) for entry in value] if isinstance(value, list) else value


def content(folder: Path) -> dict[str, Any]:
    """Every file of a folder: JSON parsed, images by their being there, text as it is."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = stripped(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = sorted(map(str, map(stripped, rows)))
        elif path.name == "trials.csv" or path.suffix in (".html", ".svg"):
            found[name] = len(path.read_bytes()) > 0
        else:
            found[name] = path.read_bytes()
    return found


def _unfinished(name: str) -> bool:
    return name.startswith(".haq-") or name.endswith(".tmp")


def attack(
    kill: Killer, name: str, argv: list[Any], *, resume: str = "", same: bool = True, number: int = signal.SIGKILL
) -> int:
    """Signal the command at its writes and run it again; how many times that was.

    Args:
        kill: runs it.
        name: of the folders.
        argv: the command; `OUT` stands for the folder it writes to.
        resume: the file that says that there is something to `--resume`; without, it runs again over what is there.
        same: whether two undisturbed runs write the same.
        number: of the signal.
    """

    def command(folder: Path) -> list[str]:
        more = ["--resume"] if resume and (folder / resume).exists() else []
        return [*(str(part).replace("OUT", str(folder)) for part in argv), *more]

    good = kill.folder / f"{name}-good"
    code, writes = kill(command(good), good)
    assert code == 0, kill.said(good)
    expected = content(good)
    points = range((len(writes) - 1) % EVERY + 1, len(writes) + 1, EVERY)  # the last one is among them
    for at in points:
        folder = kill.folder / f"{name}-{at}"
        code, _ = kill(command(folder), folder, kill_at=at, signal=number)
        assert code == (130 if number == signal.SIGINT else -number), f"write {at}: {code} {kill.said(folder)}"
        for path in folder.rglob("*.json"):  # what is there is whole
            json.loads(path.read_text())
        code, _ = kill(command(folder), folder)
        assert code == 0, f"write {at}: {kill.said(folder)}"
        # What a kill leaves half-written has a name of its own, which nothing reads (`haq cache clear` removes it).
        found = {key: value for key, value in content(folder).items() if not _unfinished(Path(key).name)}
        assert (found == expected) if same else (found.keys() == expected.keys()), (
            f"write {at}: {sorted(found.keys() ^ expected.keys())}"
        )
        shutil.rmtree(folder)
    return len(points)


SEARCH = ["search", QUICKSTART, "--out", "OUT", "--no-cache", *SMALL]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_search(kill: Killer, number: int) -> None:
    assert attack(kill, f"search-{number}", SEARCH, resume="trials.jsonl", number=number)


@pytest.fixture(scope="module")
def run(kill: Killer) -> Path:
    folder = kill.folder / "run"
    code, _ = kill([str(part).replace("OUT", str(folder)) for part in SEARCH], folder)
    assert code == 0, kill.said(folder)
    return folder


def test_sensitivity(kill: Killer) -> None:
    assert attack(kill, "sensitivity", ["sensitivity", QUICKSTART, "--out", "OUT", *SMALL])


@pytest.mark.parametrize("form", ["torch", "onnx", "modelopt"])
def test_export(kill: Killer, run: Path, form: str) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    assert attack(kill, f"export-{form}", ["export", run, "--format", form, "--out", "OUT/file.out"])


def test_compare(kill: Killer, run: Path) -> None:
    assert attack(kill, "compare", ["compare", run, run, "--out", "OUT"])


def test_bench(kill: Killer) -> None:
    table = HERE.parents[1] / "benchmarks" / "ground_truth" / "digits_cnn_ptq.json"
    options = ["--seeds", "1", "--evaluations", "3", "--strategy", "random", "--share", "0.2", "--metric", "bops"]
    assert attack(kill, "bench", ["bench", "regret", table, *options, "--out", "OUT"])


def test_ladder(kill: Killer) -> None:
    """It writes measurements into the cache and nothing else."""
    options = ["--policies", "3", "--set", "evaluator.ladder=['ptq','bn']", "--set", "cache.folder='OUT'"]
    killer = Killer(kill.folder, own_cache=False)
    try:
        assert attack(killer, "ladder", ["ladder", QUICKSTART, *SMALL, *options], same=False)
    finally:
        killer.close()


def test_profile_and_validate(kill: Killer) -> None:
    pytest.importorskip("onnxruntime")
    own = ["--experiment", QUICKSTART, "--policies", "4", "--rounds", "2", *SMALL]
    argv = ["profile", *own, "--out", "OUT/mine.toml"]
    assert attack(kill, "profile", argv, resume="mine.measurements.jsonl", same=False)
    profile = kill.folder / "profile-good" / "mine.toml"
    argv = ["validate", profile, *own, "--no-baselines", "--out", "OUT"]
    assert attack(kill, "validate", argv, same=False)


COUNTING = """
from pathlib import Path
from haq.evaluate import METRICS
def metric(outputs, targets):
    with open("LOG", "a") as log:
        print(len(outputs), file=log)
    return METRICS["accuracy"](outputs, targets)
"""


@pytest.mark.parametrize("strategy", ["ilp", "adaptive_ilp", "actor_critic", "bayesian", "evolutionary", "random"])
def test_no_evaluation_is_repeated_whichever_trial_was_the_last(kill: Killer, strategy: str) -> None:
    """Killed behind each trial's line: the resumed run measures the others, ends alike and repeats none."""
    if strategy == "bayesian":
        pytest.importorskip("optuna")
    log, module = kill.folder / f"{strategy}.log", f"counting_{strategy}"
    (kill.folder / f"{module}.py").write_text(COUNTING.replace("LOG", str(log)))
    more = [f"search.strategy='{strategy}'", "search.max_trials=6", f"evaluator.metric='{module}:metric'"]
    argv = [*SEARCH, *(part for text in more for part in ("--set", text))]

    def measured(folder: Path, **options: Any) -> tuple[int, list[str], int]:
        log.write_text("")
        code, writes = kill(
            [str(part).replace("OUT", str(folder)) for part in argv] + options.pop("flags", []), folder, **options
        )
        return code, writes, log.read_text().split().count("60") - 1  # the float model is scored by every process

    good = kill.folder / f"{strategy}-good"
    code, writes, whole = measured(good)
    assert code == 0, kill.said(good)
    expected = content(good)
    begun = next(index for index, name in enumerate(writes) if name == "trials.jsonl")
    ended = next(index for index, name in enumerate(writes) if index > begun and name == "problem.json")
    trials = [index + 1 for index in range(begun, ended) if writes[index] == "fsync"]
    assert len(trials) >= 9
    for at in trials[-10:-1]:
        folder = kill.folder / f"{strategy}-{at}"
        code, _, before = measured(folder, kill_at=at, after=True)
        assert code == -signal.SIGKILL
        code, _, after = measured(folder, flags=["--resume"])
        assert code == 0, kill.said(folder)
        assert before + after == whole, f"write {at}: {before} + {after} evaluations, {whole} undisturbed"
        assert content(folder) == expected
        shutil.rmtree(folder)
