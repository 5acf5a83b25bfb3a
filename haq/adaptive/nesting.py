"""Nested weights: a member's low-bit codes as the leading bits of another member's.

Yu et al., "Any-precision deep neural networks" (AAAI 2021): weights are stored once, at the highest precision, lower
ones keep the leading bits. With a symmetric code q of B bits and step s, the member of b bits has the code
clamp(floor((q + 2^(B-b-1)) / 2^(B-b))) and the step s * 2^(B-b): rounding to the nearest, half up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from haq.deployed.state import IntegerWeight, LayerState, ModelState
from haq.export.packing import Coding
from haq.export.torch_file import CODES, SCALE


def leading_bits(codes: Tensor, *, bits: int, of: int) -> Tensor:
    """Codes of `bits` bits from the signed codes of `of` bits, int32."""
    shift = of - bits
    rounded = (codes.to(torch.int32) + (1 << shift >> 1)) >> shift
    return rounded.clamp(-(1 << bits - 1), (1 << bits - 1) - 1)


def nest(states: Sequence[ModelState]) -> list[ModelState]:
    """The same states, with each layer's integer weights replaced by the leading bits of the member with most of them.

    Layers keep theirs where that is not exact: other formats than plain integers, zero points, other blocks of rows.
    States without a change are the same objects.
    """
    result = []
    for state in states:
        layers = dict(state.layers)
        for name, layer in layers.items():
            high = max((other.layers[name] for other in states), key=_plain_bits)
            if _nests(layer, high):
                layers[name] = replace(layer, weight=_low(layer, high))
        changed = any(layers[name] is not layer for name, layer in state.layers.items())
        result.append(replace(state, layers=layers) if changed else state)
    return result


def _plain_bits(layer: LayerState) -> int:
    fmt = layer.precision.weight
    return fmt.bits if layer.weight is not None and fmt.is_integer and fmt.group_size is None else 0


def _nests(layer: LayerState, high: LayerState) -> bool:
    if not 1 < _plain_bits(layer) < _plain_bits(high) or layer.weight is None or high.weight is None:
        return False
    pairs = list(zip(layer.weight.blocks, high.weight.blocks, strict=False))
    alike = len(layer.weight.blocks) == len(high.weight.blocks)
    alike = alike and all(low[0].shape == top[0].shape and low[1].shape == top[1].shape for low, top in pairs)
    signed = not any(bool(zero.any()) for blocks in (layer.weight, high.weight) for _, _, zero in blocks.blocks)
    return alike and signed and high.weight.fits(_plain_bits(high))


def _low(layer: LayerState, high: LayerState) -> IntegerWeight:
    assert high.weight is not None
    bits, of = _plain_bits(layer), _plain_bits(high)
    blocks = tuple(
        (leading_bits(codes, bits=bits, of=of), scale * (1 << of - bits), zero)
        for codes, scale, zero in high.weight.blocks
    )
    return IntegerWeight(high.weight.layout, blocks)


def nestings(
    documents: Sequence[Mapping[str, Any]], tensors: Sequence[Mapping[str, Tensor]]
) -> dict[tuple[int, str], dict[str, Any]]:
    """What need not be stored: (member, tensor) -> `of`, the member that it comes from, and the `bits` of both.

    Only what comes out bit for bit is listed.
    """
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for number, (document, own) in enumerate(zip(documents, tensors, strict=True)):
        for name in own:
            layer, kind, block = _parts(name)
            if kind not in (CODES, SCALE) or layer not in document["packed"]:
                continue
            low = document["packed"][layer]
            for other in _widest_first(documents, layer, above=low["bits"]):
                if name not in tensors[other] or (other, name) in found:
                    continue
                bits = {"bits": low["bits"], "of_bits": documents[other]["packed"][layer]["bits"]}
                entry = {"of": other, **bits, "block": block}
                if _equal(_derive(name, entry, tensors, documents, low), own[name]):
                    found[number, name] = entry
                    break
    return found


def _widest_first(documents: Sequence[Mapping[str, Any]], layer: str, *, above: int) -> list[int]:
    """Members with more bits in a layer; those with most nest in nothing, so what others nest in is stored."""
    bits = {
        number: document["packed"][layer]["bits"]
        for number, document in enumerate(documents)
        if layer in document["packed"]
    }
    return sorted((number for number in bits if bits[number] > above), key=lambda number: -bits[number])


def derived(
    number: int,
    nests: Mapping[str, Mapping[str, Any]],
    tensors: Sequence[Mapping[str, Tensor]],
    documents: Sequence[Mapping[str, Any]],
) -> dict[str, Tensor]:
    """All tensors of a member: those stored for it, and those that nest in another member's.

    Raises:
        KeyError, ValueError: the documents do not fit the tensors.
    """
    full = dict(tensors[number])
    for name, entry in nests.items():
        layer, _, _ = _parts(name)
        full[name] = _derive(name, entry, tensors, documents, documents[number]["packed"][layer])
    return full


def _derive(
    name: str,
    entry: Mapping[str, Any],
    tensors: Sequence[Mapping[str, Tensor]],
    documents: Sequence[Mapping[str, Any]],
    low: Mapping[str, Any],
) -> Tensor:
    layer, kind, block = _parts(name)
    source, bits, of = tensors[entry["of"]][name], int(entry["bits"]), int(entry["of_bits"])
    if kind == SCALE:
        return torch.mul(source, 1 << of - bits)
    high = documents[entry["of"]]["packed"][layer]
    shape = tuple(map(int, high["shapes"][block]))
    codes = Coding(int(high["bits"]), int(high["low"]), int(high["step"])).unpack(source, shape)
    return Coding(bits, int(low["low"]), int(low["step"])).pack(leading_bits(codes, bits=bits, of=of))


def _equal(made: Tensor, own: Tensor) -> bool:
    return made.dtype == own.dtype and made.shape == own.shape and torch.equal(made, own)


def _parts(name: str) -> tuple[str, str, int]:
    """`conv1.weight_codes.0` -> layer, kind, block; kind is empty for any other tensor."""
    head, _, block = name.rpartition(".")
    layer, _, kind = head.rpartition(".")
    return (layer, kind, int(block)) if kind in (CODES, SCALE) and block.isdigit() else ("", "", 0)
