"""Requests in batches on one version of a family, which is swapped between two batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from haq.adaptive.controller import Controller, run_adaptive
from haq.adaptive.sessions import OnnxFamily
from haq.quant.nested import tensors_in
from haq.serve.requests import Asked
from haq.values.errors import InputError


class FullError(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True)
class Version:
    """What answers: a family's sessions, and how often its ranges were renewed."""

    number: int
    family: OnnxFamily


@dataclass(frozen=True)
class Answer:
    """To one request.

    Attributes:
        outputs: one tensor, samples first, or several.
        members: the member that answered each sample.
        version: all of them are of.
    """

    outputs: tuple[Tensor, ...]
    members: tuple[int, ...]
    version: int


@dataclass
class _Waiting:
    asked: Asked
    answer: asyncio.Future[Answer] = field(repr=False)


class Engine:
    """Gathers requests for a short time and runs them together, one batch after another.

    Each batch runs on one version from its beginning to its end; `swap` changes what the next one runs on.

    Attributes:
        version: that the next batch runs on.
    """

    def __init__(
        self,
        version: Version,
        controller: Controller | None = None,
        *,
        window: float = 0.002,
        most: int = 64,
        queue: int = 64,
        seen: Callable[[Asked], None] | None = None,
    ) -> None:
        """Holds; `run` runs.

        Args:
            version: to begin with.
            controller: chooses members; default: always the most precise.
            window: seconds that the first request of a batch waits for others.
            most: samples in a batch made of several requests.
            queue: requests that may wait.
            seen: is told of each request that was answered.
        """
        self.version = version
        self._controller, self._window, self._most, self._seen = controller, window, most, seen
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(maxsize=queue)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="haq-serve")

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._queue.qsize()

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        return self._queue.full()

    def swap(self, version: Version) -> None:
        """Let the next batch run on another version; one that runs ends on its own."""
        self.version = version

    async def ask(self, asked: Asked) -> Answer:
        """The answer to a request, when its turn has come.

        Raises:
            FullError: the queue is full.
            InputError: the model or the controller refuses it.
        """
        waiting = _Waiting(asked, asyncio.get_running_loop().create_future())
        try:
            self._queue.put_nowait(waiting)
        except asyncio.QueueFull as error:
            raise FullError from error
        return await waiting.answer

    async def run(self) -> None:
        """Answer requests until cancelled."""
        held: _Waiting | None = None
        while True:
            batch = [held or await self._queue.get()]
            held = await self._gather(batch)
            version = self.version
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._thread, self._answers, version, [one.asked for one in batch])
            for one, answer in zip(batch, found, strict=True):
                if one.answer.done():  # whoever asked has gone
                    continue
                if isinstance(answer, Exception):
                    one.answer.set_exception(answer)
                else:
                    one.answer.set_result(answer)

    async def _gather(self, batch: list[_Waiting]) -> _Waiting | None:
        """Add what comes within the window; returns one that came and does not fit."""
        loop = asyncio.get_running_loop()
        end, samples = loop.time() + self._window, batch[0].asked.samples
        while samples < self._most:
            try:
                more = await asyncio.wait_for(self._queue.get(), max(0.0, end - loop.time()))
            except TimeoutError:
                return None
            if samples + more.asked.samples > self._most or not _alike(batch[0].asked, more.asked):
                return more
            batch.append(more)
            samples += more.asked.samples
        return None

    def _answers(self, version: Version, asked: Sequence[Asked]) -> list[Answer | Exception]:
        try:
            return list(self._together(version, asked))
        except Exception as error:  # of the runtime, which share no base: whose request is it?
            if len(asked) > 1:
                return [answer for one in asked for answer in self._answers(version, [one])]
            if isinstance(error, InputError):
                return [error]
            line = (str(error).splitlines() or [type(error).__name__])[0]
            return [InputError(f"the model cannot run these inputs: {line:.200}")]

    def _together(self, version: Version, asked: Sequence[Asked]) -> list[Answer]:
        joined = {name: torch.cat([one.inputs[name] for one in asked]) for name in asked[0].inputs}
        total = sum(one.samples for one in asked)
        outputs, members = self._run(version.family, joined, total, asked[0].signals)
        if any(len(output) != total for output in outputs) and len(asked) > 1:
            raise RuntimeError("outputs that do not come by samples")
        answers, begin = [], 0
        for one in asked:
            end = begin + one.samples
            own = outputs if len(asked) == 1 else tuple(output[begin:end] for output in outputs)
            answers.append(Answer(own, members[begin:end], version.number))
            begin = end
            if self._seen is not None:
                self._seen(one)
        return answers

    def _run(
        self, family: OnnxFamily, inputs: dict[str, Tensor], samples: int, signals: dict[str, float]
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        count = len(family.members)
        if self._controller is None:
            return tuple(tensors_in(family.predict(inputs, count - 1))), (count - 1,) * samples
        known: dict[str, Any] = {**signals, "queue": float(self.waiting), "time": time.monotonic()}
        adapted = run_adaptive(family.predict, self._controller, inputs, members=count, **known)
        return (adapted.outputs,), tuple(map(int, adapted.answered))


def _alike(one: Asked, other: Asked) -> bool:
    """Whether both can run together: same signals, same sizes beside the samples."""
    return one.signals == other.signals and all(
        tensor.shape[1:] == other.inputs[name].shape[1:] for name, tensor in one.inputs.items()
    )
