"""The contract of a cost model: what a search asks of a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.network import FloatPart, LayerSpec, Network, Tensor
from haq.values.trial import METRICS, Cost


class CostModel(Protocol):
    """What a network costs on one device, for one inference of a batch of `batch` samples."""

    @property
    def name(self) -> str:
        """The device's name, for messages."""

    @property
    def batch(self) -> int:
        """Samples per inference; all costs are of the whole batch."""

    @property
    def metrics(self) -> frozenset[str]:
        """The fields of `Cost` that are really modelled; the others stay 0 and mean nothing."""

    @property
    def input_format(self) -> Format | None:
        """The format in which the network's input arrives; `None`: whichever its reader wants, for free."""

    @property
    def shared_input(self) -> bool:
        """Whether layers that read one tensor must agree on its format."""

    @property
    def join_inputs(self) -> bool:
        """Whether the layers that wrote the inputs of one join must agree on their format."""

    def supported(self, layer: LayerSpec) -> tuple[Precision, ...]:
        """What `layer` can run in, sorted."""

    def accelerated(self, layer: LayerSpec, precision: Precision) -> bool:
        """Whether the precision runs on the fast units, or is merely legal."""

    def layer_cost(self, layer: LayerSpec, precision: Precision) -> Cost:
        """Cost of all calls of `layer`, alignment and packing included.

        Raises:
            InputError: the device does not run the layer in this precision, or the cost is unknown.
        """

    def float_cost(self, part: FloatPart) -> tuple[Cost, frozenset[str]]:
        """Cost of what a module holds and computes in float, and the metrics of which the device cannot tell that."""

    def switch_cost(self, tensor: Tensor, written: Format, wanted: Format) -> Cost:
        """Cost of one converted copy of `tensor`; charged once per tensor and distinct `wanted`."""

    def join_cost(self, elements: int, written_by_owner: Format, written_by_other: Format) -> Cost:
        """What a join pays for an operand of `elements` per sample whose format is not its owner's."""

    def storage_bytes(self, elements: int, fmt: Format) -> int:
        """Activation memory of a tensor of `elements` per sample, for the whole batch."""


def require_metrics(cost_model: CostModel, metrics: Iterable[str]) -> None:
    """Raise unless the device models each of `metrics` that is a cost metric.

    Raises:
        InputError: names the metric, the device and what it does model.
    """
    for metric in metrics:
        if metric in METRICS and metric not in cost_model.metrics:
            known = ", ".join(name for name in METRICS if name in cost_model.metrics)
            raise InputError(
                f"{metric}: hardware profile {cost_model.name!r} states no figures to compute it from; "
                f"it models {known}; use one of these or another profile"
            )


def input_reader(network: Network, elements: int) -> str | None:
    """The layer whose activation format a network input of `elements` takes where the device fixes none.

    It is the first reader of the input tensor of that size, or of the first input where none has that size; `None`
    where no layer reads an input.
    """
    inputs = [tensor for tensor in network.tensors if tensor.producer is None and tensor.consumers]
    matching = [tensor for tensor in inputs if tensor.elements == elements]
    return (matching or inputs)[0].consumers[0] if inputs else None
