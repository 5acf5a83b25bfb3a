"""Policies of other tools: what a Model Optimizer configuration or AIMET encodings say about each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from haq.values.formats import Format, Precision
from haq.values.kinds import KINDS
from haq.values.network import Network
from haq.values.policy import Policy

FLOAT = Format.parse("fp32")
_CLASSES = {kind.name: f"nn.{kind.module}" for kind in KINDS.values()}
_DEFAULT_BITS = 8


def foreign_policy(document: Any, network: Network) -> Policy | None:
    """The policy that another tool's file holds, `None` where it is none of theirs.

    Args:
        document: the JSON content: Model Optimizer's `{"quant_cfg": ...}`, or AIMET's encodings with
            `param_encodings` by module (version 0.6.1) or as lists (1.0.0 and later).
        network: the layers; those that the file leaves out stay in float.

    Raises:
        ValueError: a format that is no integer, or a file that cannot be read.
    """
    if not isinstance(document, Mapping):
        return None
    if "quant_cfg" in document:
        return _modelopt(document["quant_cfg"], network)
    if "param_encodings" in document:
        return _aimet(document, network)
    return None


def _modelopt(given: Any, network: Network) -> Policy:
    """Entries apply in order, later ones override; the older form is an object of patterns."""
    if isinstance(given, Mapping):
        given = [_legacy(pattern, value) for pattern, value in given.items()]
    if not isinstance(given, Sequence) or not all(isinstance(entry, Mapping) for entry in given):
        raise ValueError("quant_cfg: expected a list of entries, as Model Optimizer writes it")

    def fmt(layer: str, kind: str) -> Format:
        quantizer, bits, enabled = f"{layer}.{kind}_quantizer", _DEFAULT_BITS, True
        for entry in given:
            wanted = entry.get("parent_class")
            if not fnmatchcase(quantizer, str(entry.get("quantizer_name", ""))):
                continue
            if wanted is not None and wanted != _CLASSES.get(network[layer].kind):
                continue
            cfg = entry.get("cfg")
            if isinstance(cfg, Sequence) and not isinstance(cfg, str):
                raise ValueError(f"{quantizer}: several formats in a row; only one can be read")
            if cfg is not None and not isinstance(cfg, Mapping):
                raise ValueError(f"{quantizer}: cfg: expected an object with num_bits, got {cfg!r:.80}")
            if cfg is not None:
                bits = cfg.get("num_bits", _DEFAULT_BITS)
            enabled = bool(entry.get("enable", (cfg or {}).get("enable", True)))
        if not enabled:
            return FLOAT
        if not isinstance(bits, int) or isinstance(bits, bool):
            raise ValueError(f"{quantizer}: num_bits = {bits!r} is no integer format")
        return Format.integer(bits)

    return Policy({name: Precision(fmt(name, "weight"), fmt(name, "input")) for name in network.layer_names})


def _legacy(pattern: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {"quantizer_name": pattern, "cfg": value}
    if set(value) == {"enable"}:
        return {"quantizer_name": pattern, **value}
    return {"quantizer_name": pattern if pattern != "default" else "*", "cfg": value}


def _aimet(document: Mapping[str, Any], network: Network) -> Policy:
    """A layer reads in the format of its input; without one in that of its producer's output; or in the only one."""
    parameters = _by_name(document["param_encodings"])
    activations = _by_name(document.get("activation_encodings", {}))
    written = {name: tensor.producer for tensor in network.tensors for name in tensor.consumers}
    everything = {fmt for name, entry in activations.items() for fmt in _formats(entry, f"activation_encodings.{name}")}

    def reads(name: str) -> Format:
        for module, side in ((name, "input"), (written.get(name), "output")):
            entry = activations.get(module) if module is not None else None
            if isinstance(entry, Mapping) and side in entry:
                return _formats(entry[side], f"activation_encodings.{module}.{side}")[0]
        if len(everything) > 1:
            raise ValueError(
                f"activation_encodings: nothing for the input of {name}; write them by module, version 0.6.1"
            )
        return next(iter(everything), FLOAT)

    def weight(name: str) -> Format:
        key = f"{name}.weight"
        return _formats(parameters[key], f"param_encodings.{key}")[0] if parameters.get(key) else FLOAT

    return Policy({name: Precision(weight(name), reads(name)) for name in network.layer_names})


def _formats(entry: Any, where: str) -> list[Format]:
    """The formats of an encoding, or of all in a list or by input number."""
    if isinstance(entry, Sequence) and not isinstance(entry, str) and entry:
        return _formats(entry[0], where)
    if isinstance(entry, Mapping) and "dtype" not in entry and entry:
        return [fmt for part in entry.values() for fmt in _formats(part, where)]
    bits = entry.get("bitwidth", entry.get("bw")) if isinstance(entry, Mapping) else None
    kind = str(entry.get("dtype")).lower() if isinstance(entry, Mapping) else ""
    if not isinstance(bits, int) or isinstance(bits, bool) or kind not in ("int", "float"):
        raise ValueError(f"{where}: expected an encoding with bitwidth and dtype, got {entry!r:.80}")
    return [Format.parse(f"fp{bits}") if kind == "float" else Format.integer(bits)]


def _by_name(encodings: Any) -> Mapping[str, Any]:
    """AIMET 1.0.0 and later list encodings that have a name."""
    if isinstance(encodings, Mapping):
        return encodings
    if not isinstance(encodings, Sequence) or not all(isinstance(e, Mapping) and "name" in e for e in encodings):
        raise ValueError("encodings: expected an object, or a list of objects with a name, as AIMET writes them")
    if strange := [e["name"] for e in encodings if not isinstance(e["name"], str)]:
        raise ValueError(f"encodings: a name is text, got {strange[0]!r:.80}")
    return {entry["name"]: entry for entry in encodings}
