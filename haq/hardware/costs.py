"""Where the cost of a policy comes from: per layer, per switch, per join, and the step of peak memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from haq.hardware.cost_model import CostModel, input_reader
from haq.hardware.float_work import FLOAT32, FLOAT_BITS, Coverage, FloatRow
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.network import FLOAT_WRITER, Join, LayerSpec, Network, Step
from haq.values.policy import Policy
from haq.values.trial import METRICS, Cost

PEAK = "peak_activation_bytes"
AVERAGE = "average_weight_bits"


@dataclass(frozen=True)
class LayerRow:
    """One layer: its precision, whether the device is fast in it, and its cost."""

    layer: LayerSpec
    precision: Precision
    accelerated: bool
    cost: Cost


@dataclass(frozen=True)
class SwitchRow:
    """One converted copy of a tensor, for those of its readers that want another format than it was written in."""

    tensor: str
    producer: str | None
    consumers: tuple[str, ...]
    elements: int
    written: Format
    wanted: Format
    cost: Cost


@dataclass(frozen=True)
class JoinRow:
    """An operand of a join that was written in another format than its owner's."""

    join: Join
    other: str | None
    elements: int
    written: Format
    wanted: Format
    cost: Cost


@dataclass(frozen=True)
class PeakRow:
    """The step at which activation memory is largest: `(writer or None for a network input, bytes)` of what is live."""

    step: str
    live: tuple[tuple[str | None, int], ...]

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.live)


@dataclass(frozen=True)
class CostReport:
    """What a policy costs on a device, for one inference of a batch of `batch` samples."""

    device: str
    batch: int
    metrics: tuple[str, ...]
    layers: tuple[LayerRow, ...]
    switches: tuple[SwitchRow, ...]
    joins: tuple[JoinRow, ...]
    peak: PeakRow | None
    average_weight_bits: float
    floats: tuple[FloatRow, ...] = ()

    @property
    def totals(self) -> dict[str, float]:
        """Every metric that the device models, and the average weight bits."""
        rows: Iterable[LayerRow | SwitchRow | JoinRow | FloatRow] = (
            *self.layers,
            *self.switches,
            *self.joins,
            *self.floats,
        )
        totals = sum((row.cost for row in rows), Cost()).to_doc(self.metrics)
        if PEAK in totals:
            totals[PEAK] = float(self.peak.bytes) if self.peak is not None else 0.0
        return {**totals, AVERAGE: self.average_weight_bits}

    @property
    def coverage(self) -> Coverage:
        """What of the model this policy quantizes; layers in fp16, bf16 or fp32 are not."""
        quantized = [row for row in self.layers if not row.precision.weight.is_float]
        held: list[LayerRow | FloatRow] = [*self.layers, *self.floats]
        return Coverage(
            params=sum(row.layer.params for row in self.layers) + sum(row.part.params for row in self.floats),
            quantized_params=sum(row.layer.params for row in quantized),
            bytes=sum(row.cost.size_bytes for row in held),
            quantized_bytes=sum(row.cost.size_bytes for row in quantized),
            macs=sum(row.layer.macs for row in self.layers) + sum(row.part.macs for row in self.floats),
            quantized_macs=sum(row.layer.macs for row in quantized),
        )

    @property
    def lower_bounds(self) -> dict[str, list[str]]:
        """Metrics whose totals are lower bounds -> the modules whose work in float the device cannot price."""
        found: dict[str, list[str]] = {}
        for row in self.floats:
            for metric in sorted(row.missing):
                found.setdefault(metric, []).append(row.part.label)
        return found

    def to_doc(self) -> dict[str, Any]:
        """Plain data, for `haq cost --json` and the report."""
        additive = [metric for metric in self.metrics if metric != PEAK]
        return {
            "device": self.device,
            "batch": self.batch,
            "layers": [_layer_doc(row, additive) for row in self.layers],
            "switches": [_switch_doc(row, additive) for row in self.switches],
            "joins": [_join_doc(row, additive) for row in self.joins],
            "peak": _peak_doc(self.peak) if self.peak is not None else None,
            "float": [row.to_doc(additive) for row in self.floats],
            "coverage": self.coverage.to_doc(),
            "lower_bounds": self.lower_bounds,
            "totals": self.totals,
        }


def _layer_doc(row: LayerRow, metrics: Iterable[str]) -> dict[str, Any]:
    return {
        "name": row.layer.name,
        "kind": row.layer.kind,
        "precision": str(row.precision),
        "accelerated": row.accelerated,
        "macs": row.layer.macs,
        "params": row.layer.params,
        "costs": row.cost.to_doc(metrics),
    }


def _switch_doc(row: SwitchRow, metrics: Iterable[str]) -> dict[str, Any]:
    return {
        "tensor": row.tensor,
        "from": row.producer,
        "to": list(row.consumers),
        "elements": row.elements,
        "written": row.written.name,
        "wanted": row.wanted.name,
        "costs": row.cost.to_doc(metrics),
    }


