"""Rules over the device: alignment, switches, bits that cost nothing. Times are those of the device's cost model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from haq.hardware.costs import cost_report
from haq.lint.context import Context
from haq.lint.findings import Finding
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.kinds import KINDS
from haq.values.network import LayerSpec
from haq.values.policy import Policy

_MOST_CHANNELS = 64
_FREE = 0.02
"""A layer that lowest bits make less than this part faster gains nothing from them."""
_LEAST_SHARE = 1e-3
LATENCY = "latency_ms"


def alignment(context: Context) -> Iterator[Finding]:
    """Channel counts at which the device computes padding: the layer could have more channels in the same time."""
    if not context.timed:
        return
    for name, layer in context.layers.items():
        precision = context.low[name]
        same = _as_fast(context, layer, precision)
        wasted = context.latency(layer, precision) * (same - layer.out_channels) / same
        if same > layer.out_channels and wasted > _LEAST_SHARE * context.total_latency:
            yield context.time_finding(
                "alignment",
                name,
                float(layer.out_channels),
                f"output channels; {same} take the same time in {precision}",
                wasted,
                f"use {same} channels for the same time, or the next smaller multiple of the device's granularity",
            )


def _as_fast(context: Context, layer: LayerSpec, precision: Precision) -> int:
    """The most output channels that the layer could have in the time that it takes."""
    if layer.groups > 1 or KINDS[layer.kind].transposed or KINDS[layer.kind].gathers:
        return layer.out_channels
    wanted, most = context.latency(layer, precision), layer.out_channels
    for channels in range(layer.out_channels + 1, layer.out_channels + _MOST_CHANNELS):
        try:
            taken = context.latency(_widened(layer, channels), precision)
        except InputError:  # a table has no such layer
            break
        if taken > wanted * (1 + 1e-9):
            break
        most = channels
    return most


def _widened(layer: LayerSpec, channels: int) -> LayerSpec:
    factor = channels / layer.out_channels
    axis = -1 if KINDS[layer.kind].is_linear else 0
    shape = list(layer.output_shape)
    if shape:
        shape[axis] = channels
    return replace(
        layer,
        weight_shape=(channels, *layer.weight_shape[1:]),
        macs=round(layer.macs * factor),
        params=round(layer.params * factor),
        output_elements=round(layer.output_elements * factor),
        output_shape=tuple(shape),
    )


def switches(context: Context) -> Iterator[Finding]:
    """Layers that save less in low bits than the switches of format around them cost."""
    if not context.timed:
        return
    network, model = context.experiment.network, context.experiment.cost_model
    high = Policy(context.high)
    base = cost_report(network, model, high).totals[LATENCY]
    for name in context.layers:
        if context.low[name].activation == context.high[name].activation:
            continue
        alone = Policy({**context.high, name: context.low[name]})
        slower = cost_report(network, model, alone).totals[LATENCY] - base
        if slower > _LEAST_SHARE * base:
            yield context.time_finding(
                "switches",
                name,
                slower / base,
                f"part of the latency by which {context.low[name]} alone, among {context.high[name]}, is slower",
                slower,
                "lower its neighbours with it, or leave it as they are",
            )


def free_bits(context: Context) -> Iterator[Finding]:
    """Layers that low bits make hardly faster: their accuracy would be given away for nothing."""
    if not context.timed:
        return
    for name, layer in context.layers.items():
        low, high = (context.latency(layer, pair[name]) for pair in (context.low, context.high))
        gain = 1.0 - low / high if high > 0 else 0.0
        if context.low[name] != context.high[name] and gain < _FREE:
            yield context.loss_finding(
                "free_bits",
                name,
                gain,
                f"part of its latency that {context.low[name]} saves over {context.high[name]}",
                context.meter.of_layer(name),
                f"keep {context.high[name]} unless its bytes matter",
            )
