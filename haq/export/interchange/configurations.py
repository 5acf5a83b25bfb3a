"""Configurations of other tools, written from a quantized model: Model Optimizer, torchao and AIMET, all JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from haq.deployed.state import IntegerWeight, LayerState, ModelState, check_codes
from haq.edges.documents import write_bytes, write_json
from haq.quant.formats.integer import PerTensorInteger
from haq.values.errors import InputError
from haq.values.formats import Format

Document = dict[str, Any]
_GROUPED = "quantization.weight_granularity = 'group'"


def modelopt_document(model: nn.Module, state: ModelState) -> Document:
    """`quant_cfg` of `modelopt.torch.quantization.quantize`: everything off but what the policy names.

    Formats: integers and fp32. Model Optimizer calibrates anew, with symmetric ranges.
    """
    entries: list[Document] = [{"quantizer_name": "*", "enable": False}]
    for name, layer in state.layers.items():
        for kind, fmt in (("weight", layer.precision.weight), ("input", layer.precision.activation)):
            if fmt.name == "fp32":
                continue
            linear = isinstance(model.get_submodule(name), nn.Linear)
            _integers("modelopt", name, fmt, grouped=linear)
            cfg: Document = {"num_bits": fmt.bits, "axis": None}
            if kind == "weight" and state.quantization.weight_granularity != "tensor":
                cfg["axis"] = 1 if _is_transposed(model, name) else 0
            if kind == "weight" and state.quantization.weight_granularity == "group":
                cfg |= {"axis": None, "block_sizes": {"-1": state.quantization.group_size}}
            if fmt.group_size is not None:
                cfg |= {"axis": None, "block_sizes": {"-1": fmt.group_size}}
            entries.append({"quantizer_name": f"{name}.{kind}_quantizer", "cfg": cfg})
    return {"quant_cfg": entries, "algorithm": "max"}


def torchao_document(model: nn.Module, state: ModelState) -> Document:
    """`FqnToConfig` as `torchao.core.config.config_from_dict` reads it.

    Weights: 1 to 8 bits. Activations: 8 bits, ranges taken as it runs and only in linear layers, or float. torchao
    calibrates weights anew.
    """
    chosen = {name: _torchao_layer(model, name, layer, state) for name, layer in state.layers.items()}
    return _torchao("FqnToConfig", 1, {"fqn_to_config": chosen, "module_fqn_to_config": chosen})


def _torchao_layer(model: nn.Module, name: str, layer: LayerState, state: ModelState) -> Document | None:
    weight, activation = layer.precision.weight, layer.precision.activation
    if weight.name == "fp32" and activation.name == "fp32":
        return None
    if weight.name == "fp32":
        raise InputError(
            f"--format torchao: {name} has float weights and reads {activation}; torchao quantizes weights, or both"
        )
    linear = isinstance(model.get_submodule(name), nn.Linear)
    _integers("torchao", name, weight, most=8, grouped=linear)
    if activation.name != "fp32" and not (linear and activation.name == "int8"):
        raise InputError(
            f"--format torchao: {name} reads {activation}; torchao quantizes activations to int8 in linear layers "
            "only: give this layer fp32 activations, or export to another format"
        )
    config = state.quantization
    granularity = _torchao("PerAxis", 1, {"axis": 0})
    group_size = weight.group_size or (config.group_size if config.weight_granularity == "group" else None)
    if group_size is not None:
        granularity = _torchao("PerGroup", 1, {"group_size": group_size})
    prefix = "weight_" if activation.name == "int8" else ""
    mapping = "SYMMETRIC" if config.weight_scheme == "symmetric" else "ASYMMETRIC"
    data: Document = {
        "weight_dtype": {"_type": "torch.dtype", "_data": f"int{weight.bits}"},
        f"{prefix}granularity": granularity,
        f"{prefix}mapping_type": {"_type": "MappingType", "_data": mapping},
    }
    if activation.name == "int8":
        return _torchao("Int8DynamicActivationIntxWeightConfig", 2, data)
    return _torchao("IntxWeightOnlyConfig", 2, data)


def _torchao(name: str, version: int, data: Document) -> Document:
    return {"_type": name, "_version": version, "_data": data}


def aimet_document(model: nn.Module, state: ModelState) -> Document:
    """Encodings of `aimet_torch.QuantizationSimModel.load_encodings`: by module, with the very ranges of this model."""
    activations, parameters = {}, {}
    for name, layer in state.layers.items():
        weight, activation = layer.precision.weight, layer.precision.activation
        parameters[f"{name}.weight"] = _aimet_weight(name, layer, weight, state)
        entry = {"bitwidth": activation.bits, "dtype": "float"}
        if not activation.is_float:
            _integers("aimet", name, activation)
            if isinstance(layer.input, PerTensorInteger):
                q = layer.input
                symmetric = state.quantization.activation_scheme == "symmetric"
                entry = _encoding(activation, q.scale, q.quant_min - q.zero_point, symmetric=symmetric)
        activations[name] = {"input": {"0": entry}}
    return {"version": "0.6.1", "activation_encodings": activations, "param_encodings": parameters}


def _aimet_weight(name: str, layer: LayerState, fmt: Format, state: ModelState) -> list[Document]:
    if layer.weight is None:
        return [{"bitwidth": fmt.bits, "dtype": "float"}]
    _integers("aimet", name, fmt)
    symmetric = state.quantization.weight_scheme == "symmetric"
    low = -(2 ** (fmt.bits - 1)) if symmetric else 0
    return [
        _encoding(fmt, scale, low - zero, symmetric=symmetric) for scale, zero in _rows("aimet", name, layer.weight)
    ]


def _rows(format: str, name: str, weight: IntegerWeight) -> list[tuple[float, int]]:
    """Scale and zero point of each output channel, or of the whole tensor."""
    if len(weight.blocks) > 1:
        raise InputError(
            f"--format {format}: {name} has several scales for each channel; set {_GROUPED.replace('group', 'channel')}"
        )
    _, scale, zero = weight.blocks[0]
    return list(zip(scale.flatten().tolist(), zero.flatten().tolist(), strict=True))


def _encoding(fmt: Format, scale: float, offset: int, *, symmetric: bool) -> Document:
    """Values are (code + offset) * scale for codes 0 to 2^bits - 1."""
    return {
        "bitwidth": fmt.bits,
        "dtype": "int",
        "is_symmetric": str(symmetric),
        "min": offset * scale,
        "max": (offset + 2**fmt.bits - 1) * scale,
        "offset": offset,
        "scale": scale,
    }


def _integers(format: str, name: str, fmt: Format, *, most: int = 16, grouped: bool = False) -> None:
    """Refuse what is no integer of at most `most` bits; a scale per group of inputs only where `grouped`."""
    if fmt.group_size is not None and not grouped:
        raise InputError(
            f"--format {format}: layer {name} has {fmt}, a scale per group, which it cannot say of this layer; use "
            f"--format torch or onnx, or give it int{fmt.bits}"
        )
    if not (fmt.is_integer or fmt.group_size) or fmt.bits > most:
        raise InputError(
            f"--format {format}: layer {name} has {fmt}, which it cannot say; it knows fp32 and int1 to int{most}"
        )


def _is_transposed(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)


def save_document(name: str, model: nn.Module, state: ModelState, path: Path) -> None:
    """Write the document called `name` to `path`, and trained weights, which it cannot hold, beside it.

    Raises:
        InputError: a format that the tool cannot say, a path that is that of the weights (`.safetensors`), or one that
            cannot be written.
    """
    beside = path.with_suffix(".safetensors")
    if state.trained and beside == path:
        raise InputError(f"--out {path}: is where the trained weights go; end the name of the configuration in .json")
    check_codes(name, state)
    document = DOCUMENTS[name](model, state)
    if state.trained:
        values = {f"{key}.weight": layer.weight.dequantize() for key, layer in state.layers.items() if layer.weight}
        write_bytes(beside, save({**state.tensors, **{key: value.contiguous() for key, value in values.items()}}))
    write_json(path, document)


DOCUMENTS: Mapping[str, Callable[[nn.Module, ModelState], Document]] = {
    "modelopt": modelopt_document,
    "torchao": torchao_document,
    "aimet": aimet_document,
}
"""Name of the format -> what writes it."""
