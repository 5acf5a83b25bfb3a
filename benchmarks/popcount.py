"""Popcount kernels against torch float32 and ONNX Runtime int8, one thread, the same shapes.

python benchmarks/popcount.py [--rounds 7] [--only conv256]

Prints milliseconds of processor time (least of the rounds, so that other programs disturb little), the speed-up over
float32, and the share of the attainable limit: the time that loads, xor, count and add of as many words take in a loop
over 20 KiB. Ternary counts twice as many words as binary, int2 x int2 four times, int3 x int2 six times. Times of our
kernels hold packing of the activations.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

from haq.engine.popcount import PackedLayer, Scheme, paths
from haq.engine.popcount.compiled import load

SCHEMES = {
    "binary": (Scheme("binary"), 1),
    "ternary": (Scheme("ternary"), 2),
    "int2 x int2": (Scheme("serial", 2, 2), 4),
    "int3 x int2": (Scheme("serial", 3, 2), 6),
}
SHAPES = {
    **{f"conv{c}": ((1, c, side, side), (c, c, 3, 3)) for c, side in ((64, 28), (128, 28), (256, 14), (512, 7))},
    **{f"linear{n}": ((16, n), (n, n)) for n in (1024, 2048, 4096)},
}


def least_ms(run: Callable[[], object], rounds: int) -> float:
    """Least milliseconds of processor time of a call; a call shorter than 5 ms is repeated within a round."""
    run()
    begin = time.process_time()
    run()
    repeats = max(1, int(0.005 / max(time.process_time() - begin, 1e-5)))
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        for _ in range(repeats):
            run()
        times.append((time.process_time() - begin) / repeats * 1000)
    return min(times)


def words_per_ms(rounds: int) -> float:
    """Words a millisecond that the best path counts where all of it lies in the first cache."""
    a, w = np.ones(512, dtype=np.uint64), np.ones(2048, dtype=np.uint64)
    arguments = ctypes.c_void_p(a.ctypes.data), ctypes.c_void_p(w.ctypes.data), ctypes.c_int64(1000)
    return max(2_048_000 / least_ms(lambda name=name: load(name).haq_probe(*arguments), rounds) for name in paths())


def integer_session(x_shape: tuple[int, ...], w: np.ndarray) -> Callable[[], object]:
    """ONNX Runtime's QLinearConv or QLinearMatMul of this shape on random integers."""
    conv, rng = w.ndim == 4, np.random.default_rng(0)
    weight = rng.integers(-127, 128, w.shape, dtype=np.int8)
    one, zero = np.float32(0.01), np.int8(0)
    constants = {"s": one, "z": zero, "w": weight if conv else np.ascontiguousarray(weight.T)}
    operator = "QLinearConv" if conv else "QLinearMatMul"
    attributes = {"pads": [1, 1, 1, 1]} if conv else {}
    node = helper.make_node(operator, ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"], **attributes)
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    value = [helper.make_tensor_value_info(n, TensorProto.INT8, s) for n, s in (("x", x_shape), ("y", None))]
    graph = helper.make_graph([node], "g", value[:1], value[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": rng.integers(-127, 128, x_shape, dtype=np.int8)}
    return lambda: session.run(None, feed)


def one_shape(name: str, rounds: int, rate: float) -> None:
    """Prints the rows of one shape."""
    x_shape, w_shape = SHAPES[name]
    rng = np.random.default_rng(0)
    x = rng.choice(np.array([-1, 1], dtype=np.int8), x_shape)
    w = rng.choice(np.array([-1, 1], dtype=np.int8), w_shape)
    conv, floats, weights = len(x_shape) == 4, torch.from_numpy(x).float(), torch.from_numpy(w).float()
    reference = (lambda: F.conv2d(floats, weights, padding=1)) if conv else (lambda: F.linear(floats, weights))
    base = least_ms(reference, rounds)
    print(f"{name:11} {'float32':12} {base:9.3f} ms")
    print(
        f"{name:11} {'ORT int8':12} {(ms := least_ms(integer_session(x_shape, w), rounds)):9.3f} ms {base / ms:6.1f} x"
    )
    taps, positions = int(np.prod(w_shape[2:])), x_shape[0] * int(np.prod(x_shape[2:]))
    words = positions * w_shape[0] * taps * -(-w_shape[1] // 64)
    for label, (scheme, factor) in SCHEMES.items():
        values = np.abs(x) if scheme.form == "serial" else x
        for path in paths():
            layer = PackedLayer(w, scheme, path=path)
            ms = least_ms(
                partial(layer.conv, values, padding=(1, 1, 1, 1)) if conv else partial(layer.linear, values), rounds
            )
            share = 100 * words * factor / rate / ms
            print(f"{name:11} {label:12} {ms:9.3f} ms {base / ms:6.1f} x  {share:4.0f} % of the limit  {path}")


def main() -> None:
    """Parses arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=sorted(SHAPES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rate = words_per_ms(arguments.rounds)
    print(f"limit: {rate / 1e6:.2f} billion 64-bit words a second")
    for name in [arguments.only] if arguments.only else SHAPES:
        one_shape(name, arguments.rounds, rate)


if __name__ == "__main__":
    main()
