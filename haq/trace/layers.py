"""What one call of a quantizable module costs, from its shapes."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor, nn

from haq.values.errors import InputError
from haq.values.kinds import KINDS, OperatorKind
from haq.values.network import LayerSpec

_TYPES: dict[type[nn.Module], OperatorKind] = {getattr(nn, kind.module): kind for kind in KINDS.values()}
"""The modules that are quantized, with their subclasses."""


def kind_of(module: nn.Module) -> OperatorKind | None:
    """The kind of layer that `module` is; `None` if it is none."""
    return next((kind for cls, kind in _TYPES.items() if isinstance(module, cls)), None)


def is_layer(module: nn.Module) -> bool:
    """Whether this is a module that is quantized."""
    return kind_of(module) is not None


def channel_axis(module: nn.Module, values: Tensor) -> int:
    """The dimension of the channels in what a layer reads or writes."""
    kind = kind_of(module)
    return values.dim() - 1 if kind is not None and kind.is_linear else 1


def describe_call(
    name: str, module: nn.Module, read: tuple[int, ...], written: tuple[int, ...], *, batch: int | None
) -> LayerSpec:
    """The layer as one call shows it, per sample.

    MACs: elements written (read, for a transposed convolution) times the weights that each of them meets, which are
    `weight.shape[1:]` in torch's layouts.

    Args:
        name: qualified name.
        module: a layer.
        read: shape of the input.
        written: shape of the output.
        batch: samples in both shapes; `None` when they do not depend on the network's inputs.

    Raises:
        InputError: the input has no batch dimension.
    """
    weight = tuple(module.get_parameter("weight").shape)
    kind = kind_of(module)
    assert kind is not None
    if batch is not None and len(read) < kind.spatial + 2:
        raise InputError(
            f"layer {name!r} reads a tensor of shape {read}, which has no batch dimension; "
            "give the example inputs a leading batch dimension"
        )
    bias = module._parameters.get("bias")
    elements_read, elements_written = (math.prod(shape) // (batch or 1) for shape in (read, written))
    return LayerSpec(
        name=name,
        kind=kind.name,
        weight_shape=weight,
        macs=0 if kind.gathers else (elements_read if kind.transposed else elements_written) * math.prod(weight[1:]),
        params=math.prod(weight),
        bias_elements=0 if bias is None else bias.numel(),
        input_shape=_sample_shape(read, batch, rows=kind.is_linear),
        output_shape=_sample_shape(written, batch, rows=kind.is_linear),
        input_elements=0 if kind.gathers else elements_read,
        output_elements=elements_written,
        groups=int(getattr(module, "groups", 1)),
        stride=tuple(getattr(module, "stride", ())),
    )


def add_call(layer: LayerSpec, call: LayerSpec) -> LayerSpec:
    """`layer` with one more call: counts add up, shapes stay those of the first."""
    return replace(
        layer,
        macs=layer.macs + call.macs,
        input_elements=layer.input_elements + call.input_elements,
        output_elements=layer.output_elements + call.output_elements,
        calls=layer.calls + call.calls,
    )


def _sample_shape(shape: tuple[int, ...], batch: int | None, *, rows: bool) -> tuple[int, ...]:
    if batch is None:
        return shape
    if shape[0] == batch:
        return shape[1:]
    if rows:  # the batch may stand anywhere (sequence first, folded windows): count the rows of the linear layer
        return (math.prod(shape[:-1]) // batch, shape[-1])
    return (shape[0] // batch, *shape[1:]) if shape[0] % batch == 0 else shape
