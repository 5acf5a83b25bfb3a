"""Disks that fill up and folders that cannot be written, through the command: a clear line, nothing wrong after."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

resource = pytest.importorskip("resource")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FAST = ("--set", "search.max_trials=2", "--set", "sensitivity.samples=64", "--set", "evaluator.samples=60")
_DROP_FROM_BOUNDING_SET, _OVERRIDE_PERMISSIONS = 24, 1


def haq(
    *arguments: object, before: Callable[[], None] = lambda: None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "haq", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=before,
        env={**os.environ, **environment},
    )


def search(out: Path, *more: object, **options: object) -> subprocess.CompletedProcess[str]:
    return haq("search", EXPERIMENTS / "quickstart.toml", "--out", out, "--no-cache", *FAST, *more, **options)


def files_of_at_most(size: int) -> Callable[[], None]:
    """As on a disk with no more room: what is written beyond `size` is refused (EFBIG in place of ENOSPC)."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def as_anybody() -> None:
    """Permissions hold for root, too."""
    if os.getuid() == 0:
        ctypes.CDLL(None).prctl(_DROP_FROM_BOUNDING_SET, _OVERRIDE_PERMISSIONS, 0, 0, 0)


def is_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("haq: ")]
    assert line == done.stderr.splitlines()[-1]
    assert all(word in line for word in words), line


def without_times(path: Path) -> list[dict[str, object]]:
    trials = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    for trial in trials:
        trial["measurement"].pop("seconds")
    return trials


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("disk") / "run"
    assert search(out).returncode == 0
    return out


def same_results(out: Path, undisturbed: Path) -> None:
    assert without_times(out / "trials.jsonl") == without_times(undisturbed / "trials.jsonl")
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (out, undisturbed))
    assert ours["answer"] == theirs["answer"]
    assert {path.name for path in out.rglob("*")} == {path.name for path in undisturbed.rglob("*")}


@pytest.mark.parametrize(
    ("size", "file"),
    [
        pytest.param(500, "trials.jsonl", marks=pytest.mark.slow),
        (3_000, "trials.jsonl"),
        pytest.param(14_000, ".json", marks=pytest.mark.slow),
        pytest.param(60_000, ".png", marks=pytest.mark.slow),
    ],
    ids=["before the first trial", "in the journal", "in the tables", "in the report"],
)
def test_a_search_on_a_full_disk_says_so_and_resumes_to_the_same_results(
    tmp_path: Path, undisturbed: Path, size: int, file: str
) -> None:
    out = tmp_path / "run"
    is_one_line(search(out, before=files_of_at_most(size)), file, "cannot be written", "free")
    assert search(out, "--resume").returncode == 0
    same_results(out, undisturbed)


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_export_to_a_full_disk_says_so_and_leaves_no_file(tmp_path: Path, undisturbed: Path, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnx")
    out = tmp_path / "model"
    is_one_line(
        haq("export", undisturbed, "--format", format, "--out", out, before=files_of_at_most(500)), "cannot be written"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_cache_on_a_full_disk_costs_a_line_and_no_measurement(tmp_path: Path, undisturbed: Path) -> None:
    policy = undisturbed / "policy.json"
    arguments = ("evaluate", EXPERIMENTS / "quickstart.toml", "--policy", policy, *FAST)
    done = haq(*arguments, before=files_of_at_most(100), HAQ_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if line.startswith("cache:")] == [
        line for line in done.stderr.splitlines() if "cannot be written" in line
    ]
    answer = json.loads((undisturbed / "result.json").read_text())["answer"]
    assert json.loads(done.stdout)["measurement"]["score"] == answer["score"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("resume", [False, True], ids=["new", "resumed"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, undisturbed: Path, resume: bool) -> None:
    out = tmp_path / "folder" / "run"
    out.parent.mkdir()
    if resume:
        out.mkdir()
        (out / "trials.jsonl").write_bytes((undisturbed / "trials.jsonl").read_bytes())
        (out / "trials.jsonl").chmod(0o400)
    locked = out if resume else out.parent
    locked.chmod(0o500)
    try:
        done = search(out, *["--resume"] * resume, before=as_anybody)
    finally:
        locked.chmod(0o700)
    is_one_line(done, str(out), "Permission denied")
