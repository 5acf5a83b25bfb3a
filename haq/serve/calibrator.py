"""Watches what comes in, has new ranges computed where it drifts, and swaps them in where they are better."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from haq.adaptive.sessions import OnnxFamily, load_onnx
from haq.edges.documents import read_json, write_json
from haq.serve.drift import WINDOW, Drift, Observer
from haq.serve.engine import Engine, Version
from haq.serve.log import Log, fingerprint
from haq.serve.metrics import Metrics
from haq.serve.reservoir import LEAST, Reservoir, save_samples
from haq.serve.worker import RESULT, STATISTICS
from haq.values.errors import InputError

_PAUSE = 0.2
_PATIENCE = 600
_STREAK = 2
"""Windows in a row that must drift."""


@dataclass(frozen=True)
class Source:
    """Where a calibration takes the model from: the family, and the experiment where it is not the family's own."""

    family: Path
    experiment: Path | None = None
    overrides: tuple[str, ...] = ()
    threads: int = 1


def resumed(source: Source, state: Path, log: Log | None) -> Version:
    """The version that was in use when the service ended, however it did; the family's own where there was none."""
    number, name = log.last_version(source.family) if log else (0, None)
    if log is not None and name is not None:
        try:
            return Version(number, load_onnx(state / name, threads=source.threads))
        except InputError as error:
            log.append("lost", version=0, folder=None, family=fingerprint(source.family), error=str(error))
    return Version(0, load_onnx(source.family, threads=source.threads))


class Calibrator:
    """Runs beside an engine.

    Every window of new samples is compared with the reference. Two that drift in a row: a worker process finds new
    ranges on half of the reservoir and judges them on the other half; if they are better, the engine's next batch runs
    on them, and the reservoir is the new reference. A later window judges once more, and goes back if they are worse.
    """

    def __init__(
        self,
        engine: Engine,
        reservoir: Reservoir,
        source: Source,
        state: Path,
        log: Log,
        metrics: Metrics,
        *,
        alarms: float = 0.01,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._engine, self._reservoir, self._source, self._state = engine, reservoir, source, state
        self._log, self._metrics, self._alarms, self._tell = log, metrics, alarms, tell
        self._drift: Drift | None = None
        self._observer: Observer | None = None
        self._streak, self._skip, self._next_skip, self._last = 0, 0, 1, 0
        self._before: Version | None = None

    async def run(self) -> None:
        """Watch until cancelled; a service goes on without where it cannot."""
        metrics = self._metrics
        try:
            await self._look_at(self._engine.version.family, prepare=True)
            while True:
                await asyncio.sleep(_PAUSE)
                metrics.reservoir.set(self._reservoir.bytes)
                if self._reservoir.seen - self._last >= WINDOW:
                    self._last = self._reservoir.seen
                    await self._window()
        except InputError as error:
            self._log.append("stopped", error=str(error))
            self._tell(f"ranges are not renewed: {error}")

    async def _look_at(self, family: OnnxFamily, *, prepare: bool = False) -> None:
        """Take statistics of a version for the reference; those of the family itself are made when first wanted."""
        folder = family.folder
        statistics = folder / STATISTICS
        if prepare and folder == self._source.family:
            found, out = await self._work("prepare", current=str(folder))
            if "failed" in found:
                raise InputError(found["failed"])
            statistics = out / STATISTICS
        values = np.load(statistics, allow_pickle=False)
        self._drift = await asyncio.to_thread(lambda: Drift(values, alarms=self._alarms))
        self._observer = await asyncio.to_thread(Observer, folder, len(family.members))
        self._metrics.threshold.set(self._drift.threshold)
        self._streak = 0

    async def _window(self) -> None:
        assert self._drift is not None
        assert self._observer is not None
        samples = self._reservoir.newest(WINDOW)
        if len(samples) < LEAST:
            return
        statistics = await asyncio.to_thread(self._observer, samples)
        index = await asyncio.to_thread(self._drift, statistics)
        self._metrics.drift.set(index)
        self._streak = self._streak + 1 if index > self._drift.threshold else 0
        if self._before is not None:
            await self._judge_again(self._before)
        elif self._skip > 0:
            self._skip -= 1
        elif self._streak >= _STREAK:
            self._log.append("drift", psi=index, threshold=self._drift.threshold)
            await self._calibrate()

    async def _calibrate(self) -> None:
        now = self._engine.version
        found, out = await self._work("calibrate", samples=True, current=str(now.family.folder))
        outcome = "failed" if "failed" in found else "swap" if found["better"] else "kept"
        self._metrics.calibrations.labels(outcome).inc()
        self._streak = 0
        if outcome != "swap":
            self._log.append(outcome, **found)
            shutil.rmtree(out, ignore_errors=True)
            self._skip, self._next_skip = self._next_skip, min(64, 2 * self._next_skip)
            return
        number = self._log.largest_version + 1
        folder = self._state / f"version-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        out.rename(folder)
        family = await asyncio.to_thread(load_onnx, folder, threads=self._source.threads)
        self._change("swap", Version(number, family), found)
        self._before, self._next_skip = now, 1
        await self._look_at(family)

    async def _judge_again(self, before: Version) -> None:
        now, self._before = self._engine.version, None
        found, out = await self._work(
            "judge", samples=True, current=str(now.family.folder), before=str(before.family.folder)
        )
        shutil.rmtree(out, ignore_errors=True)
        if not found.get("better"):
            self._log.append("confirmed", version=now.number, **found)
            self._remove_all_but(now)
            return
        self._metrics.calibrations.labels("rollback").inc()
        self._change("rollback", before, found)
        await self._look_at(before.family, prepare=True)
        self._skip, self._next_skip = self._next_skip, min(64, 2 * self._next_skip)

    def _change(self, event: str, version: Version, found: dict[str, Any]) -> None:
        own = version.family.folder == self._source.family
        folder = None if own else version.family.folder.name
        self._log.append(event, version=version.number, folder=folder, family=fingerprint(self._source.family), **found)
        self._engine.swap(version)

    def _remove_all_but(self, version: Version) -> None:
        for folder in self._state.glob("version-*"):
            if folder != version.family.folder:
                shutil.rmtree(folder, ignore_errors=True)

    async def _work(self, work: str, *, samples: bool = False, **more: str) -> tuple[dict[str, Any], Path]:
        """Have a process of its own do a job; its result, and the folder that it wrote to."""
        out = self._state / f"{work}.part"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        job: dict[str, Any] = {"work": work, "family": str(self._source.family), **more}
        if self._source.experiment is not None:
            job |= {"experiment": str(self._source.experiment), "overrides": list(self._source.overrides)}
        if samples:
            job["samples"] = str(out / "samples.safetensors")
            await asyncio.to_thread(save_samples, self._reservoir.newest(2 * WINDOW), out / "samples.safetensors")
        write_json(out / "job.json", job)
        command = (sys.executable, "-m", "haq.serve.worker", str(out / "job.json"))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        try:
            await asyncio.wait_for(process.wait(), _PATIENCE)
        except TimeoutError:
            return {"failed": f"{work}: took more than {_PATIENCE} s"}, out
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        (out / "samples.safetensors").unlink(missing_ok=True)  # inputs may be private
        if not (out / RESULT).is_file():
            return {"failed": f"{work}: the process ended with {process.returncode}"}, out
        return dict(read_json(out / RESULT)), out
