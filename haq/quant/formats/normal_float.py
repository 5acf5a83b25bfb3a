"""nf4 (Dettmers et al., "QLoRA", NeurIPS 2023, appendix E): 16 quantiles of a normal distribution, in blocks of 64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from haq.quant.formats.base import Arrays, Coder
from haq.quant.formats.blocks import TINY, BlockFormat, Dynamic, cut, uncut
from haq.values.formats import Format

_BLOCK = 64
_NEGATIVE = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004)
_POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
LEVELS = torch.tensor([*_NEGATIVE, 0.0, *_POSITIVE])


@dataclass(frozen=True, slots=True)
class NormalFloat(Dynamic):
    """The nearest level times the block's largest size, float32; half-way values go to the lower level."""

    axis: int = -1

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        blocks, levels = cut(rows, _BLOCK), LEVELS.to(rows.device)
        scale = blocks.abs().amax(2)
        middles = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize((blocks / scale.clamp(min=TINY)[..., None]).contiguous(), middles)
        return {"codes": uncut(codes.to(torch.uint8), rows.shape[1]), "scale": scale}

    def decode(self, arrays: Arrays, columns: int) -> Tensor:
        levels = LEVELS.to(arrays["codes"].device)[arrays["codes"].long()]
        return uncut(cut(levels, _BLOCK) * arrays["scale"][..., None], columns)

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"codes": (rows, columns), "scale": (rows, -(-columns // _BLOCK))}

    @property
    def widths(self) -> Mapping[str, int]:
        return {"codes": 4}


class NormalFloatFormat(BlockFormat):
    """Weights only; nothing to calibrate."""

    family = "normal float"

    def make(self, fmt: Format, axis: int) -> Coder:
        return NormalFloat(axis)
