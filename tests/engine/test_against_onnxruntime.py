"""Integer convolutions, products, sums and pools against ONNX Runtime's integer operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from haq.engine.dyadic import dyadic
from haq.engine.graph import Node, TensorFormat
from haq.engine.kernels import KERNELS

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, TensorProto = onnx.helper, onnx.TensorProto
_CASES = 40
_BATCH = 25


def _run(op: str, inputs: dict[str, np.ndarray], order: list[str], **attributes: object) -> np.ndarray:
    domain = attributes.pop("domain", "")
    node = helper.make_node(op, order, ["y"], domain=domain, **attributes)
    free = [name for name in order if name in ("x", "a", "b")]
    values = [helper.make_tensor_value_info(name, TensorProto.INT8, None) for name in free]
    graph = helper.make_graph(
        [node],
        "g",
        values,
        [helper.make_tensor_value_info("y", TensorProto.INT8, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in inputs.items() if name not in free],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {name: inputs[name] for name in free})[0]
    return result


def _int8(rng: np.random.Generator, *shape: int) -> np.ndarray:
    # Weights of 7 bits: no runtime's 8-bit kernel saturates.
    return rng.integers(-64, 64, shape).astype(np.int8)


def _format(zero: int) -> TensorFormat:
    return TensorFormat(-128, 127, zero, 1.0)


@pytest.mark.parametrize("exact", [True, False], ids=["powers of two", "any scale"])
@pytest.mark.parametrize("groups", [1, 2, 6], ids=["dense", "grouped", "depthwise"])
def test_convolutions_equal_qlinearconv(groups: int, exact: bool) -> None:
    """1,000 random cases each: bit for bit where the factor is a power of two, else but for ties of float32."""
    rng = np.random.default_rng(groups)
    wrong = total = 0
    for _ in range(_CASES):
        zero, out_zero = (int(z) for z in rng.integers(-100, 100, 2))
        x, w = rng.integers(-128, 128, (_BATCH, 6, 7, 6)).astype(np.int8), _int8(rng, 6, 6 // groups, 3, 3)
        bias = rng.integers(-2000, 2000, 6).astype(np.int32)
        stride, pad = int(rng.integers(1, 3)), int(rng.integers(0, 2))
        scales = 2.0 ** -rng.integers(6, 11, 6) if exact else rng.uniform(0.0005, 0.02, 6)
        scales = scales.astype(np.float32)
        one, none = np.float32(1.0), np.zeros(6, np.int8)
        inputs = {"x": x, "xs": one, "xz": np.int8(zero), "w": w, "ws": scales, "wz": none}
        inputs |= {"ys": one, "yz": np.int8(out_zero), "bias": bias}
        inputs = {name: np.asarray(value) for name, value in inputs.items()}
        order = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "bias"]
        wanted = _run("QLinearConv", inputs, order, group=groups, strides=[stride] * 2, pads=[pad] * 4)
        numbers = [dyadic(float(scale)) for scale in scales]
        arrays = {"weight": w, "weight_zero": none.astype(np.int32), "bias": bias}
        arrays |= {
            "multiplier": np.array([n.multiplier for n in numbers]),
            "exponent": np.array([n.exponent for n in numbers]),
        }
        geometry = {
            "kernel": [3, 3],
            "stride": [stride] * 2,
            "padding": [pad] * 4,
            "dilation": [1, 1],
            "groups": groups,
        }
        node = Node("c", "conv", ("x",), wanted.shape[1:], _format(out_zero), geometry, arrays)
        got = KERNELS["conv"](node, [torch.from_numpy(x).int()], [_format(zero)], "half_even").numpy()
        wrong += int((got != wanted).sum())
        total += got.size
        assert np.abs(got - wanted.astype(int)).max() <= (0 if exact else 1)
    assert wrong <= 1e-4 * total


def test_sums_equal_qlinearadd() -> None:
    """QLinearAdd computes in float32, exactly where scales are powers of two, and rounds to even with the zero point
    added: the same as before it where that is even."""
    rng = np.random.default_rng(0)
    for _ in range(_CASES):
        a, b = rng.integers(-128, 128, (2, _BATCH, 16)).astype(np.int8)
        za, zb, zc = (int(z) for z in 2 * rng.integers(-30, 30, 3))
        sa, sb, sc = 2.0 ** -rng.integers(1, 4, 3)
        inputs = {"a": a, "as": np.float32(sa), "az": np.int8(za), "b": b, "bs": np.float32(sb), "bz": np.int8(zb)}
        inputs |= {"cs": np.float32(sc), "cz": np.int8(zc)}
        inputs = {name: np.asarray(value) for name, value in inputs.items()}
        wanted = _run("QLinearAdd", inputs, list(inputs), domain="com.microsoft")
        twice = 2 * max(sa, sb)
        numbers = [dyadic(sa / twice), dyadic(sb / twice), dyadic(twice / (sc * 2**20))]
        attributes = {"left_shift": 20, "signs": [1, 1], "multipliers": [n.multiplier for n in numbers]}
        attributes |= {"exponents": [n.exponent for n in numbers]}
        node = Node("s", "add", ("a", "b"), (16,), _format(zc), attributes)
        operands = [torch.from_numpy(a).int(), torch.from_numpy(b).int()]
        got = KERNELS["add"](node, operands, [_format(za), _format(zb)], "half_even").numpy()
        assert (got == wanted).all()


def test_products_equal_qlinearmatmul() -> None:
    rng = np.random.default_rng(0)
    for _ in range(_CASES):
        a, w = rng.integers(-128, 128, (_BATCH, 32)).astype(np.int8), _int8(rng, 32, 8)
        zero, out_zero = (int(z) for z in rng.integers(-100, 100, 2))
        scale = np.float32(2.0 ** -int(rng.integers(7, 12)))
        inputs = {"a": a, "as": np.float32(1), "az": np.int8(zero), "w": w, "ws": scale, "wz": np.int8(0)}
        inputs |= {"ys": np.float32(1), "yz": np.int8(out_zero)}
        inputs = {name: np.asarray(value) for name, value in inputs.items()}
        wanted = _run("QLinearMatMul", inputs, list(inputs))
        by = dyadic(float(scale))
        arrays = {"weight": w.T, "weight_zero": np.zeros(8, np.int32), "bias": np.zeros(8, np.int32)}
        arrays |= {"multiplier": np.full(8, by.multiplier), "exponent": np.full(8, by.exponent)}
        node = Node("m", "linear", ("a",), (8,), _format(out_zero), {}, arrays)
        got = KERNELS["linear"](node, [torch.from_numpy(a).int()], [_format(zero)], "half_even").numpy()
        assert (got == wanted).all()
