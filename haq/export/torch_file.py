"""The torch format: one safetensors file of integer codes, scales, zero points and all other tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from haq.deployed.state import CodedWeight, IntegerWeight, LayerState, ModelState, prepared_like, restore
from haq.edges.documents import check_file, parse_json, to_json, write_bytes
from haq.edges.user_code import describe
from haq.export.packing import Coding
from haq.quant import Quantizer
from haq.quant.formats.all import coder, number_format
from haq.quant.formats.base import Arrays, InputQuantizer
from haq.quant.formats.half import Identity, float_quantizer
from haq.quant.settings import QuantizationConfig
from haq.quant.weights import WeightLayout
from haq.trace.layers import kind_of
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.policy import Policy

_KEY = "haq"
CODES, SCALE, _ZERO = "weight_codes", "weight_scale", "weight_zero_point"


def save_torch(state: ModelState, path: Path) -> None:
    """Write `state` to `path`, as `state_document` describes it; the metadata entry `haq` is the document.

    Raises:
        InputError: the file cannot be written.
    """
    tensors, document = state_document(state)
    write_bytes(path, save(tensors, metadata={_KEY: to_json(document)}))


def state_document(state: ModelState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state as tensors and plain data.

    Tensors: `<layer>.weight_codes.<i>` (packed, see `haq.export.packing`; int32 `[rows, n]` above 16 bits),
    `<layer>.weight_scale.<i>` and, where they are not all zero, `<layer>.weight_zero_point.<i>` (`[rows, 1]`) for each
    block i of rows that share a scale; `<layer>.weight_<array>.<i>` of formats that store arrays of their own, where
    values of fewer than 8 bits are packed as codes are; and the rest of the state dict under its own names. The
    document: policy, quantization settings, how codes are packed, activation ranges, folded batch norms, and (schema
    version 3) which tensors are those of another name and stored once.
    """
    tensors = {name: _stored(name, tensor, state) for name, tensor in state.tensors.items()}
    packed: dict[str, Any] = {}
    for name, layer in state.layers.items():
        if layer.coded is not None:
            tensors |= _coded_tensors(name, layer.coded)
        if layer.weight is None:
            continue
        coding = Coding.of(layer.weight, layer.precision.weight)
        for index, (codes, scale, zero) in enumerate(layer.weight.blocks):
            tensors[f"{name}.{CODES}.{index}"] = codes.clone() if coding is None else coding.pack(codes)
            tensors[f"{name}.{SCALE}.{index}"] = scale.clone()
            if bool(zero.any()):
                tensors[f"{name}.{_ZERO}.{index}"] = _narrowest(zero).contiguous()
        if coding is not None:
            packed[name] = {**asdict(coding), "shapes": [list(codes.shape) for codes, _, _ in layer.weight.blocks]}
    same = _equal_ones(tensors)
    for name in same:
        del tensors[name]
    document = {
        "schema_version": 3 if same else 2,
        "policy": state.policy.to_doc(),
        "quantization": state.quantization.model_dump(mode="json"),
        "inputs": {name: _quantizer_doc(layer.input) for name, layer in state.layers.items()},
        "folded_batch_norms": list(state.folded),
        "packed": packed,
        "same": same,
    }
    return tensors, document


def load_quantized(model: nn.Module, path: str | Path) -> nn.Module:
    """The quantized model that `haq export --format torch` wrote: a plain module, in evaluation mode.

    Its outputs are bit for bit those of the quantized model that was exported; of a fine-tuned one, as near as sums in
    another order are.

    Args:
        model: the float architecture, on the CPU; its own weights do not matter, and it is left as it is.
        path: the file.

    Raises:
        InputError: no such file, not one of this format, or one of another model.
    """
    check_file(Path(path), limit=None)  # as large as the model
    try:
        with safe_open(str(path), framework="pt") as file:
            document = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a safetensors file: {error}") from error
    if document is None:
        raise InputError(f"{path}: has no quantization in it; write it with haq export --format torch")
    try:
        known = parse_json(document)
    except ValueError as error:
        raise InputError(f"{path}: damaged: {describe(error)}; export it anew") from error
    return restored(model, known, tensors, source=path)


def restored(
    model: nn.Module, document: dict[str, Any], tensors: dict[str, Tensor], *, source: str | Path
) -> nn.Module:
    """A plain module from what `state_document` made; `tensors` is used up.

    Raises:
        InputError: damaged, or of another model than `model`; names `source`.
    """
    state = state_of(model, document, tensors, source=source)
    try:
        return restore(model, state)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(f"{source}: damaged: {describe(error)}; export it anew") from error


def state_of(
    model: nn.Module, document: dict[str, Any], tensors: dict[str, Tensor], *, source: str | Path
) -> ModelState:
    """The state of which `state_document` made `document` and `tensors`, which are used up.

    Raises:
        InputError: damaged, or of another model than `model`; names `source`.
    """
    try:
        tensors |= {name: tensors[twin] for name, twin in document.get("same", {}).items()}
        return _state(prepared_like(model, tensors), document, tensors)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(f"{source}: damaged: {describe(error)}; export it anew") from error


