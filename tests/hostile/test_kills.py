"""SIGKILL at every write of every command: nothing half-written, and the next run ends as an undisturbed one would."""

from __future__ import annotations

import json
import os
import shutil
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
KILLED = -9


class Killer:
    """Runs jobs of `killer.py`, whose process stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HAQ_CACHE_DIR": str(folder / "cache")}
        command = [sys.executable, str(HERE / "killer.py")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment
        )

    def __call__(
        self, argv: list[Any], folder: Path, *, kill_at: int | None = None, after: bool = False
    ) -> tuple[int, int | None]:
        """Exit code and number of writes."""
        assert self._process.stdin
        assert self._process.stdout
        job = {"argv": [*map(str, argv)], "folder": str(folder), "cwd": str(self.folder)}
        self._process.stdin.write(json.dumps({**job, "kill_at": kill_at, "after": after}) + "\n")
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
        gone = ("seconds", "processor_seconds", "date", "command", "file", "sha256", "folder")
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


def attack(
    kill: Killer, name: str, argv: list[Any], *, resumes: bool, whole: tuple[str, ...] = (), stride: int = 1
) -> int:
    """Kill the command at each `stride`-th of its writes and run it again; how many times that was.

    Args:
        kill: runs it.
        name: of the folders.
        argv: the command; `OUT` stands for the folder it writes to.
        resumes: whether it takes `--resume`; others run again over what is there.
        whole: files that are either absent or whole when the command was killed.
        stride: every write, or every so manieth.
    """

    def command(folder: Path, *more: str) -> list[str]:
        return [*(str(part).replace("OUT", str(folder)) for part in argv), *more]

    good = kill.folder / f"{name}-good"
    code, writes = kill(command(good), good)
    assert code == 0, kill.said(good)
    assert writes
    expected = content(good)
    for number in range(1, writes + 1, stride):
        folder = kill.folder / f"{name}-{number}"
        code, _ = kill(command(folder), folder, kill_at=number)
        assert code == KILLED, f"write {number}: {kill.said(folder)}"
        for path in whole:
            if (folder / path).exists() and path.endswith(".json"):
                assert stripped(json.loads((folder / path).read_text())) == expected[path], f"write {number}: {path}"
        more = ["--resume"] if resumes and folder.exists() else []
        code, _ = kill(command(folder, *more), folder)
        assert code == 0, f"write {number}: {kill.said(folder)}"
        found = content(folder)
        if resumes:
            assert found == expected, f"write {number}"
        else:  # a hidden file that was being written may be left
            assert {key: value for key, value in found.items() if not key.startswith(".haq-")} == expected
        shutil.rmtree(folder)
    return -(-writes // stride)


def test_search(kill: Killer) -> None:
    argv = ["search", QUICKSTART, "--out", "OUT", "--no-cache", *SMALL]
    whole = ("policy.json", "result.json", "problem.json", "sensitivity.json")
    assert attack(kill, "search", argv, resumes=True, whole=whole) > 40
