"""Elias gamma codes of whole numbers from 1: short for small ones."""

from __future__ import annotations

import torch
from torch import Tensor

from haq.distributed.packing import pack, unpack


def elias_bits(numbers: Tensor) -> Tensor:
    """The gamma codes of `numbers` (int64, at least 1) as a row of bits.

    A code is the number's length less one in unary, then its bits after the leading one (Elias, "Universal codeword
    sets", 1975). All lengths come before all bits, which changes no count and lets the reader go in parallel.
    """
    lengths = _length(numbers)
    ends = torch.cumsum(lengths + 1, 0) - 1
    unary = torch.zeros(int(lengths.sum()) + numbers.numel(), dtype=torch.uint8, device=numbers.device)
    unary[ends] = 1
    owner = torch.repeat_interleave(torch.arange(numbers.numel(), device=numbers.device), lengths)
    bits = (numbers[owner] >> _offsets(lengths)) & 1
    return torch.cat([unary, bits.to(torch.uint8)])


def read_elias(bits: Tensor, count: int) -> tuple[Tensor, int]:
    """The first `count` numbers of a row of bits, and how many bits they took."""
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=bits.device), 0
    ends = bits.nonzero().flatten()[:count]
    lengths = torch.diff(ends, prepend=ends.new_tensor([-1])) - 1
    begin, total = int(ends[-1]) + 1, int(lengths.sum())
    places = bits[begin : begin + total].to(torch.int64) << _offsets(lengths)
    owner = torch.repeat_interleave(torch.arange(count, device=bits.device), lengths)
    numbers = (1 << lengths).scatter_add(0, owner, places)
    return numbers, begin + total


def pack_bits(bits: Tensor) -> Tensor:
    """A row of bits as bytes."""
    return pack(bits, 1)


def unpack_bits(packed: Tensor) -> Tensor:
    """The bits of `pack_bits`, and up to seven zeros more."""
    return unpack(packed, 8 * packed.numel(), 1)


def _length(numbers: Tensor) -> Tensor:
    """floor(log2); exact: float64 holds every number below 2**53."""
    return torch.frexp(numbers.to(torch.float64)).exponent.to(torch.int64) - 1


def _offsets(lengths: Tensor) -> Tensor:
    """For numbers with so many bits each: 0, 1, ... within each number, one after the other."""
    starts = torch.repeat_interleave(torch.cumsum(lengths, 0) - lengths, lengths)
    return torch.arange(int(lengths.sum()), device=lengths.device) - starts