def _join_doc(row: JoinRow, metrics: Iterable[str]) -> dict[str, Any]:
    return {
        "name": row.join.name,
        "kind": row.join.kind,
        "owner": row.join.owner,
        "other": row.other,
        "elements": row.elements,
        "written": row.written.name,
        "wanted": row.wanted.name,
        "costs": row.cost.to_doc(metrics),
    }


def _peak_doc(row: PeakRow) -> dict[str, Any]:
    live = [{"layer": name, "bytes": size} for name, size in row.live]
    return {"step": row.step, "bytes": row.bytes, "live": live}


def cost_report(network: Network, cost_model: CostModel, policy: Policy) -> CostReport:
    """The cost of `policy`, broken down.

    Raises:
        InputError: the policy is for another model, or the device does not run a layer in its precision.
    """
    try:
        policy.check_layers(network.layer_names)
    except ValueError as error:
        raise InputError(str(error)) from error
    bits = sum(policy[layer.name].weight.bits * layer.params for layer in network.layers)
    return CostReport(
        device=cost_model.name,
        batch=cost_model.batch,
        metrics=tuple(metric for metric in METRICS if metric in cost_model.metrics),
        layers=tuple(_layer_row(layer, cost_model, policy[layer.name]) for layer in network.layers),
        switches=tuple(_switch_rows(network, cost_model, policy)),
        joins=tuple(_join_rows(network, cost_model, policy)),
        peak=_peak_row(network, cost_model, policy),
        average_weight_bits=bits / network.params if network.params else 0.0,
        floats=tuple(FloatRow(part, *cost_model.float_cost(part)) for part in network.float_parts),
    )


def float_totals(network: Network, cost_model: CostModel) -> dict[str, float]:
    """What the model costs unquantized: the device's own figures where it runs every layer in float32; else only what
    is known of any device: bytes and bit operations.
    """
    floats = Policy.uniform(network.layer_names, FLOAT32)
    try:
        return cost_report(network, cost_model, floats).totals
    except InputError:
        bops = sum(layer.macs for layer in network.layers) * cost_model.batch * float(FLOAT_BITS**2)
        known = Cost(size_bytes=float(sum(layer.params for layer in network.layers) * FLOAT_BITS // 8), bops=bops)
        parts = [cost_model.float_cost(part) for part in network.float_parts]
        totals = sum((cost for cost, _ in parts), known).to_doc(["size_bytes", "bops"]) | {AVERAGE: float(FLOAT_BITS)}
        if any("bops" in missing for _, missing in parts):
            del totals["bops"]
        peak = _peak_row(network, cost_model, floats)
        return totals if peak is None else {**totals, PEAK: float(peak.bytes)}


def _layer_row(layer: LayerSpec, cost_model: CostModel, precision: Precision) -> LayerRow:
    cost = cost_model.layer_cost(layer, precision)
    return LayerRow(layer, precision, cost_model.accelerated(layer, precision), cost)


def _written(writer: str | None, cost_model: CostModel, policy: Mapping[str, Precision]) -> Format | None:
    """The format in which a tensor lies in memory; `None`: a network input that comes as its reader wants it."""
    return cost_model.input_format if writer is None else policy[writer].activation


def _switch_rows(network: Network, cost_model: CostModel, policy: Policy) -> Iterable[SwitchRow]:
    for tensor in network.tensors:
        written = _written(tensor.producer, cost_model, policy)
        if written is None:
            continue
        for wanted in sorted({policy[name].activation for name in tensor.consumers} - {written}):
            readers = tuple(dict.fromkeys(name for name in tensor.consumers if policy[name].activation == wanted))
            cost = cost_model.switch_cost(tensor, written, wanted)
            yield SwitchRow(tensor.name, tensor.producer, readers, tensor.elements, written, wanted, cost)


def _join_rows(network: Network, cost_model: CostModel, policy: Policy) -> Iterable[JoinRow]:
    for join in network.joins:
        wanted = _written(join.owner, cost_model, policy)
        for other, elements in join.others:
            written = _written(other, cost_model, policy)
            if wanted is not None and written is not None and wanted != written:
                cost = cost_model.join_cost(elements, wanted, written)
                yield JoinRow(join, other, elements, written, wanted, cost)


def _peak_row(network: Network, cost_model: CostModel, policy: Policy) -> PeakRow | None:
    def size(writer: str | None, elements: int) -> int:
        if writer == FLOAT_WRITER:
            return cost_model.storage_bytes(elements, Format.parse("fp32"))
        fmt = _written(writer, cost_model, policy)
        if fmt is None:
            reader = input_reader(network, elements)
            fmt = policy[reader].activation if reader is not None else Format.parse("fp32")
        return cost_model.storage_bytes(elements, fmt)

    def row(step: Step) -> PeakRow:
        return PeakRow(step.name, tuple((writer, size(writer, elements)) for writer, elements in step.live))

    return max((row(step) for step in network.steps), key=lambda row: row.bytes, default=None)
