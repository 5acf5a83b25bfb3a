"""Loading what an experiment file names: the model, the data, functions of the user's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from haq.edges.documents import check_file
from haq.edges.user_code import call_reference, describe, guarded, load_reference
from haq.experiment.config import DataConfig, ModelConfig
from haq.values.errors import InputError
from haq.zoo import DATASETS, MODELS, DataSplits, load_model

_LONGEST_REASON = 300


def check_known(registry: Mapping[str, Any], name: str, key: str, *, more: str = "") -> None:
    """Refuse a name that `registry` does not have.

    Raises:
        InputError: names the key and what is known.
    """
    if name not in registry:
        raise InputError(f"{key} = {name!r}: unknown; known: {', '.join(sorted(registry))}{more}")


def load_function(
    registry: Mapping[str, Callable[..., Any]], name: str, *, key: str, folder: Path
) -> Callable[..., Any]:
    """The function of that name in `registry`, or the user's own `module:function`, whose failures name the key.

    Raises:
        InputError: no such function.
    """
    if ":" in name:
        return guarded(load_reference(name, key=key, folder=folder), f"{key} = {name!r}")
    check_known(registry, name, key, more=", or your own module:function")
    return registry[name]


def load_float_model(config: ModelConfig, *, folder: Path) -> nn.Module:
    """The float model, in evaluation mode.

    Args:
        config: says which.
        folder: of the experiment file.

    Raises:
        InputError: no such model, or a checkpoint that does not fit it.
    """
    if config.name is not None:
        check_known(MODELS, config.name, "model.name", more=", or your own factory = module:function")
        if config.options:
            raise InputError("model.options: a model of the zoo takes none; use model.factory for a model of yours")
        model = load_model(config.name)
    else:
        assert config.factory is not None
        model = call_reference(config.factory, config.options, key="model.factory", folder=folder)
        if not isinstance(model, nn.Module):
            raise InputError(f"model.factory = {config.factory!r} returned {type(model).__name__}; return an nn.Module")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    if config.checkpoint is not None:
        _load_checkpoint(model, folder / config.checkpoint)
    return model.eval()


def _load_checkpoint(model: nn.Module, path: Path) -> None:
    try:
        check_file(path, limit=None)  # as large as the model
    except InputError as error:
        raise InputError(f"model.checkpoint: {error}") from error
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"model.checkpoint: {path}: does not fit the model: {reason[:_LONGEST_REASON]}; give a safetensors "
            "file of this model's state_dict"
        ) from error


def load_splits(config: DataConfig, *, folder: Path) -> DataSplits:
    """The train, search and test splits, with the targets that they come with.

    Args:
        config: says which.
        folder: of the experiment file.

    Raises:
        InputError: no such data, or they cannot be loaded.
    """
    if config.name is not None:
        check_known(DATASETS, config.name, "data.name", more=", or your own factory = module:function")
        try:
            return DATASETS[config.name](**config.options)
        except TypeError as error:
            raise InputError(f"data.options: {error}") from error
        except (OSError, ValueError) as error:
            raise InputError(f"data.name = {config.name!r}: {error}") from error
    assert config.factory is not None
    value = call_reference(config.factory, config.options, key="data.factory", folder=folder)
    try:
        return DataSplits.of(value)
    except Exception as error:  # a Dataset is the user's code, too
        reason = error if type(error) is ValueError else describe(error)
        raise InputError(f"data.factory = {config.factory!r}: {reason}") from error


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """A stable hash of named tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def splits_hash(splits: DataSplits) -> str:
    """`tensors_hash` of all tensors of all splits."""
    parts = {name: getattr(splits, name).tensors() for name in ("train", "search", "test")}
    return tensors_hash(
        {f"{name}.{index}": tensor for name, part in parts.items() for index, tensor in enumerate(part)}
    )
