"""Qualified names of what a traced graph runs, and what to tell a user about a module that cannot be quantized."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.fx import Node

from haq.trace.layers import is_layer, kind_of
from haq.values.kinds import module_names

_REPEATED_CALL = re.compile(r"@\d+")


class ModelNames:
    """Qualified names: of modules under aliases, of layers that share a weight, of what stays in float.

    Args:
        model: the traced model.
        float_modules: names or glob patterns of modules (with all that they contain) or parameters to leave in float.
    """

    def __init__(self, model: nn.Module, float_modules: Sequence[str]) -> None:
        self._model = model
        self._float = tuple(float_modules)
        self._first: dict[int, str] = {id(module): name for name, module in model.named_modules()}
        self._layer_of_weight: dict[tuple[int, bool], str] = {}
        for name, module in model.named_modules():
            if is_layer(module):
                self._layer_of_weight.setdefault(_weight_key(module), name)

    def scope(self, node: Node) -> str:
        """The first qualified name of the innermost module that runs `node`."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        name = _REPEATED_CALL.sub("", str(stack[-1][0])) if stack else ""
        return self._first[id(self._model.get_submodule(name))]

    def owner(self, parameter: str) -> str:
        """The first qualified name of the module that holds a parameter or buffer."""
        return self._first[id(self._model.get_submodule(parameter.rpartition(".")[0]))]

    def module(self, name: str) -> nn.Module:
        return self._model.get_submodule(name)

    def is_float(self, *names: str) -> bool:
        """Whether one of these modules or parameters, or a module around it, was accepted to stay in float."""
        around = [".".join(parts[:end]) for parts in (n.split(".") for n in names) for end in range(1, len(parts) + 1)]
        return any(fnmatchcase(name, pattern) for name in around for pattern in self._float)

    def layer(self, module_name: str, parameter: str | None) -> str | None:
        """The layer that module `module_name` is when it multiplies with `parameter`, `None` if it is none."""
        module = self._model.get_submodule(module_name)
        if parameter is None or not is_layer(module):
            return None
        own = module._parameters.get("weight")
        return self._layer_of_weight[_weight_key(module)] if own is self._model.get_parameter(parameter) else None

    def shared_weights(self, layers: Iterable[str]) -> tuple[tuple[str, ...], ...]:
        """Groups of these layers that hold one weight, which some look up and others multiply with."""
        groups: dict[int, list[str]] = {}
        for name in layers:
            groups.setdefault(_weight_key(self._model.get_submodule(name))[0], []).append(name)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    def describe(self, module_name: str) -> str:
        kind = type(self._model.get_submodule(module_name)).__name__
        return f"module {module_name!r} ({kind})" if module_name else f"the model itself ({kind})"

    def refusal(self, scope: str, operator: str, parameters: Sequence[str]) -> str:
        """Why `operator` in module `scope` cannot be quantized, and what to do."""
        described, accept = (
            self.describe(scope),
            f"leave it in float with float_modules=[{(scope or parameters[0])!r}]",
        )
        if is_layer(self._model.get_submodule(scope)):
            return (
                f"{described} does not multiply with a plain weight but with one that it computes from "
                f"{', '.join(parameters)}; make it a plain parameter first (parametrize.remove_parametrizations, "
                f"remove_weight_norm, remove_spectral_norm, prune.remove of torch.nn.utils), or {accept}"
            )
        return (
            f"{described} multiplies with its parameter {', '.join(parameters)} in {operator}, which no "
            f"quantized layer reaches; rewrite it so that its forward calls {module_names()} modules, or {accept}"
        )


def _weight_key(layer: nn.Module) -> tuple[int, bool]:
    """Identity of the weight, and whether it is looked up: a table and a matrix of one weight are two layers."""
    kind = kind_of(layer)
    return id(layer._parameters.get("weight")), kind is not None and kind.gathers
