"""Weight codes of b bits, b bits each: what a file holds is what a policy is predicted to take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from haq.deployed.state import IntegerWeight
from haq.values.formats import Format

_AT_ONCE = 1 << 20
"""Codes that are packed at once, to keep memory low; a multiple of 8, so that each part ends with a byte."""
WIDEST = 16


@dataclass(frozen=True)
class Coding:
    """How codes become unsigned integers of `bits` bits: (code - low) / step.

    Attributes:
        bits: of each, 16 at most.
        low: the least code.
        step: 2 for binary codes of -1 and 1.
    """

    bits: int
    low: int
    step: int = 1

    @classmethod
    def of(cls, weight: IntegerWeight, fmt: Format) -> Coding | None:
        """The narrowest that holds a weight's codes, of the format's own bits at least; `None` above 16 bits."""
        low = min(int(codes.min()) for codes, _, _ in weight.blocks)
        if fmt.name == "binary":
            return cls(1, -1, 2)
        bits = next((bits for bits in range(fmt.bits, WIDEST + 1) if weight.fits(bits)), None)
        return None if bits is None else cls(bits, 0 if low >= 0 else -(1 << bits - 1))

    def pack(self, codes: Tensor) -> Tensor:
        """Codes one after the other, the highest bit first, as bytes: `[ceil(numel * bits / 8)]` uint8."""
        flat = ((codes.flatten().to(torch.int64) - self.low) // self.step).numpy().astype(">u2")
        parts = [self._bits(flat[at : at + _AT_ONCE]) for at in range(0, len(flat), _AT_ONCE)]
        return torch.from_numpy(np.concatenate([np.packbits(part) for part in parts]))

    def _bits(self, values: np.ndarray) -> np.ndarray:
        return np.unpackbits(values.view(np.uint8)).reshape(-1, WIDEST)[:, WIDEST - self.bits :].ravel()

    def unpack(self, packed: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The codes again, int32 of `shape`.

        Raises:
            ValueError: another number of bytes.
        """
        count = int(np.prod(shape))
        if packed.dtype != torch.uint8 or packed.numel() != -(-count * self.bits // 8):
            raise ValueError(f"{packed.numel()} bytes do not hold {count} codes of {self.bits} bits")
        data, step = packed.numpy(), _AT_ONCE * self.bits // 8
        parts = []
        for at in range(0, len(data), step):
            bits = np.unpackbits(data[at : at + step])
            rows = bits[: len(bits) // self.bits * self.bits].reshape(-1, self.bits)
            wide = np.zeros((len(rows), WIDEST), np.uint8)
            wide[:, WIDEST - self.bits :] = rows
            parts.append(np.packbits(wide).view(">u2").astype(np.int32))
        codes = np.concatenate(parts)[:count] * self.step + self.low
        return torch.from_numpy(codes.astype(np.int32)).reshape(shape)
