"""Where tensors lie in one static arena: offsets such that tensors that live at the same time never overlap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 4
"""Bytes; also of scratch memory, which holds pairs of 16-bit integers."""


@dataclass(frozen=True, slots=True)
class Block:
    """Memory that is needed from step `first` to step `last`, both included."""

    name: str
    bytes: int
    first: int
    last: int

    def meets(self, other: Block) -> bool:
        """Whether both are alive at one step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Arena:
    """Offsets of blocks.

    Attributes:
        offsets: block -> byte at which it begins.
        bytes: of the whole arena.
        lower_bound: the most bytes that live at one step: no layout has fewer.
    """

    offsets: Mapping[str, int]
    bytes: int
    lower_bound: int


def lay_out(blocks: Sequence[Block]) -> Arena:
    """The smallest of four greedy layouts: each block at the lowest offset that is free, in four orders.

    Where one reaches the lower bound it is optimal.
    """
    orders: tuple[Callable[[Block], tuple[int, ...]], ...] = (
        lambda block: (-block.bytes, block.first),
        lambda block: (block.first, -block.bytes),
        lambda block: (block.first - block.last, -block.bytes),
        lambda block: (-block.bytes * (block.last - block.first + 1), block.first),
    )
    layouts = [_greedy(sorted(blocks, key=order)) for order in orders]
    offsets = min(layouts, key=lambda found: _end(found, blocks))
    steps = {block.first for block in blocks}
    bound = max((sum(_aligned(b.bytes) for b in blocks if b.first <= step <= b.last) for step in steps), default=0)
    return Arena(offsets, _end(offsets, blocks), bound)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _end(offsets: Mapping[str, int], blocks: Sequence[Block]) -> int:
    return max((offsets[block.name] + _aligned(block.bytes) for block in blocks), default=0)


def _greedy(blocks: Sequence[Block]) -> dict[str, int]:
    offsets: dict[str, int] = {}
    placed: list[Block] = []
    for block in blocks:
        taken = sorted((offsets[b.name], offsets[b.name] + _aligned(b.bytes)) for b in placed if b.meets(block))
        at = 0
        for start, end in taken:
            if at + _aligned(block.bytes) <= start:
                break
            at = max(at, end)
        offsets[block.name] = at
        placed.append(block)
    return offsets
