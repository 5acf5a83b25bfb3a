"""The search space: which precisions each layer may take, and which layers must agree."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from random import Random
from typing import Protocol

from haq.problem.settings import SpaceConfig
from haq.values.errors import InputError
from haq.values.formats import Format, Precision
from haq.values.kinds import KINDS, module_names
from haq.values.network import LayerSpec, Network
from haq.values.policy import Policy

Groups = tuple[tuple[str, ...], ...]


class Capabilities(Protocol):
    """What the space needs to know of a device; every cost model says it."""

    @property
    def name(self) -> str:
        """The device's name, for messages."""

    @property
    def shared_input(self) -> bool:
        """Whether layers that read one tensor must agree on its format."""

    @property
    def join_inputs(self) -> bool:
        """Whether the layers that wrote the inputs of one join must agree on their format."""

    def supported(self, layer: LayerSpec) -> tuple[Precision, ...]:
        """What the device runs `layer` in."""

    def accelerated(self, layer: LayerSpec, precision: Precision) -> bool:
        """Whether it is fast in that precision."""


_DRAWS = 1000
"""Draws until one meets ties of precisions and of activations that overlap."""


@dataclass(frozen=True)
class SearchSpace:
    """What a policy may say.

    Attributes:
        precisions: layer name -> its choices, sorted, fewest bits first; at least one each.
        ties: groups of layers that take the same precision; the choices within a group are equal.
        activation_ties: groups of layers that take the same activation format.
    """

    precisions: Mapping[str, tuple[Precision, ...]]
    ties: Groups = ()
    activation_ties: Groups = ()

    def formats(self) -> dict[str, tuple[tuple[Format, ...], tuple[Format, ...]]]:
        """Layer name -> the formats that its weights and that its activations may take, sorted."""
        return {
            name: (
                tuple(sorted({choice.weight for choice in choices})),
                tuple(sorted({choice.activation for choice in choices})),
            )
            for name, choices in self.precisions.items()
        }

    def draw(self, random: Random) -> Policy:
        """A policy with every layer's, or tied group's, precision drawn evenly from its choices."""
        for _ in range(_DRAWS):
            activations = {
                layer: activation
                for group in self.activation_ties
                for activation in [random.choice(sorted({p.activation for p in self.precisions[group[0]]}))]
                for layer in group
            }
            drawn: dict[str, Precision] = {}
            for group in (*self.ties, *((name,) for name in self.precisions)):
                fixed = {activations[name] for name in group if name in activations}
                choices = [p for p in self.precisions[group[0]] if not fixed or {p.activation} == fixed]
                if not choices:
                    break  # the activations drawn for the members of a tie disagree
                if group[0] not in drawn:
                    drawn |= dict.fromkeys(group, random.choice(choices))
            if len(drawn) == len(self.precisions):
                return Policy({name: drawn[name] for name in self.precisions})
        raise InputError("space: no policy that the ties allow was drawn; loosen space.ties")

    def check(self, policy: Policy) -> None:
        """Raise unless `policy` lies in this space.

        Raises:
            InputError: layers missing or unknown, a precision that is no choice, or tied layers that disagree.
        """
        try:
            policy.check_layers(self.precisions)
        except ValueError as error:
            raise InputError(str(error)) from error
        for name, choices in self.precisions.items():
            if policy[name] not in choices:
                raise InputError(f"layer {name!r}: {policy[name]} is not in the space; choices: {_shown(choices)}")
        for what, groups in (("precision", self.ties), ("activation format", self.activation_ties)):
            for group in groups:
                taken = {policy[name] if what == "precision" else policy[name].activation for name in group}
                if len(taken) > 1:
                    raise InputError(f"{', '.join(group)} must have the same {what}, got {_shown(sorted(taken))}")


def _shown(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values) or "nothing"


def build_space(network: Network, config: SpaceConfig, cost_model: Capabilities) -> SearchSpace:
    """What the experiment asks for, restricted to what the device runs.

    The product of the formats asked for holds for every layer; `first_last` replaces it for the first and the last
    layer in execution order, a glob pattern in `layers` for those it matches otherwise, and a layer's own name
    takes precedence over both.

    Raises:
        InputError: one line: a format that the device does not run, a layer without choice, unknown names.
    """
    if not network.layers:
        raise InputError(f"the model has no layer to quantize ({module_names()})")
    _check_names(network, config)
    _check_formats(network, config, cost_model)
    ties = _merged((*config.ties, *network.shared_weights), network)
    activation_ties = _merged(_device_ties(network, cost_model), network)
    choices = {layer.name: _choices(layer, network, config, cost_model) for layer in network.layers}
    choices = _agreed(choices, ties, activation_ties)
    free = tuple(group for group in activation_ties if len({p.activation for n in group for p in choices[n]}) > 1)
    return SearchSpace(choices, ties, free)


def _check_names(network: Network, config: SpaceConfig) -> None:
    names = network.layer_names
    for pattern in config.layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(f"space.layers: {pattern!r} matches no layer; {_closest(pattern, names)}")
    for group in config.ties:
        for name in group:
            if name not in names:
                raise InputError(f"space.ties: unknown layer {name!r}; {_closest(name, names)}")
        if len(set(group)) < 2:
            raise InputError(f"space.ties: {list(group)} ties nothing; name two or more layers")


