"""Whole numbers of any width into bytes without gaps, and back; float32 values into bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_bytes(count: int, width: int) -> int:
    """Bytes that `count` numbers of `width` bits take."""
    return (count * width + 7) // 8


def pack(numbers: Tensor, width: int) -> Tensor:
    """Numbers in [0, 2**width) as bytes, lowest bits first.

    Args:
        numbers: a row of whole numbers, any integer type, or bool for `width` 1.
        width: bits of each, 1 to 32.
    """
    if width == 1:
        bits = numbers.to(torch.uint8)
    else:
        shifts = torch.arange(width, device=numbers.device)
        kind = torch.uint8 if width <= 8 else torch.int32 if width < 32 else torch.int64
        bits = ((numbers.to(kind).unsqueeze(1) >> shifts.to(kind)) & 1).to(torch.uint8).flatten()
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).view(-1, 8)
    result = bits[:, 0].clone()
    for place in range(1, 8):
        result |= bits[:, place] << place
    return result


def unpack(packed: Tensor, count: int, width: int) -> Tensor:
    """The first `count` numbers of `pack`: uint8 up to 8 bits, else int64."""
    needed = packed[: packed_bytes(count, width)]
    bits = ((needed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1).flatten()
    bits = bits[: count * width]
    if width == 1:
        return bits
    kind = torch.uint8 if width <= 8 else torch.int64
    columns = bits.view(count, width).to(kind)
    result = columns[:, 0].clone()
    for place in range(1, width):
        result |= columns[:, place] << place
    return result


def float_bytes(values: Tensor) -> Tensor:
    """float32 values as bytes."""
    return values.to(torch.float32).contiguous().view(torch.uint8)


def bytes_float(packed: Tensor) -> Tensor:
    """The values of `float_bytes`; copied, since a message need not begin where a float may."""
    return packed.clone().view(torch.float32)
