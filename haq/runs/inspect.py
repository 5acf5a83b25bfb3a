"""`haq inspect`: what of a model can be quantized, and what stays in float, before any data is read."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from haq.hardware import HardwareProfile, build_cost_model, shape_key
from haq.trace import trace
from haq.values.network import FloatPart, LayerSpec, Network


@dataclass(frozen=True)
class Inspection:
    """A traced model on a device.

    Attributes:
        network: layers, what stays in float, tensors, joins.
        formats: layer -> precisions that the device runs it in; empty without a device.
        device: its name, or empty.
        ties: groups of layers that must agree, each with the reason.
    """

    network: Network
    formats: Mapping[str, tuple[str, ...]]
    device: str
    ties: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def left(self) -> tuple[FloatPart, ...]:
        """What stays in float, by module, the most parameters first."""
        return tuple(sorted(self.network.float_parts, key=lambda part: (-part.params, -part.macs, part.name)))

    @property
    def parameters(self) -> int:
        """Elements of parameters and buffers of the model."""
        return self.network.params + sum(part.params for part in self.network.float_parts)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample, those in float included."""
        return self.network.macs + sum(part.macs for part in self.network.float_parts)

    @property
    def coverage(self) -> dict[str, float]:
        """Share of the parameters and of the multiply-accumulates that can be quantized."""
        whole = {"parameters": self.parameters, "macs": self.macs}
        part = {"parameters": self.network.params, "macs": self.network.macs}
        return {key: part[key] / whole[key] if whole[key] else 0.0 for key in whole}

    def to_doc(self) -> dict[str, Any]:
        """Plain data, for `haq inspect --json`."""
        return {
            "device": self.device,
            "parameters": self.parameters,
            "macs": self.macs,
            "coverage": self.coverage,
            "float_bytes": sum(part.bytes for part in self.network.float_parts),
            "layers": [_layer_doc(layer, self.formats.get(layer.name, ())) for layer in self.network.layers],
            "left_in_float": [_part_doc(part) for part in self.left],
            "ties": [{"why": why, "layers": list(group)} for why, group in self.ties],
        }

    def _repr_html_(self) -> str:
        """For a notebook."""
        rows = "".join(
            f"<tr><td>{html.escape(layer.name)}</td><td>{layer.kind}</td><td>{layer.params:,}</td>"
            f"<td>{layer.macs:,}</td><td>{html.escape(' '.join(self.formats.get(layer.name, ())))}</td></tr>"
            for layer in self.network.layers
        )
        head = "<tr><th>layer</th><th>kind</th><th>weights</th><th>MACs</th><th>formats</th></tr>"
        return f"<p>{html.escape(self.summary)}</p><table>{head}{rows}</table>"

    @property
    def summary(self) -> str:
        """The coverage in one line."""
        shares = self.coverage
        left = ", ".join(f"{part.label} {part.params:,}" for part in self.left[:4] if part.params)
        return (
            f"{100 * shares['parameters']:.1f} % of {self.parameters:,} parameters and {100 * shares['macs']:.1f} % of "
            f"{self.macs:,} MACs can be quantized" + (f"; in float: {left}" if left else "")
        )


def inspect_model(
    model: nn.Module,
    example: Any,
    *,
    profile: HardwareProfile | None = None,
    float_modules: tuple[str, ...] = (),
) -> Inspection:
    """Trace a model and say what is covered.

    Args:
        model: any module.
        example: inputs of one or more samples.
        profile: of the device.
        float_modules: as in an experiment file.

    Raises:
        InputError: the model cannot be traced; names the module and the remedy.
    """
    keywords = dict(example) if isinstance(example, Mapping) else {}
    arguments = () if keywords else example if isinstance(example, tuple) else (example,)
    network = trace(model, arguments, example_kwargs=keywords, float_modules=float_modules)
    return inspection(network, profile=profile)


def inspection(network: Network, *, profile: HardwareProfile | None = None) -> Inspection:
    """Of a network that is traced already."""
    formats: dict[str, tuple[str, ...]] = {}
    ties: list[tuple[str, tuple[str, ...]]] = []
    if profile is not None:
        cost_model = build_cost_model(profile)
        formats = {layer.name: tuple(map(str, cost_model.supported(layer))) for layer in network.layers}
        if cost_model.shared_input:
            ties += [("read one tensor", group) for group in network.shared_reads()]
        if cost_model.join_inputs:
            ties += [("write one join", group) for group in network.joined_writes()]
    return Inspection(network, formats, "" if profile is None else profile.name, tuple(ties))


def _layer_doc(layer: LayerSpec, formats: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "weight_shape": list(layer.weight_shape),
        "input_shape": list(layer.input_shape),
        "output_shape": list(layer.output_shape),
        "parameters": layer.params,
        "macs": layer.macs,
        "calls": layer.calls,
        "key": shape_key(layer),
        "formats": list(formats),
    }


def _part_doc(part: FloatPart) -> dict[str, Any]:
    return {
        "module": part.name,
        "kind": part.kind,
        "parameters": part.params,
        "bytes": part.bytes,
        "macs": part.macs,
    }