def _closest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"the layers are {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def _check_formats(network: Network, config: SpaceConfig, device: Capabilities) -> None:
    """A format asked for must be of use to at least one layer: what is dropped in silence is missed in the result."""
    supported = {precision for layer in network.layers for precision in device.supported(layer)}
    weights = {precision.weight.name for precision in supported}
    activations = {precision.activation.name for precision in supported}
    for key, asked, known in (
        ("weights", config.weights, weights),
        ("activations", config.activations, activations),
    ):
        for name in asked:
            if name not in known:
                raise InputError(
                    f"space.{key}: {device.name} runs no layer of this model with {name} {key}; "
                    f"it supports {_shown(sorted(supported))}; remove {name} or use another device"
                )
    asked_pairs = [("first_last", name) for name in config.first_last]
    asked_pairs += [(f"layers.{pattern}", name) for pattern, row in config.layers.items() for name in row]
    for key, name in asked_pairs:
        if Precision.parse(name) not in supported:
            raise InputError(
                f"space.{key}: {device.name} runs no layer of this model in {name}; "
                f"it supports {_shown(sorted(supported))}"
            )


def _asked(
    layer: LayerSpec, network: Network, config: SpaceConfig, device: Capabilities
) -> tuple[str, tuple[Precision, ...]]:
    """The key that decides about a layer, and the precisions it asks for."""
    if layer.name in config.layers:
        return f"layers.{layer.name}", tuple(Precision.parse(name) for name in config.layers[layer.name])
    if config.first_last and layer in (network.layers[0], network.layers[-1]):
        return "first_last", tuple(Precision.parse(name) for name in config.first_last)
    patterns = [pattern for pattern in config.layers if fnmatchcase(layer.name, pattern)]
    if patterns:
        return f"layers.{patterns[-1]}", tuple(Precision.parse(name) for name in config.layers[patterns[-1]])
    if not (config.weights and config.activations):
        return "weights x activations", _accelerated(layer, config, device)
    formats = product(config.weights, config.activations)
    return "weights x activations", tuple(Precision(Format.parse(w), Format.parse(a)) for w, a in formats)


def _accelerated(layer: LayerSpec, config: SpaceConfig, device: Capabilities) -> tuple[Precision, ...]:
    """What the device runs fast, else all that it runs, of the formats that are named."""
    supported = device.supported(layer)
    fitting = [
        precision
        for precision in supported
        if (not config.weights or precision.weight.name in config.weights)
        and (not config.activations or precision.activation.name in config.activations)
    ]
    return tuple(precision for precision in fitting if device.accelerated(layer, precision)) or tuple(fitting)


def _choices(layer: LayerSpec, network: Network, config: SpaceConfig, device: Capabilities) -> tuple[Precision, ...]:
    key, asked = _asked(layer, network, config, device)
    supported = device.supported(layer)
    choices = tuple(sorted(set(asked) & set(supported)))
    if not choices:
        raise InputError(
            f"layer {layer.name!r}: no choice is left: space.{key} asks for {_shown(sorted(set(asked)))}, "
            f"{device.name} supports {_shown(supported)} for it; add one of these"
        )
    return _widest(choices) if KINDS[layer.kind].gathers else choices


def _widest(choices: tuple[Precision, ...]) -> tuple[Precision, ...]:
    """Of each weight format, the choice with the most activation bits: nothing measures what a table's output loses."""
    widest = {choice.weight: choice for choice in sorted(choices, key=lambda choice: choice.activation.bits)}
    return tuple(choice for choice in choices if choice in widest.values())


def _device_ties(network: Network, device: Capabilities) -> Iterable[tuple[str, ...]]:
    if device.shared_input:
        yield from network.shared_reads()
    if device.join_inputs:
        yield from network.joined_writes()


def _merged(groups: Iterable[Iterable[str]], network: Network) -> Groups:
    """Groups that share a layer become one; in network order."""
    owner = {name: {name} for name in network.layer_names}
    for group in groups:
        union = set().union(*(owner[name] for name in group))
        for name in union:
            owner[name] = union
    merged = {tuple(name for name in network.layer_names if name in group): None for group in owner.values()}
    return tuple(group for group in merged if len(group) > 1)


def _agreed(
    choices: Mapping[str, tuple[Precision, ...]], ties: Groups, activation_ties: Groups
) -> dict[str, tuple[Precision, ...]]:
    """Keep what every member of a group can take; narrowing one group can narrow another, hence the loop."""
    current = dict(choices)
    while True:
        before = dict(current)
        for group in ties:
            common = set.intersection(*(set(current[name]) for name in group))
            _narrow(current, group, common, "precision (space.ties)")
        for group in activation_ties:
            formats = set.intersection(*({choice.activation for choice in current[name]} for name in group))
            kept = {choice for name in group for choice in current[name] if choice.activation in formats}
            _narrow(current, group, kept, "activation format (the device ties them)")
        if current == before:
            return current


def _narrow(current: dict[str, tuple[Precision, ...]], group: Sequence[str], kept: set[Precision], what: str) -> None:
    for name in group:
        remaining = tuple(choice for choice in current[name] if choice in kept)
        if not remaining:
            choices = "; ".join(f"{name}: {_shown(current[name])}" for name in group)
            raise InputError(f"layers {', '.join(group)} must share their {what} but no choice is common: {choices}")
        current[name] = remaining