def _equal_ones(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> an earlier one that has the same content: what layers of one weight hold."""
    found: dict[str, str] = {}
    firsts: list[tuple[str, Tensor]] = []
    for name, tensor in tensors.items():
        shaped = name.partition(f".{CODES}")[1] or f".{SCALE}." in name or tensor.dim() > 1
        twin = next((key for key, other in firsts if _equal(tensor, other)), None) if shaped else None
        if twin is not None:
            found[name] = twin
        elif shaped:
            firsts.append((name, tensor))
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def _narrowest(codes: Tensor) -> Tensor:
    low, high = int(codes.min()), int(codes.max())
    limits = ((kind, torch.iinfo(kind)) for kind in (torch.int8, torch.uint8, torch.int16))
    return codes.to(next((kind for kind, held in limits if held.min <= low and high <= held.max), torch.int32))


def _stored(name: str, tensor: Tensor, state: ModelState) -> Tensor:
    layer = state.layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
    names = {"fp16": torch.float16, "bf16": torch.bfloat16}
    return tensor if layer is None else tensor.to(names.get(layer.precision.weight.name, tensor.dtype))


def _state(model: nn.Module, document: dict[str, Any], tensors: dict[str, Tensor]) -> ModelState:
    if document.get("schema_version") not in (1, 2, 3):
        raise InputError(f"schema_version {document.get('schema_version')!r} is unknown; this haq reads 1 to 3")
    quantization = QuantizationConfig.model_validate(document["quantization"])
    layers = {}
    for name, precision in Policy.from_doc(document["policy"]).items():
        packing = document["packed"].get(name) if document["schema_version"] > 1 else None
        stored = _take_weight(model, name, precision, tensors, quantization, packing)
        layers[name] = LayerState.of(precision, stored, _read(model, name, precision, document["inputs"][name]))
    return ModelState(layers, tensors, tuple(document["folded_batch_norms"]), quantization)


def _take_weight(
    model: nn.Module,
    name: str,
    precision: Precision,
    tensors: dict[str, Tensor],
    quantization: QuantizationConfig,
    packing: dict[str, Any] | None,
) -> IntegerWeight | CodedWeight | None:
    """Move what is stored of a layer's quantized weight out of `tensors`."""
    if float_quantizer(precision.weight) is not None:
        return None
    try:
        module = model.get_submodule(name)
        weight = module.get_parameter("weight")
    except AttributeError as error:
        raise InputError(
            f"the export is of another model: {type(model).__name__} has no layer {name}; build the architecture that "
            "was quantized"
        ) from error
    layout = WeightLayout.of(module, weight, quantization, precision.weight)
    if coder(precision.weight) is not None:
        return _take_coded(name, layout, precision.weight, tensors)
    blocks: list[tuple[Tensor, Tensor, Tensor]] = []
    while f"{name}.{CODES}.{len(blocks)}" in tensors:
        codes, scale = (tensors.pop(f"{name}.{kind}.{len(blocks)}") for kind in (CODES, SCALE))
        zero = tensors.pop(f"{name}.{_ZERO}.{len(blocks)}", torch.zeros_like(scale))
        if packing is not None:
            shape = tuple(map(int, packing["shapes"][len(blocks)]))
            codes = Coding(int(packing["bits"]), int(packing["low"]), int(packing["step"])).unpack(codes, shape)
        blocks.append((codes.to(torch.int32), scale, zero.to(torch.int32)))
    count = sum(codes.numel() for codes, _, _ in blocks)
    if count != weight.numel():
        raise InputError(
            f"the export is of another model: layer {name} has {weight.numel()} weights here and {count} in the file"
        )
    return IntegerWeight(layout, tuple(blocks))


def _coded_tensors(name: str, weight: CodedWeight) -> dict[str, Tensor]:
    """The arrays of a coded weight under the names in the file, those of few bits packed."""
    decoder = coder(weight.format)
    assert decoder is not None
    tensors = {}
    for index, arrays in enumerate(weight.blocks):
        for key, values in arrays.items():
            width = decoder.widths.get(key)
            tensors[f"{name}.weight_{key}.{index}"] = values.clone() if width is None else Coding(width, 0).pack(values)
    return tensors


def _take_coded(name: str, layout: WeightLayout, fmt: Format, tensors: dict[str, Tensor]) -> CodedWeight:
    decoder = coder(fmt)
    assert decoder is not None
    blocks: list[Arrays] = []
    columns = layout.columns()
    rows = layout.out_channels if layout.granularity != "tensor" else 1
    for index, length in enumerate(columns):
        lines = rows
        if layout.granularity == "group" and length == layout.group_size:
            lines = rows * (prod(layout.shape) // rows // length)
        arrays = {}
        for key, shape in decoder.shapes(lines, length).items():
            stored, width = tensors.pop(f"{name}.weight_{key}.{index}"), decoder.widths.get(key)
            if width is not None:
                stored = Coding(width, 0).unpack(stored, shape).to(torch.uint8)
            if tuple(stored.shape) != shape:
                raise InputError(
                    f"the export is of another model: {key} of layer {name} is {list(stored.shape)} in the file and "
                    f"{list(shape)} here"
                )
            arrays[key] = stored
        blocks.append(arrays)
    return CodedWeight(layout, fmt, tuple(blocks))


def _quantizer_doc(quantizer: Quantizer) -> dict[str, Any]:
    assert isinstance(quantizer, InputQuantizer)
    return quantizer.to_doc()


def _read(model: nn.Module, layer: str, precision: Precision, doc: dict[str, Any]) -> Quantizer:
    """What quantizes a layer's input; a table reads indices, whatever its activation format."""
    kind = kind_of(model.get_submodule(layer))
    if kind is not None and kind.gathers:
        return Identity()
    return number_format(precision.activation).from_doc(doc, precision.activation)
