"""Run an integer model on batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from haq.engine.graph import IntegerModel, Node, TensorFormat
from haq.engine.kernels import KERNELS
from haq.engine.proof import check_accumulators
from haq.quant.nested import tensors_in
from haq.values.errors import InputError


class IntegerRunner:
    """The engine: integers in, integers out; floats become integers before it and integers floats behind it.

    Args:
        model: whose accumulators must be proved not to overflow.

    Raises:
        InputError: an operator that the engine does not know, or an accumulator that may overflow.
    """

    def __init__(self, model: IntegerModel) -> None:
        unknown = sorted({node.op for node in model.nodes} - set(KERNELS) - {"input"})
        if unknown:
            raise InputError(f"the integer engine has no operator {unknown[0]!r}; it has {', '.join(KERNELS)}")
        check_accumulators(model)
        self.model = model
        self._last = _last_reads(model)

    def __call__(self, inputs: Any) -> Any:
        """Float inputs of one batch -> float outputs: a tensor, or a tuple where there are several."""
        outputs = self.integers(self.quantize(inputs))
        values = tuple(
            dequantize(output, self.model[name].format)
            for name, output in zip(self.model.outputs, outputs, strict=True)
        )
        return values[0] if len(values) == 1 else values

    def quantize(self, inputs: Any) -> dict[str, Tensor]:
        """Float inputs as the integers of the input nodes, by name."""
        nodes = self.model.inputs
        tensors = [inputs[node.name] for node in nodes] if isinstance(inputs, Mapping) else list(tensors_in(inputs))
        if len(tensors) != len(nodes):
            raise InputError(f"the integer model takes {len(nodes)} inputs, got {len(tensors)}")
        return {node.name: quantize(tensor.cpu(), node) for node, tensor in zip(nodes, tensors, strict=True)}

    def integers(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Integers of the inputs, `[n, ...]`, -> integers of the outputs, int32."""
        values = {node.name: inputs[node.name].to(torch.int32) for node in self.model.inputs}
        formats = {node.name: node.format for node in self.model.nodes}
        with torch.no_grad():
            for index, node in enumerate(self.model.nodes):
                if node.op == "input":
                    continue
                operands = [values[name] for name in node.inputs]
                read = [formats[name] for name in node.inputs]
                values[node.name] = self.compute(node, operands, read)
                for name in self._last[index]:
                    del values[name]
        return tuple(values[name] for name in self.model.outputs)

    def compute(self, node: Node, operands: Sequence[Tensor], read: Sequence[TensorFormat]) -> Tensor:
        """The output of one node from its operands, `[n, ...]` int32."""
        return KERNELS[node.op](node, operands, read, self.model.rounding)


def _last_reads(model: IntegerModel) -> list[list[str]]:
    """For each node, the values that nothing reads after it."""
    last = {name: index for index, node in enumerate(model.nodes) for name in node.inputs}
    found: list[list[str]] = [[] for _ in model.nodes]
    for name, index in last.items():
        if name not in model.outputs:
            found[index].append(name)
    return found


def quantize(x: Tensor, node: Node) -> Tensor:
    """A float input as the integers of `node`; integers stay.

    Raises:
        InputError: of another shape than the model was made for.
    """
    if tuple(x.shape[1:]) != node.shape:
        raise InputError(
            f"input {node.name!r}: the integer model is for {list(node.shape)} a sample, got {list(x.shape[1:])}; "
            "export it for this shape"
        )
    if not x.is_floating_point():
        return x.to(torch.int32)
    fmt = node.format
    # As torch quantizes: by the float32 reciprocal.
    reciprocal = float(torch.tensor(fmt.scale, dtype=torch.float32).reciprocal())
    return (x.float() * reciprocal).round_().add_(fmt.zero_point).clamp_(fmt.low, fmt.high).to(torch.int32)


def dequantize(q: Tensor, fmt: TensorFormat) -> Tensor:
    """The floats that integers of `fmt` stand for."""
    return (q - fmt.zero_point).to(torch.float32) * fmt.scale
