"""The onnx format: a graph of quantize and dequantize nodes around float operators (QDQ)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from torch import nn

from haq.deployed.state import ModelState, check_codes
from haq.edges.documents import write_bytes
from haq.export.onnx.activations import (
    HALF_A_STEP,
    bias_tolerance,
    fold_pads,
    lower_inputs,
    move_clips,
    quantize_biases,
    split_float_biases,
)
from haq.export.onnx.float8 import lower_float8
from haq.export.onnx.graph import Graph
from haq.export.onnx.outputs import quantize_outputs
from haq.export.onnx.tables import share_initializers, share_tables
from haq.export.onnx.trace import OPSET, trace_marked
from haq.export.onnx.weights import fold_batch_norms, lower_weights, name_float_layers, name_outputs, split_gemms


def onnx_model(
    model: nn.Module,
    state: ModelState,
    inputs: Any,
    *,
    pack: bool = False,
    integer_outputs: bool = False,
    target_cpu: str = "any",
) -> onnx.ModelProto:
    """`model` as quantized by `state`, as ONNX.

    Args:
        model: the float architecture, on the CPU.
        state: the quantization.
        inputs: an example of what the model is called with, two samples or more.
        pack: store weights of 4 bits and fewer in 4-bit tensors instead of 8-bit ones: half the file, but runtimes
            then compute convolutions in float.
        integer_outputs: 8-bit convolutions write 8-bit tensors throughout, also where the quantized model keeps a
            float value (before a sum, and for a float layer): integer kernels run everywhere, and results differ a
            little. Ranges are those over `inputs`.
        target_cpu: `any`, or `vnni`: signed weights also where products could saturate without VNNI.

    Raises:
        InputError: torch cannot export the model, or weights have codes of more than 16 bits.
    """
    check_codes("onnx", state, most=16)
    graph = Graph(trace_marked(model, state, inputs))
    name_float_layers(graph, state)
    fold_pads(graph, state)
    gains = fold_batch_norms(graph, state)
    split_gemms(graph)
    lower_weights(graph, state, gains, pack=pack, exact=target_cpu == "any")
    lower_inputs(graph, state)
    if integer_outputs:
        quantize_outputs(graph, inputs)
    move_clips(graph)
    quantize_biases(graph, tolerance=HALF_A_STEP if integer_outputs else bias_tolerance(state))
    split_float_biases(graph)
    lower_float8(graph, state)
    name_outputs(graph, state)
    share_tables(graph)
    share_initializers(graph)
    result = graph.finish([("", OPSET)])
    result.producer_name = "haq"
    onnx.checker.check_model(result)
    return result


def save_onnx(
    model: nn.Module,
    state: ModelState,
    inputs: Any,
    path: Path,
    *,
    pack: bool = False,
    integer_outputs: bool = False,
    target_cpu: str = "any",
) -> None:
    """Write `onnx_model` to a file.

    Raises:
        InputError: torch cannot export the model, or the file cannot be written.
    """
    made = onnx_model(model, state, inputs, pack=pack, integer_outputs=integer_outputs, target_cpu=target_cpu)
    write_bytes(path, made.SerializeToString())
