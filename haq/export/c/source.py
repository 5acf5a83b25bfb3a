"""The text of `model.c` and `model.h`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from haq.engine.graph import Node
from haq.engine.proof import ACCUMULATORS
from haq.export.c.parts import broadcast, factor, map_walk, safe, strides, weight_rows, window
from haq.export.c.plan import SCRATCH, Plan, pack, storage_bits, terms, weight_bits
from haq.values.errors import InputError

_DIMS = 5
_PER_LINE = 24


class Source:
    """Writes `model.c`: constants first, then one call for each node."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._model = plan, plan.model
        self._index = {node.name: index for index, node in enumerate(self._model.nodes)}
        self._constants: list[str] = []
        self._calls: list[str] = []

    def text(self) -> str:
        """The whole file."""
        for node in self._model.nodes:
            self._calls.append(f"    /* {self._index[node.name]}: {node.op} {safe(node.layer or node.name)} */")
            self._calls += [f"    {line}" for line in _WRITERS[node.op](self, node)]
            self._calls.append(f"    HAQ_AFTER({self._index[node.name]});")
        copies = list(self._outputs())
        define = f"#define HAQ_{self._model.rounding.upper()} /* how rescaling rounds */"
        return "\n".join(
            [
                "/* Made by haq export --format c: the calls of model_run in order, and what they need. */",
                define,
                '#include "model.h"\n\n#include "haq_runtime.h"\n',
                "#ifndef HAQ_AFTER\n#define HAQ_AFTER(node) /* called behind each node, to measure */\n#endif\n",
                *self._kernels(),
                "/* Shifts of negative integers must keep the sign; where they do not, compiling ends here. */",
                "typedef char haq_arithmetic_shift[((-1 >> 1) == -1) ? 1 : -1];\n",
                f"static uint32_t arena[{max(1, -(-self._plan.arena.bytes // 4))}];",
                "#define AT(offset) ((uint8_t *)arena + (offset))\n",
                *self._constants,
                "void model_run(const int8_t *input, int8_t *output) {",
                *self._calls,
                *copies,
                "}\n",
            ]
        )

    def _kernels(self) -> Iterable[str]:
        """One inclusion for each combination of weight, input and output bits."""
        used = {self._bits(node) for node in self._model.nodes if node.op in ACCUMULATORS}
        for weight, read, written in sorted(used):
            yield (f'#define HAQ_W {weight}\n#define HAQ_A {read}\n#define HAQ_O {written}\n#include "haq_layer.h"\n')

    def _bits(self, node: Node) -> tuple[int, int, int]:
        return weight_bits(node), storage_bits(self._model[node.inputs[0]].format), storage_bits(node.format)

    def tensor(self, name: str) -> str:
        """The name of a node's tensor, its definition added once."""
        node, index = self._model[name], self._index[name]
        home = self._model[self._plan.home[name]]
        bits = storage_bits(node.format)
        low = 0 if bits == 16 else home.format.low
        if home.op == "constant":
            place = f"(uint8_t *)(uintptr_t)constant_{self._index[home.name]}"
        else:
            place = f"AT({self._plan.arena.offsets[home.name]})"
        line = f"static const haq_tensor t{index} = {{{place}, {bits}, {low}, {node.format.zero_point}}};"
        if line not in self._constants:
            self._constants.append(line)
        return f"&t{index}"

    def format(self, node: Node) -> str:
        """The name of a node's output format."""
        fmt, index = node.format, self._index[node.name]
        line = f"static const haq_format f{index} = {{{fmt.zero_point}, {fmt.low}, {fmt.high}}};"
        if line not in self._constants:
            self._constants.append(line)
        return f"&f{index}"

    def array(self, kind: str, name: str, values: Iterable[Any]) -> str:
        """A constant array; its name."""
        entries = [str(value) for value in values]
        rows = [", ".join(entries[i : i + _PER_LINE]) for i in range(0, len(entries), _PER_LINE)]
        body = ",\n    ".join(rows)
        self._constants.append(f"static const {kind} {name}[{len(entries)}] = {{\n    {body}}};")
        return name

    def walk(
        self, name: str, size: Sequence[int], strides: Sequence[Sequence[int]], offsets: Sequence[int] = (0, 0, 0)
    ) -> str:
        """A walk over up to five dimensions; its name."""
        if len(size) > _DIMS:
            raise InputError(f"--format c: a tensor has {len(size)} dimensions; the C kernels walk over {_DIMS}")

        def fill(row: Sequence[int], value: int) -> str:
            return "{" + ", ".join(map(str, [value] * (_DIMS - len(row)) + list(row))) + "}"

        rows = ", ".join(fill(row, 0) for row in [*strides, *[[0] * len(size)] * (3 - len(strides))])
        places = ", ".join(map(str, [*offsets, 0, 0, 0][:3]))
        self._constants.append(f"static const haq_walk {name} = {{{fill(size, 1)}, {{{places}}}, {{{rows}}}}};")
        return f"&{name}"

    def _outputs(self) -> Iterable[str]:
        start = 0
        for name in self._model.outputs:
            node = self._model[name]
            yield (
                f"    for (int32_t i = 0; i < {node.elements}; ++i) "
                f"output[{start} + i] = (int8_t)haq_get({self.tensor(name)}, i);"
            )
            start += node.elements

    # Nodes

    def input(self, node: Node) -> list[str]:
        return [f"for (int32_t i = 0; i < {node.elements}; ++i) haq_put({self.tensor(node.name)}, i, input[i]);"]

    def layer(self, node: Node) -> list[str]:
        index, read = self._index[node.name], self._model[node.inputs[0]]
        weight, read_bits, written = self._bits(node)
        low = 0 if weight == 16 else int(node.arrays["weight"].min())
        rows = weight_rows(node)
        packed = b"".join(pack(row - low if weight < 16 else row & 0xFFFF, weight) for row in rows)
        pairs = zip(node.arrays["multiplier"].tolist(), node.arrays["exponent"].tolist(), strict=True)
        names = [
            self.array("uint8_t", f"weight_{index}", packed),
            self.array("int16_t", f"weight_zero_{index}", node.arrays["weight_zero"].tolist()),
            self.array("int32_t", f"bias_{index}", node.arrays["bias"].tolist()),
            self.array("haq_factor", f"factor_{index}", (f"{{{m}, {e}}}" for m, e in pairs)),
        ]
        transposed, shift = int(node.op == "conv_transpose"), node.attributes.get("accumulator_shift", 0)
        numbers = f"{transposed}, {terms(node)}, {len(packed) // len(rows)}, {low}, {shift}"
        self._constants.append(
            f"static const haq_layer layer_{index} = {{{window(node, read)}, {numbers}, {', '.join(names)}}};"
        )
        scratch = self._plan.arena.offsets[SCRATCH + node.name]
        return [
            f"haq_layer_w{weight}_a{read_bits}_o{written}(&layer_{index}, {self.tensor(read.name)}, "
            f"{self.tensor(node.name)}, {self.format(node)}, (int16_t *)(void *)AT({scratch}));"
        ]

    def pool(self, node: Node) -> list[str]:
        index, read = self._index[node.name], self._model[node.inputs[0]]
        how = "HAQ_MAX"
        if node.op == "average_pool":
            how = "HAQ_AVERAGE" if node.attributes["count_include_pad"] else "HAQ_AVERAGE_INSIDE"
        self._constants.append(f"static const haq_window window_{index} = {window(node, read)};")
        by = factor(node, 0) if node.op == "average_pool" else "(haq_factor){0, 0}"
        return [
            f"haq_pool(&window_{index}, {how}, {self.tensor(read.name)}, {self.tensor(node.name)}, {by}, "
            f"{self.format(node)});"
        ]

    def map(self, node: Node) -> list[str]:
        read = self._model[node.inputs[0]]
        walk = self.walk(f"walk_{self._index[node.name]}", *map_walk(node, read))
        how, by, table, parameter = "HAQ_COPY", "(haq_factor){0, 0}", "0", 0
        if node.op == "rescale":
            how, by = "HAQ_RESCALE", factor(node, 0)
        elif node.op in ("sign", "ternary"):
            how, parameter = f"HAQ_{node.op.upper()}", node.attributes.get("threshold", 0)
        elif node.op == "table":
            how, parameter = "HAQ_TABLE", read.format.low
            table = self.array("int16_t", f"table_{self._index[node.name]}", node.arrays["table"].tolist())
        fill = []
        if node.op == "pad":
            fill = [f"haq_fill({self.tensor(node.name)}, {node.elements}, {read.format.zero_point});"]
        call = (
            f"haq_map({walk}, {how}, {self.tensor(read.name)}, {self.tensor(node.name)}, {by}, {self.format(node)}, "
            f"{table}, {parameter});"
        )
        return [*fill, call]

    def concat(self, node: Node) -> list[str]:
        lines, start, axis = [], 0, node.attributes["axis"]
        for number, name in enumerate(node.inputs):
            read = self._model[name]
            outer = strides(node.shape)
            offsets = (start * outer[axis], 0, 0)
            walk = self.walk(
                f"walk_{self._index[node.name]}_{number}", read.shape, (outer, strides(read.shape)), offsets
            )
            lines.append(
                f"haq_map({walk}, HAQ_RESCALE, {self.tensor(name)}, {self.tensor(node.name)}, {factor(node, number)}, "
                f"{self.format(node)}, 0, 0);"
            )
            start += read.shape[axis]
        return lines

    def pair(self, node: Node) -> list[str]:
        index = self._index[node.name]
        operands = [broadcast(self._model[name].shape, node.shape) for name in node.inputs]
        walk = self.walk(f"walk_{index}", node.shape, (strides(node.shape), *operands))
        tensors = ", ".join(self.tensor(name) for name in (*node.inputs, node.name))
        if node.op == "mul":
            return [f"haq_multiply({walk}, {tensors}, {factor(node, 0)}, {self.format(node)});"]
        left, signs = node.attributes["left_shift"], ", ".join(map(str, node.attributes["signs"]))
        parts = ", ".join(factor(node, k).removeprefix("(haq_factor)") for k in range(3))
        first, second, out = parts.replace("}, {", "}|{").split("|")
        self._constants.append(
            f"static const haq_add_parameters add_{index} = {{{left}, {{{signs}}}, {{{first}, {second}}}, {out}}};"
        )
        return [f"haq_add({walk}, {tensors}, &add_{index}, {self.format(node)});"]

    def mean(self, node: Node) -> list[str]:
        index, read = self._index[node.name], self._model[node.inputs[0]]
        axes, inside = node.attributes["axes"], strides(read.shape)
        kept = [0 if axis in axes else stride for axis, stride in enumerate(inside)]
        sizes = [size if axis in axes else 1 for axis, size in enumerate(read.shape)]
        outer = self.walk(f"outer_{index}", node.shape, (strides(node.shape), kept))
        inner = self.walk(f"inner_{index}", sizes, ([0] * len(sizes), inside))
        return [
            f"haq_mean({outer}, {inner}, {self.tensor(read.name)}, {self.tensor(node.name)}, {factor(node, 0)}, "
            f"{self.format(node)});"
        ]

    def constant(self, node: Node) -> list[str]:
        bits, value = storage_bits(node.format), np.asarray(node.arrays["value"], dtype=np.int64)
        shifted = value & 0xFFFF if bits == 16 else value - node.format.low
        self.array("uint8_t", f"constant_{self._index[node.name]}", pack(shifted, bits))
        return []

    def nothing(self, node: Node) -> list[str]:
        return []


_WRITERS: dict[str, Any] = {
    "input": Source.input,
    "constant": Source.constant,
    "reshape": Source.nothing,
    "mean": Source.mean,
    "concat": Source.concat,
    **dict.fromkeys(("add", "mul"), Source.pair),
    **dict.fromkeys(ACCUMULATORS, Source.layer),
    **dict.fromkeys(("max_pool", "average_pool"), Source.pool),
    **dict.fromkeys(("clamp", "rescale", "sign", "ternary", "table", "transpose", "cut", "pad"), Source.map),
}
