"""Which modules of a model are quantized, in which copy of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from haq.modules import prepare
from haq.trace.layers import is_layer, kind_of
from haq.values.errors import InputError
from haq.values.kinds import module_names


def prepared_for(model: nn.Module, layers: Iterable[str] | None) -> nn.Module:
    """`model` with packed modules taken apart as far as these layers lie in them; `None`: all."""
    names = None if layers is None else tuple(layers)

    def keep(name: str, _: nn.Module) -> bool:
        inside = f"{name}." if name else ""
        return names is not None and not any(layer == name or layer.startswith(inside) for layer in names)

    return prepare(model, keep=keep)


def copy_of(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy in evaluation mode with buffers of its own, and with the parameters of `model` if they are on `device`."""
    parameters = list(model.parameters())
    shared = all(parameter.device == device for parameter in parameters)
    memo = {id(parameter): parameter for parameter in parameters} if shared else {}
    return copy.deepcopy(model, memo).to(device).eval()


def check_no_twins(module: nn.Module, names: Iterable[str]) -> None:
    """Formats belong to a module; one that shares another's weight would stay in float unnoticed.

    A table and a matrix of one weight are two layers, tied by the space.
    """
    quantizable = {name: child for name, child in module.named_modules() if is_layer(child)}
    for name in names:
        twins = [
            other
            for other, child in quantizable.items()
            if child is not quantizable[name]
            and child._parameters.get("weight") is quantizable[name].weight
            and (kind_of(child) == kind_of(quantizable[name]) or other not in names)
        ]
        if twins:
            raise InputError(
                f"layer {name!r}: its weight is also that of {', '.join(twins)}; call one module several times "
                "instead, or give each a weight of its own"
            )


def layer_names(module: nn.Module, names: Iterable[str] | None) -> list[str]:
    """Those asked for, else all, in the order of the model.

    Raises:
        InputError: one is no layer; lists what there is.
    """
    found = {name for name, child in module.named_modules() if is_layer(child)}
    order = [name for name, _ in module.named_modules()]
    if names is None:
        return [name for name in order if name in found]
    wanted = list(names)
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise InputError(
            f"not a {module_names()} of the model: {', '.join(unknown)}; it has "
            f"{', '.join(name for name in order if name in found)}"
        )
    return wanted
