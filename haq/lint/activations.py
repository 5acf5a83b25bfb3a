"""Rules over values: ranges, tails, activations, gates, joins, softmax. What they cost is a loss that was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator

from haq.lint.context import Context
from haq.lint.findings import Finding
from haq.lint.observe import UNBOUNDED
from haq.values.kinds import KINDS

_CHANNEL_BITS = 3.0
"""Channels whose sizes differ by more than 2^3 leave the smaller ones three bits or more short."""
_TAIL = 0.5
"""A range of which 99.9 % of the values use less than this part has a tail."""
_JOIN_RATIO = 4.0
_LARGE_SOFTMAX = 256


def channel_ranges(context: Context) -> Iterator[Finding]:
    """Input channels of very different size under the one scale that activations have."""
    for layer, read in context.seen.reads.items():
        sizes = read.channels[read.channels > 0]
        if len(sizes) < 2:
            continue
        spread = float(math.log2(float(sizes.max()) / float(sizes.median())))
        if spread > _CHANNEL_BITS:
            yield context.loss_finding(
                "channel_ranges",
                layer,
                spread,
                "log2 of the largest channel's range over the median's, under one scale",
                context.meter.of_input(layer),
                "equalize the channels into the layer before, or keep this layer's input at more bits",
            )


def weight_ranges(context: Context) -> Iterator[Finding]:
    """Output channels of very different size, where the weights have one scale per tensor."""
    if context.experiment.quantization.weight_granularity != "tensor":
        return
    for layer in context.layers:
        weight = context.model.float_weight(layer)
        rows = (
            weight.flatten(1) if not KINDS[context.layers[layer].kind].transposed else weight.transpose(0, 1).flatten(1)
        )
        sizes = rows.abs().amax(1)
        sizes = sizes[sizes > 0]
        if len(sizes) < 2:
            continue
        spread = float(math.log2(float(sizes.max()) / float(sizes.min())))
        if spread > _CHANNEL_BITS:
            yield context.loss_finding(
                "weight_ranges",
                layer,
                spread,
                "log2 of the largest output channel's range over the smallest's, under one scale per tensor",
                context.meter.of_weight(layer),
                "equalize across layers, or use a scale per channel where the device can",
            )


def long_tails(context: Context) -> Iterator[Finding]:
    """Few values that stretch the range of all others."""
    for layer, read in context.seen.reads.items():
        used = read.tail / read.largest if read.largest > 0 else 1.0
        if used < _TAIL:
            yield context.loss_finding(
                "long_tail",
                layer,
                used,
                "part of the range that 99.9 % of the values use",
                context.meter.of_input(layer),
                "clip the range (activation_calibration = 'mse' or 'percentile'), or bound the activation before it",
            )


def unbounded_activations(context: Context) -> Iterator[Finding]:
    """Activations such as SiLU and GELU: no upper bound, and codes spent on a short negative side."""
    for layer, read in context.seen.reads.items():
        if read.activation:
            yield context.loss_finding(
                "unbounded_activation",
                layer,
                context.sqnr_db(layer),
                f"SQNR in dB of what it reads, behind {UNBOUNDED[read.activation]}, at {context.low[layer].activation}",
                context.meter.of_input(layer),
                "use ReLU or ReLU6 there and fine-tune, or keep this layer's input at more bits",
            )


def gates(context: Context) -> Iterator[Finding]:
    """Squeeze-and-excitation: a product with a sigmoid of one value per channel."""
    for module, layer in context.seen.gates.items():
        if layer not in context.layers:
            continue
        yield context.loss_finding(
            "squeeze_excitation",
            layer,
            float(context.layers[layer].out_channels),
            f"channels that the gate in {module or 'the model'} multiplies",
            context.meter.of_layer(layer),
            "keep the gate's two layers at 8 bits (they are small), or train without the gate",
        )


def depthwise(context: Context) -> Iterator[Finding]:
    """Few weights per channel, so that errors do not average out."""
    for name, layer in context.layers.items():
        if layer.is_depthwise:
            yield context.loss_finding(
                "depthwise",
                name,
                float(layer.params / layer.out_channels),
                "weights per output channel",
                context.meter.of_layer(name),
                "keep depthwise layers at more bits: they are small; re-estimate batch norm",
            )


def joins(context: Context) -> Iterator[Finding]:
    """Sums and concatenations of operands of very different size."""
    readers = {read.join: layer for layer, read in reversed(context.seen.reads.items()) if read.join is not None}
    for key, join in context.seen.joins.items():
        least = min(join.ranges)
        ratio = max(join.ranges) / least if least > 0 else math.inf
        layer = readers.get(key)
        if layer is not None and ratio > _JOIN_RATIO and math.isfinite(ratio):
            yield context.loss_finding(
                "join_ranges",
                layer,
                ratio,
                f"largest over smallest range of the operands of the {join.kind} in {join.module or 'the model'}",
                context.meter.of_input(layer),
                "scale the operands alike (equalize their layers), or keep the input of this layer at more bits",
            )


def large_softmax(context: Context) -> Iterator[Finding]:
    """A softmax over many values has most of them near zero: 8-bit steps lose them."""
    large = {module: size for module, size in context.seen.softmax.items() if size > _LARGE_SOFTMAX}
    if not large:
        return
    cost = context.meter.of_softmax(255)
    for module, size in large.items():
        yield context.loss_finding(
            "large_softmax",
            module or "the model",
            float(size),
            "values that one softmax normalises; the cost is of all softmaxes in 8 bits",
            cost,
            "leave the softmax in float, or use 16 bits for its result",
        )
