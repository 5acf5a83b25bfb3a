"""Parts of the generated text: the header, initializers, strides."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from haq.engine.dyadic import Dyadic
from haq.engine.graph import Node
from haq.export.c.plan import Plan, terms
from haq.values.errors import InputError

_LONGEST_NAME = 60


def safe(name: str) -> str:
    """A name for a comment: whatever could end or open one is replaced."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)[:_LONGEST_NAME]


def header(plan: Plan) -> str:
    """`model.h`."""
    model = plan.model
    source, outputs = model.inputs[0], [model[name] for name in model.outputs]
    read, written = source.format, outputs[0].format
    order = ", ".join(map(str, source.shape))
    return f"""/* Made by haq export --format c. */
#ifndef MODEL_H
#define MODEL_H

#include <stdint.h>

/* Inputs: integers {read.low} to {read.high}, zero point {read.zero_point}, in the order [{order}]. */
#define MODEL_INPUTS {source.elements}
/* Outputs: integers {written.low} to {written.high}, zero point {written.zero_point}. */
#define MODEL_OUTPUTS {sum(node.elements for node in outputs)}
#define MODEL_NODES {len(model.nodes)}
/* No layout has fewer than {plan.arena.lower_bound}. */
#define MODEL_ARENA_BYTES {plan.arena.bytes}

/* One inference. Not reentrant: it works in one static arena. */
void model_run(const int8_t *input, int8_t *output);

#endif
"""


def weight_rows(node: Node) -> np.ndarray:
    """The weights of each output, `[out, terms]`, in the order in which patches are gathered."""
    weight, outputs = np.asarray(node.arrays["weight"], dtype=np.int64), len(node.arrays["bias"])
    if node.op == "conv_transpose":
        groups = node.attributes["groups"]
        weight = np.swapaxes(weight.reshape(groups, -1, *weight.shape[1:]), 1, 2)
    rows = weight.reshape(outputs, -1)
    spare = np.full((outputs, terms(node) - rows.shape[1]), weight.min())
    return np.concatenate([rows, spare], 1)


def window(node: Node, read: Node) -> str:
    """The initializer of a `haq_window`."""
    if node.op == "linear":
        inside, outside = node.arrays["weight"].shape[::-1]
        if len(read.shape) != 1:
            raise InputError(f"--format c: layer {node.layer!r} is linear over rows; the C kernels take one row")
        return f"{{{inside}, 1, 1, {outside}, 1, 1, {{1, 1}}, {{1, 1}}, {{1, 1}}, 0, 0, 1}}"
    top, left, _, _ = node.attributes["padding"]
    pairs = [", ".join(map(str, node.attributes[key])) for key in ("kernel", "stride", "dilation")]
    groups = node.attributes.get("groups", 1)
    sizes = ", ".join(map(str, (*read.shape, *node.shape)))
    return f"{{{sizes}, {{{pairs[0]}}}, {{{pairs[1]}}}, {{{pairs[2]}}}, {top}, {left}, {groups}}}"


def factor(node: Node, index: int) -> str:
    """A `haq_factor` as a compound literal."""
    by = Dyadic(node.attributes["multipliers"][index], node.attributes["exponents"][index])
    return f"(haq_factor){{{by.multiplier}, {by.exponent}}}"


def strides(shape: Sequence[int]) -> list[int]:
    """Elements from one index of a dimension to the next."""
    found = [1]
    for size in reversed(shape[1:]):
        found.insert(0, found[0] * size)
    return found[: len(shape)]


def broadcast(shape: Sequence[int], to: Sequence[int]) -> list[int]:
    """Strides of an operand that is stretched to a larger shape."""
    own = [0 if size == 1 else stride for size, stride in zip(shape, strides(shape), strict=True)]
    return [0] * (len(to) - len(shape)) + own


def map_walk(node: Node, read: Node) -> tuple[Sequence[int], tuple[list[int], list[int]], tuple[int, int, int]]:
    """Sizes, strides of output and operand, and offsets, of an operator that reads one operand."""
    outer, inner = strides(node.shape), strides(read.shape)
    if node.op == "transpose":
        return node.shape, (outer, [inner[axis] for axis in node.attributes["axes"]]), (0, 0, 0)
    if node.op == "cut":
        axis, start, step = (node.attributes[key] for key in ("axis", "start", "step"))
        stepped = [stride * step if k == axis else stride for k, stride in enumerate(inner)]
        return node.shape, (outer, stepped), (0, start * inner[axis], 0)
    if node.op == "pad":
        before = sum(pair[0] * stride for pair, stride in zip(node.attributes["padding"], outer, strict=True))
        return read.shape, (outer, inner), (before, 0, 0)
    return node.shape, (outer, inner), (0, 0, 0)
