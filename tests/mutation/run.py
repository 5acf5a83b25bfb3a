"""Would the tests notice? Puts one fault after the other into a copy of the tree and runs the tests that should fail.

    python tests/mutation/run.py                       # all faults: about an hour on one core
    python tests/mutation/run.py quant hardware        # some rooms
    python tests/mutation/run.py --shard 1/4 --out mutations.json
    python tests/mutation/run.py --again mutations.json     # only what survived, after tests were added

A fault is killed when a test fails, survives when all pass, and is undecided when they take too long or when they fail
without it. The last lines are a table per room and the survivors. Libraries are imported once and each run is a fork.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIBRARIES = (
    "torch", "numpy", "scipy.stats", "scipy.optimize", "pydantic", "pulp", "highspy", "sklearn.linear_model",
    "matplotlib.figure",
    "jinja2", "rich.table", "typer", "safetensors.torch", "hypothesis", "PIL.Image", "onnx", "onnxruntime",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One fault: in `file`, `new` in place of `old`, and the tests that should fail then."""

    room: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def stands(self, root: Path) -> bool:
        """Whether the text is there, once."""
        path = root / self.file
        return path.exists() and path.read_text(encoding="utf-8").count(self.old) == 1


def faults(rooms: Sequence[str] = ()) -> list[Fault]:
    """The faults of these rooms, of all by default."""
    found = []
    for path in sorted(HERE.glob("*.toml")):
        if rooms and path.stem not in rooms:
            continue
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        for entry in document["fault"]:
            tests = tuple(entry.pop("tests", document["tests"]))
            found.append(Fault(room=path.stem, tests=tests, **entry))
    return found


def copied(target: Path) -> Path:
    """The files of the working tree that git knows or would add, in `target`; compiled, so that a run starts fast."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        source, place = ROOT / name, target / name
        if source.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place)
    compileall.compile_dir(str(target / "haq"), quiet=2)
    return target


class Runner:
    """Runs tests in forks of this process, which has the libraries imported."""

    def __init__(self, tree: Path, timeout: float) -> None:
        self.tree, self.timeout = tree, timeout
        self._green: dict[str, bool] = {}
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        for name in LIBRARIES:
            with suppress(ImportError):
                import_module(name)

    def fails(self, tests: Sequence[str]) -> bool | None:
        """Whether some test fails; `None`: they took too long."""
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            self._test(tests)
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status) != 0
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None

    def _test(self, tests: Sequence[str]) -> None:
        code = 70
        try:
            os.setsid()
            os.chdir(self.tree)
            silent = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(silent, stream)
            sys.path[:] = [str(self.tree), *(entry for entry in sys.path if Path(entry or ".").resolve() != HERE)]
            pytest = import_module("pytest")
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
        finally:
            os._exit(code)

    def green(self, tests: Sequence[str]) -> bool:
        """Whether the tests pass without a fault."""
        for name in tests:
            if name not in self._green:
                self._green[name] = self.fails([name]) is False
        return all(self._green[name] for name in tests)

    def outcome(self, fault: Fault) -> str:
        """`killed`, `survived`, `timeout`, or `red`: the tests fail without the fault, too."""
        path = self.tree / fault.file
        content = path.read_text(encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
        path.write_text(content.replace(fault.old, fault.new), encoding="utf-8")
        try:
            failed = self.fails(fault.tests)
        finally:
            path.write_text(content, encoding="utf-8")
        if failed is None:
            return "timeout"
        if not failed:
            return "survived"
        return "killed" if self.green(fault.tests) else "red"


def run(chosen: Sequence[Fault], *, timeout: float) -> Iterator[tuple[Fault, str, float]]:
    """Each fault, what became of it, and the seconds that took."""
    with tempfile.TemporaryDirectory(prefix="haq-mutation-") as folder:
        runner = Runner(copied(Path(folder)), timeout)
        for fault in chosen:
            start = time.monotonic()
            found = runner.outcome(fault) if fault.stands(runner.tree) else "stale"
            yield fault, found, time.monotonic() - start


def table(results: Sequence[tuple[Fault, str, float]]) -> str:
    """Faults, killed, survived and undecided per room, and the score: killed of those that were decided."""
    lines = [f"{'room':12s} faults  killed  survived  undecided  score"]
    for room in [*dict.fromkeys(fault.room for fault, _, _ in results), "all"]:
        counts = Counter(found for fault, found, _ in results if room in (fault.room, "all"))
        killed, survived = counts["killed"], counts["survived"]
        score = f"{100 * killed / (killed + survived):.1f} %" if killed + survived else "-"
        undecided = counts.total() - killed - survived
        lines.append(f"{room:12s} {counts.total():6d} {killed:7d} {survived:9d} {undecided:10d}  {score}")
    return "\n".join(lines)


def _earlier(path: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return [row for row in rows if row["outcome"] == "killed"]


def main() -> int:
    """Run the command line; exit code 1 below 90 %."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rooms", nargs="*", help="default: all")
    parser.add_argument("--shard", default="1/1", help="part I of N, such as 2/4")
    parser.add_argument("--only", default="", help="faults whose text or file holds this")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for the tests of one fault")
    parser.add_argument("--out", type=Path, help="results as JSON")
    parser.add_argument(
        "--again", type=Path, nargs="*", default=[], help="earlier results: what they killed is not run"
    )
    options = parser.parse_args()
    part, parts = map(int, options.shard.split("/"))
    chosen = [fault for fault in faults(options.rooms) if options.only in f"{fault.file} {fault.what}"][
        part - 1 :: parts
    ]
    killed = {entry["what"] + entry["file"] for path in options.again for entry in _earlier(path)}
    results = [(fault, "killed", 0.0) for fault in chosen if fault.what + fault.file in killed]
    left = [fault for fault in chosen if fault.what + fault.file not in killed]
    for fault, found, seconds in run(left, timeout=options.timeout):
        results.append((fault, found, seconds))
        print(f"{found:9s} {seconds:6.1f} s  {fault.file}: {fault.what}", flush=True)
        if options.out:
            rows = [{**asdict(fault), "outcome": found, "seconds": seconds} for fault, found, seconds in results]
            options.out.write_text(json.dumps(rows, indent=1))
    print(table(results))
    for fault, found, _ in results:
        if found not in ("killed",):
            print(f"{found}: {fault.file}: {fault.what}")
    outcomes = Counter(found for _, found, _ in results)
    return int(outcomes["killed"] < 0.9 * (outcomes["killed"] + outcomes["survived"]))


if __name__ == "__main__":
    sys.exit(main())
