"""What the C needs to know of an integer model: how tensors are stored, where they lie, what weights take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from haq.engine.graph import IntegerModel, Node, TensorFormat
from haq.engine.proof import ACCUMULATORS
from haq.export.c.arena import Arena, Block, lay_out
from haq.values.errors import InputError

OPERATORS = (
    *("input", "conv", "conv_transpose", "linear", "add", "mul", "concat", "max_pool", "average_pool", "mean", "clamp"),
    *("rescale", "sign", "ternary", "table", "reshape", "transpose", "cut", "pad", "constant"),
)
WEIGHT_BITS = (1, 2, 3, 4, 8, 16)
ELEMENT_BITS = (1, 2, 4, 8, 16)
TILE = 4
SCRATCH = "scratch of "


@dataclass(frozen=True)
class Plan:
    """The memory of a model.

    Attributes:
        model: the network.
        arena: where each tensor lies; reshapes share the memory of what they read.
        home: node -> the node whose memory it is in.
    """

    model: IntegerModel
    arena: Arena
    home: Mapping[str, str]

    @property
    def flash_bytes(self) -> int:
        """Of packed weights and the integers that go with them; the code is not counted."""
        return sum(constant_bytes(node) for node in self.model.nodes)


def storage_bits(fmt: TensorFormat, known: tuple[int, ...] = ELEMENT_BITS) -> int:
    """Bits an element takes in memory."""
    bits = fmt.bits if fmt.low >= -(2**15) and fmt.high < 2**15 else 99
    return next((width for width in known if width >= bits), 0)


def weight_bits(node: Node) -> int:
    """Bits that a weight's codes take."""
    weight = node.arrays["weight"]
    return storage_bits(TensorFormat(int(weight.min()), int(weight.max()), 0, 1.0), WEIGHT_BITS)


def tensor_bytes(node: Node) -> int:
    """Bytes of a node's packed output."""
    return -(-node.elements * storage_bits(node.format) // 8)


def terms(node: Node) -> int:
    """Products in one output of a layer, rounded up to a multiple of 4: kernels unpack four weights at a time."""
    weight = node.arrays["weight"]
    return -(-int(weight.size // len(node.arrays["bias"])) // 4) * 4


def constant_bytes(node: Node) -> int:
    """Bytes of what a node keeps in flash."""
    if node.op in ACCUMULATORS:
        outputs = len(node.arrays["bias"])
        return outputs * (-(-terms(node) * weight_bits(node) // 8) + 2 + 4 + 8)
    return sum(2 * array.size for array in node.arrays.values())


def plan(model: IntegerModel) -> Plan:
    """Check that C can hold `model` and lay out its memory.

    Raises:
        InputError: an operator without a C kernel, several inputs, or wide inputs or outputs.
    """
    _check(model)
    home: dict[str, str] = {}
    for node in model.nodes:
        home[node.name] = home[node.inputs[0]] if node.op == "reshape" else node.name
    first = {node.name: step for step, node in enumerate(model.nodes)}
    last = dict(first)
    for step, node in enumerate(model.nodes):
        for name in node.inputs:
            last[home[name]] = step
    for name in model.outputs:
        last[home[name]] = len(model.nodes)
    blocks = [
        Block(node.name, tensor_bytes(node), first[node.name], last[node.name])
        for node in model.nodes
        if home[node.name] == node.name and node.op != "constant"
    ]
    for step, node in enumerate(model.nodes):
        if node.op in ACCUMULATORS:
            blocks.append(Block(SCRATCH + node.name, scratch_bytes(node), step, step))
    return Plan(model, lay_out(blocks), home)


def scratch_bytes(node: Node) -> int:
    """16-bit integers of one row of weights and of the patches of a tile."""
    return 2 * terms(node) * (1 + TILE)


def _check(model: IntegerModel) -> None:
    for node in model.nodes:
        if node.op not in OPERATORS:
            raise InputError(
                f"--format c: no C kernel for {node.op} ({node.name}) yet; --format integer has it, and --format onnx "
                "the float operator that stands in for it"
            )
        if not storage_bits(node.format):
            raise InputError(f"--format c: {node.name} needs more than 16 bits an element; use --format integer")
    if len(model.inputs) != 1 or storage_bits(model.inputs[0].format) > 8:
        raise InputError("--format c: model_run takes one input of 8 bits; use --format integer")
    if any(storage_bits(model[name].format) > 8 for name in model.outputs):
        raise InputError("--format c: outputs are 8 bits; lower the model with output_bits = 8")


def pack(values: np.ndarray, bits: int) -> bytes:
    """Non-negative integers of `bits` bits, the first in the lowest bits; 16: two bytes each, low one first."""
    positions = np.arange(bits, dtype=np.int64)
    flat = (values.astype(np.int64).reshape(-1, 1) >> positions) & 1
    return np.packbits(flat.reshape(-1).astype(np.uint8), bitorder="little").tobytes()
