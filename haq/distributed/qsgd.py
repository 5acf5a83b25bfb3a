"""QSGD: random rounding to a few levels of the norm (Alistarh et al., NeurIPS 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from haq.distributed.base import Compressor, Place
from haq.distributed.elias import elias_bits, pack_bits, read_elias, unpack_bits
from haq.distributed.packing import bytes_float, float_bytes, pack, unpack
from haq.values.errors import InputError


class QSGD(Compressor):
    """Sends `norm * sign(v) * level / levels`; levels are rounded up or down at random, so that the mean is right.

    Section 3.1, with a norm for every 512 values (section 4). Variance at most min(n / s^2, sqrt(n) / s) |v|^2 for n
    values with one norm and s levels (Lemma 3.1).

    Args:
        levels: above zero, on each side.
        bucket: values that share a norm.
        norm: `l2` or `max`; the largest magnitude gives less variance, and fewer zeros.
        coding: `fixed`: log2(2 levels + 1) bits each; `elias`: gaps between values other than zero, their signs and
            levels in Elias codes (section 3.2, "Code"), shorter where most are zero.
    """

    biased = False

    def __init__(self, levels: int = 1, bucket: int = 512, norm: str = "l2", coding: str = "elias") -> None:
        for name, number, most in (("levels", levels, 2**15 - 1), ("bucket", bucket, 2**31)):
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
                raise InputError(f"qsgd: {name} must be a whole number from 1 to {most} (got {number!r})")
        if norm not in ("l2", "max"):
            raise InputError(f"qsgd: norm must be 'l2' or 'max' (got {norm!r})")
        if coding not in ("fixed", "elias"):
            raise InputError(f"qsgd: coding must be 'fixed' or 'elias' (got {coding!r})")
        self._levels, self._bucket, self._norm = levels, bucket, norm
        self.fixed_size = coding == "fixed"
        self._width = (2 * levels).bit_length()

    def encode(self, values: Tensor, place: Place, *, largest: float = 0.0) -> Tensor:
        padded = torch.nn.functional.pad(values, (0, -place.count % self._bucket)).view(-1, self._bucket)
        order = 2.0 if self._norm == "l2" else math.inf
        norms = torch.linalg.vector_norm(padded, order, dim=1)
        share = padded.abs() / torch.where(norms > 0, norms, 1.0).unsqueeze(1)
        share = share.flatten()[: place.count].clamp(max=1.0) * self._levels
        level = (share + place.uniform(values.device)).floor().clamp(max=self._levels).to(torch.int64)
        code = torch.where(values < 0, -level, level)
        body = pack(code + self._levels, self._width) if self.fixed_size else _to_elias(code)
        return torch.cat([float_bytes(norms), body])

    def decode(self, message: Tensor, place: Place) -> Tensor:
        norms = -(-place.count // self._bucket)
        body = message[4 * norms :]
        if self.fixed_size:
            code = unpack(body, place.count, self._width).to(torch.int64) - self._levels
        else:
            code = _from_elias(body, place.count)
        scale = torch.repeat_interleave(bytes_float(message[: 4 * norms]) / self._levels, self._bucket)
        return code.to(torch.float32) * scale[: place.count]


def _to_elias(code: Tensor) -> Tensor:
    """How many are not zero, the gaps between them, their signs and levels."""
    at = code.nonzero().flatten()
    gaps = torch.diff(at, prepend=at.new_tensor([-1]))
    kept = code[at]
    number = elias_bits(torch.tensor([at.numel() + 1], device=code.device))
    return pack_bits(torch.cat([number, elias_bits(gaps), (kept < 0).to(torch.uint8), elias_bits(kept.abs())]))


def _from_elias(body: Tensor, count: int) -> Tensor:
    bits = unpack_bits(body)
    number, used = read_elias(bits, 1)
    nonzero = int(number) - 1
    bits = bits[used:]
    gaps, used = read_elias(bits, nonzero)
    negative = bits[used : used + nonzero].bool()
    levels, _ = read_elias(bits[used + nonzero :], nonzero)
    code = torch.zeros(count, dtype=torch.int64, device=body.device)
    code[torch.cumsum(gaps, 0) - 1] = torch.where(negative, -levels, levels)
    return code
