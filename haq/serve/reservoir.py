"""The newest inputs, as many as a number of bytes holds."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from haq.serve.requests import Asked
from haq.values.errors import InputError

LEAST = 64
"""Samples that a calibration needs."""
Sample = Mapping[str, Tensor]


class Reservoir:
    """Keeps samples by input name, `[1, ...]` each, and lets the oldest go. May be used by several threads.

    Attributes:
        budget: bytes that it may keep.
        seen: samples that came, all in all.
    """

    def __init__(self, budget: int, *, most: int = 512) -> None:
        self.budget, self.seen = budget, 0
        self._most, self._bytes = most, 0
        self._samples: deque[Sample] = deque()
        self._lock = threading.Lock()

    def add(self, asked: Asked) -> None:
        """Keep the samples of a request, the last of them where not all fit."""
        with self._lock:
            self.seen += asked.samples
            for number in range(max(0, asked.samples - self._most), asked.samples):
                sample = {name: tensor[number : number + 1].clone() for name, tensor in asked.inputs.items()}
                self._samples.append(sample)
                self._bytes += _bytes(sample)
                while self._samples and (self._bytes > self.budget or len(self._samples) > self._most):
                    self._bytes -= _bytes(self._samples.popleft())

    @property
    def bytes(self) -> int:
        """That it keeps now."""
        return self._bytes

    def newest(self, count: int) -> list[Sample]:
        """The last `count` samples, oldest first; fewer where it has fewer."""
        with self._lock:
            return list(self._samples)[-count:]

    def __len__(self) -> int:
        return len(self._samples)


def check_budget(budget: int, shapes: Sequence[Sequence[object]]) -> None:
    """That a calibration can be made from what `budget` bytes hold.

    Raises:
        InputError: says how many are needed.
    """
    size = 0
    for shape in shapes:
        elements = 4
        for length in list(shape)[1:]:
            elements *= length if isinstance(length, int) else 1
        size += elements
    if budget < LEAST * size:
        raise InputError(
            f"--reservoir-bytes {budget}: holds {budget // max(1, size)} samples of {size} bytes, and a calibration "
            f"needs {LEAST}: give {LEAST * size} or more, or --no-calibrate"
        )


def batches(samples: Sequence[Sample], size: int = 64) -> list[dict[str, Tensor]]:
    """Samples that follow each other in batches; one of another shape begins a new batch."""
    found: list[list[Sample]] = []
    for sample in samples:
        alike = found and all(tensor.shape == found[-1][0][name].shape for name, tensor in sample.items())
        if alike and len(found[-1]) < size:
            found[-1].append(sample)
        else:
            found.append([sample])
    return [{name: torch.cat([one[name] for one in batch]) for name in batch[0]} for batch in found]


def save_samples(samples: Sequence[Sample], path: Path) -> None:
    """Write samples to a safetensors file."""
    save_file({f"{n}.{name}": tensor for n, one in enumerate(samples) for name, tensor in one.items()}, str(path))


def load_samples(path: Path) -> list[Sample]:
    """What `save_samples` wrote."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(str(path)).items():
        number, _, name = key.partition(".")
        found.setdefault(int(number), {})[name] = tensor
    return [found[number] for number in sorted(found)]


def _bytes(sample: Sample) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in sample.values())
