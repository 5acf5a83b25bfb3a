"""The kinds of operators that are quantized: one row each, for tracing, quantization, costs and exports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OperatorKind:
    """A kind of layer.

    Attributes:
        name: `LayerSpec.kind`.
        module: the class in `torch.nn`; its subclasses are of this kind, too.
        operator: the ATen operator that it calls.
        spatial: dimensions that a kernel moves over; 0 without one.
        transposed: whether output channels lie along dimension 1 of the weight, by group, and inputs are scattered.
        gathers: whether it looks rows of its weight up, by indices, and multiplies nothing: it reads no activations,
            and its activation format is only that in which its output is written.
    """

    name: str
    module: str
    operator: str
    spatial: int = 0
    transposed: bool = False
    gathers: bool = False

    @property
    def is_linear(self) -> bool:
        """Whether the channels are the last dimension of what is read and written, and not the second."""
        return not self.spatial


def _kinds() -> Iterable[OperatorKind]:
    for dims in (1, 2, 3):
        yield OperatorKind(f"conv{dims}d", f"Conv{dims}d", f"conv{dims}d", dims)
    for dims in (1, 2, 3):
        yield OperatorKind(f"conv_transpose{dims}d", f"ConvTranspose{dims}d", f"conv_transpose{dims}d", dims, True)
    yield OperatorKind("linear", "Linear", "linear")
    yield OperatorKind("embedding", "Embedding", "embedding", gathers=True)


KINDS: dict[str, OperatorKind] = {kind.name: kind for kind in _kinds()}
"""Name -> kind."""
OPERATORS: dict[str, OperatorKind] = {kind.operator: kind for kind in KINDS.values()}
"""ATen operator -> kind."""


def module_names(*, joined: str = " or ") -> str:
    """For people: the classes that are quantized."""
    names = [f"nn.{kind.module}" for kind in KINDS.values()]
    return f"{', '.join(names[:-1])}{joined}{names[-1]}"
