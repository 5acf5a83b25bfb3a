"""Bad places to run in: no room, no permission, few descriptors, no home, a clock that goes back, no listener."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_kills import QUICKSTART, SMALL, content

pytestmark = pytest.mark.slow
SEARCH = ["search", QUICKSTART, "--no-cache", *SMALL, "--out"]


def haq(*arguments: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    for name in options.pop("without", ()):
        environment.pop(name, None)
    command = [sys.executable, "-m", "haq", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, text=True, check=False, cwd=cwd, env=environment, **options)


def is_one_line(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Error:" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("haq: ")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, Any]:
    """What an undisturbed search leaves."""
    folder = tmp_path_factory.mktemp("good") / "run"
    done = haq(*SEARCH, folder, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return content(folder)


@pytest.fixture
def disk(tmp_path: Path):
    """Mounts small file systems, as root may."""
    mounted = []

    def mount(size: str, *more: str) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *more)), "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("may not mount file systems")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("size", ["8k", "16k", "40k", "120k", "300k"])
def test_a_full_disk_is_one_line_and_resumes_when_there_is_room(disk, tmp_path: Path, good, size: str) -> None:
    place = disk(size)
    done = haq(*SEARCH, place / "run", cwd=tmp_path)
    is_one_line(done)
    assert not list(place.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
    resume = ["--resume"] if (place / "run" / "trials.jsonl").exists() else []
    done = haq(*SEARCH, place / "run", *resume, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert content(place / "run") == good


def test_a_read_only_disk_is_one_line(disk, tmp_path: Path) -> None:
    place = disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    is_one_line(haq(*SEARCH, place / "run", cwd=tmp_path))
    is_one_line(haq("sensitivity", QUICKSTART, *SMALL, "--out", place / "s", cwd=tmp_path))


def test_32_descriptors_are_enough(tmp_path: Path, good) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))

    done = haq(*SEARCH, tmp_path / "run", cwd=tmp_path, preexec_fn=few)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "run") == good


@pytest.mark.parametrize("home", [None, "/nonexistent", "/dev/null"], ids=["none", "not there", "no folder"])
def test_no_home_is_needed(tmp_path: Path, good, home: str | None) -> None:
    options: dict[str, Any] = {"without": ("HOME", "XDG_CACHE_HOME", "HAQ_CACHE_DIR"), "cwd": tmp_path}
    if home is not None:
        options |= {"without": ("XDG_CACHE_HOME", "HAQ_CACHE_DIR"), "env": {"HOME": home}}
    done = haq(*(part for part in SEARCH if part != "--no-cache"), tmp_path / "run", **options)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "run") == good


CLOCK = """
import time
_now, _calls = time.time, [0]
def back():
    _calls[0] += 1
    return _now() - 3600.0 * _calls[0]
time.time = back
"""


def test_a_clock_that_is_set_back_changes_nothing(tmp_path: Path, good) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2]))))
    done = haq(*SEARCH, tmp_path / "run", cwd=tmp_path, env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "run") == good


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=["output", "errors", "all"])
def test_closed_streams_change_nothing(tmp_path: Path, good, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    done = haq(*SEARCH, tmp_path / "run", cwd=tmp_path, preexec_fn=close)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "run") == good


def test_a_reader_that_has_had_enough_changes_nothing(tmp_path: Path, good) -> None:
    command = [sys.executable, "-m", "haq", *map(str, SEARCH), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path) as running:
        assert running.stdout
        running.stdout.close()
        running.wait()
    assert content(tmp_path / "run") == good


def test_two_runs_into_one_folder_do_not_mix(tmp_path: Path, good) -> None:
    command = [sys.executable, "-m", "haq", *map(str, SEARCH), str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = []
    for _ in range(3):
        running.append(
            subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        )
        time.sleep(0.2)
    ended = [(one.communicate()[1], one.returncode) for one in running]
    assert sorted(code for _, code in ended) == [0, 2, 2], ended
    for said, code in ended:
        assert code == 0 or "another haq is writing this run" in said or "a run already exists" in said
    assert content(tmp_path / "run") == good


def test_the_same_experiment_gives_the_same_files(tmp_path: Path, good) -> None:
    """What is to be the same byte for byte, whoever runs it: see docs/safety.md."""
    names = ("problem.json", "sensitivity.csv", "plots/bits.png")
    folders = []
    for index in range(2):
        folders.append(tmp_path / f"run-{index}")
        assert haq(*SEARCH, folders[-1], cwd=tmp_path).returncode == 0
        assert content(folders[-1]) == good
    for name in names:
        if (folders[0] / name).exists():
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
