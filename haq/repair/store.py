"""Weights that were rounded by data, kept: no layer is rounded twice for the same formats, inputs and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch import Tensor

from haq.edges.documents import read_bytes, write_bytes
from haq.values.errors import InputError
from haq.values.formats import Precision

_PACKAGE = Path(__file__).parents[1]
_KEPT_BYTES = 2**30


class RepairedWeights:
    """Keeps rounded weights in memory, and in files where it may: a search that was killed goes on layer by layer.

    Args:
        folder: of the files; `None`: in memory alone.
        context: what the weights depend on beside layer and formats: hashes of model and data, settings.
        seed: of the order of samples.
    """

    def __init__(self, folder: Path | None, context: Mapping[str, Any], *, seed: int = 0) -> None:
        self._folder, self._memory = folder, dict[str, Tensor | None]()
        self._context = {**context, "seed": seed, "code": _code(), "torch": torch.__version__}
        self.seed = seed

    def key(self, method: str, layer: str, precision: Precision) -> str:
        """Of one layer's weight."""
        parts = {**self._context, "method": method, "layer": layer, "precision": str(precision)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> tuple[bool, Tensor | None]:
        """Whether it is known, and what it is; a file that is damaged is not."""
        if key in self._memory:
            return True, self._memory[key]
        if self._folder is None:
            return False, None
        try:
            tensors = load_tensors(read_bytes(self._folder / f"{key}.safetensors", limit=_KEPT_BYTES))
            digest = bytes(tensors.pop("sha256").tolist())
            if digest != _digest(tensors["weight"]):
                return False, None
        except (InputError, SafetensorError, KeyError, OSError, ValueError):
            return False, None
        self._memory[key] = tensors["weight"]
        return True, self._memory[key]

    def put(self, key: str, weight: Tensor | None) -> None:
        """Keep it; `None` where the method leaves the layer alone."""
        self._memory[key] = weight
        if self._folder is None or weight is None:
            return
        content = save(
            {"weight": weight.contiguous(), "sha256": torch.tensor(list(_digest(weight)), dtype=torch.uint8)}
        )
        try:
            write_bytes(self._folder / f"{key}.safetensors", content)
        except InputError:  # a disk that is full or read-only costs time, nothing else
            self._folder = None


def _digest(weight: Tensor) -> bytes:
    return hashlib.sha256(weight.contiguous().numpy().tobytes()).digest()


@cache
def _code() -> str:
    """A hash of the code that rounds."""
    digest = hashlib.sha256()
    for room in ("quant", "repair"):
        for file in sorted((_PACKAGE / room).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
