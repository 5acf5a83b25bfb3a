"""TernGrad: three values, unbiased (Wen et al., NeurIPS 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.distributed.base import Compressor, Place
from haq.distributed.packing import bytes_float, float_bytes, packed_bytes
from haq.values.errors import InputError

_PER_BYTE = 5
"""3^5 = 243 fit into a byte: 1.6 bits for each value."""


class TernGrad(Compressor):
    """Sends `s * sign(v) * b`, b drawn with probability |v| / s; s is the largest magnitude over all workers (eq. 3).

    Unbiased for the clipped gradient. Layer by layer, with scaler sharing (section 3.2).

    Args:
        clip: first cut values to `clip` standard deviations of the parameter's gradient (eq. 11); `None`: do not, which
            alone is unbiased for the gradient itself.
    """

    biased = False
    needs_largest = True

    def __init__(self, clip: float | None = 2.5) -> None:
        if clip is not None and not clip > 0:
            raise InputError(f"terngrad: clip must be above 0, or None (got {clip!r})")
        self._clip = clip

    def _clipped(self, values: Tensor) -> Tensor:
        if self._clip is None or values.numel() < 2:
            return values
        bound = self._clip * float(values.std(correction=0))
        return values.clamp(-bound, bound) if bound > 0 else values

    def largest(self, values: Tensor, place: Place) -> float:
        return float(self._clipped(values).abs().max())

    def encode(self, values: Tensor, place: Place, *, largest: float = 0.0) -> Tensor:
        values = self._clipped(values)
        kept = place.uniform(values.device) * largest < values.abs()
        digits = (values.sign() * kept + 1).to(torch.uint8)
        digits = torch.nn.functional.pad(digits, (0, -place.count % _PER_BYTE)).view(-1, _PER_BYTE)
        packed = digits[:, 0].clone()
        for index in range(1, _PER_BYTE):
            packed += digits[:, index] * 3**index
        scale = torch.tensor([largest], dtype=torch.float32, device=values.device)
        return torch.cat([float_bytes(scale), packed])

    def decode(self, message: Tensor, place: Place) -> Tensor:
        rest = message[4 : 4 + packed_bytes(-(-place.count // _PER_BYTE), 8)]
        digits = []
        for _ in range(_PER_BYTE):
            digits.append(rest % 3)
            rest = rest // 3
        signs = torch.stack(digits, dim=1).flatten()[: place.count].to(torch.float32) - 1
        return bytes_float(message[:4]) * signs
