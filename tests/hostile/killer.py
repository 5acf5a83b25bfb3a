"""Runs `haq` commands in forks of this process and kills them at a given write: `killer.py < jobs.json`.

A job has `argv`, `folder`, `cwd`, `kill_at` (a number or null), `after` and `signal`. Writes are counted:
files of `folder` opened to be written, renamed or removed, and calls of `fsync`. The process sends itself the signal
before write number `kill_at`, or with `after` behind it. One JSON line per job: exit code, names of all writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Writes:
    """Counts the writes of this process under a folder and ends it at one of them."""

    def __init__(self, folder: Path, kill_at: int | None, after: bool, number: int) -> None:
        self.folder, self.kill_at, self.after, self.number = str(folder), kill_at, after, number
        self.names: list[str] = []
        self._fsync = os.fsync
        os.fsync = self.fsync  # type: ignore[assignment]
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike) and (arguments[2] or 0) & WRITING:
            self.step(arguments[0])
        elif event in ("os.rename", "os.remove"):
            self.step(arguments[1] if event == "os.rename" else arguments[0])

    def step(self, path: Any) -> None:
        if os.path.abspath(os.fspath(path)).startswith(self.folder):
            self.names.append(os.path.basename(os.fspath(path)))
            self.strike(before=True)

    def fsync(self, descriptor: int) -> None:
        self.names.append("fsync")
        self.strike(before=True)
        self._fsync(descriptor)
        self.strike(before=False)

    def strike(self, *, before: bool) -> None:
        if len(self.names) == self.kill_at and before != self.after:
            self.kill_at = None
            os.kill(os.getpid(), self.number)


def child(job: dict[str, Any], report: int) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(job["cwd"])
        said = os.open(f"{job['folder']}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(said, stream)
        writes = Writes(Path(job["folder"]), job.get("kill_at"), job["after"], job["signal"])
        sys.argv = ["haq", *job["argv"]]
        from haq.commands.cli import main

        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        os.write(report, json.dumps(writes.names).encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(job: dict[str, Any]) -> dict[str, Any]:
    sys.stdout.flush()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        child(job, writer)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    _, status = os.waitpid(pid, 0)
    return {"code": os.waitstatus_to_exitcode(status), "writes": json.loads(text) if text else []}


def main() -> None:
    import haq.commands.cli  # what all jobs need is imported once
    import haq.runs.front  # noqa: F401

    with contextlib.suppress(ImportError):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
