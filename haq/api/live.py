"""An experiment over live objects: a model and data that the caller holds, in place of names in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader

from haq.edges.user_code import guarded
from haq.edges.validation import one_line
from haq.experiment.config import ExperimentConfig
from haq.experiment.experiment import Experiment
from haq.quant.nested import joined
from haq.trace import prepared_model
from haq.values.errors import InputError
from haq.zoo import DataSplits, Split

LIVE_MODEL, LIVE_DATA = "haq.api.live:live_model", "haq.api.live:live_data"
"""What a run folder says in place of a factory: the objects lived in the process that searched."""
BUDGETS = {
    "latency": "latency_ms",
    "energy": "energy_mj",
    "size": "size_bytes",
    "memory": "peak_activation_bytes",
    "bops": "bops",
    "weight_bits": "average_weight_bits",
}
"""Keyword -> metric."""
_HELD_OUT, _MOST_HELD_OUT = 0.2, 5000
"""Share of the training samples, and most of them, that are held out where no other data are given."""


def live_model() -> NoReturn:
    """Not a factory.

    Raises:
        InputError: always.
    """
    raise InputError("the model was a live object of the process that searched; call haq.search with it again")


def live_data() -> NoReturn:
    """Not a factory.

    Raises:
        InputError: always.
    """
    raise InputError("the data were live objects of the process that searched; call haq.search with them again")


def live_experiment(
    model: nn.Module,
    *,
    train: Any,
    search: Any = None,
    test: Any = None,
    device: str | Path,
    budgets: Mapping[str, Any] | None = None,
    metric: str | Callable[[Any, Any], float] | None = None,
    loss: str | Callable[[Any, Any], Tensor] | None = None,
    training_step: Callable[..., Any] | None = None,
    name: str = "live",
    settings: Mapping[str, Any] | None = None,
) -> Experiment:
    """The experiment of an experiment file, over objects.

    Args:
        model: any module that `torch.export` captures; left as it is.
        train: data that calibrate (and fine-tune): a `DataLoader`, a map-style `Dataset`, an `(inputs, targets)` pair
            of tensors, tuples or dicts of tensors, or a `haq.Split`.
        search: data that policies are scored on; default: a fifth of `train`, at most 5,000 samples.
        test: data that only the answer and the baselines are scored on; default: half of `search`.
        device: name or path of a hardware profile.
        budgets: metric -> bound, as in an experiment file.
        metric: a name, or `(outputs, targets)` -> score, larger is better; default: accuracy for integer targets, else
            minus the mean squared error.
        loss: a name, or `(outputs, targets)` -> scalar tensor; default: cross entropy or mean squared error, likewise.
        training_step: `(model, inputs, targets)` -> scalar loss, for fine-tuning.
        name: of the run folder.
        settings: further keys of an experiment file, as nested mappings.

    Raises:
        InputError: an object of another kind, or a setting that an experiment file could not have; names it.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: is a {type(model).__name__}; give a torch.nn.Module")
    splits = _splits(train, search, test)
    classes = isinstance(splits.search.targets, Tensor) and not splits.search.targets.is_floating_point()
    metric = metric or ("accuracy" if classes else "negative_mse")
    loss = loss or ("cross_entropy" if classes else "mse")
    document: dict[str, Any] = {
        "name": name,
        "model": {"factory": LIVE_MODEL},
        "data": {"factory": LIVE_DATA},
        "device": {"profile": str(device)},
        "budgets": dict(budgets or {"size_bytes": "100%"}),
        **{key: dict(value) if isinstance(value, Mapping) else value for key, value in (settings or {}).items()},
    }
    evaluator = document.setdefault("evaluator", {})
    evaluator.setdefault("metric", metric if isinstance(metric, str) else _label(metric))
    evaluator.setdefault("loss", loss if isinstance(loss, str) else _label(loss))
    try:
        config = ExperimentConfig.model_validate(document)
    except ValidationError as error:
        raise InputError(one_line(error)) from error
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    experiment = Experiment(config)
    given: dict[str, Any] = {"model": prepared_model(model.eval(), config.model.float_modules), "given_data": splits}
    for key, value in (("metric", metric), ("loss", loss), ("training_step", training_step)):
        if callable(value):
            given[key] = guarded(value, f"{key} = {_label(value)}")
    experiment.adopt(given)
    return experiment


def as_split(value: Any, role: str) -> Split:
    """One split, from any of torch's forms.

    Raises:
        InputError: none of them, or no inputs and targets in it.
    """
    try:
        if isinstance(value, DataLoader):
            batches = [_pair(batch) for batch in value]
            return Split(joined([inputs for inputs, _ in batches]), joined([targets for _, targets in batches]))
        return DataSplits.of((value, value, value)).train
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{role}: {' '.join(str(error).split())}; give a DataLoader, a Dataset, an (inputs, targets) pair or a "
            "haq.Split"
        ) from error


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping) and "labels" in batch:  # as Hugging Face's loaders give it
        return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]
    raise ValueError(f"a batch is an (inputs, targets) pair or a dict with `labels`, got {type(batch).__name__}")


def _splits(train: Any, search: Any, test: Any) -> DataSplits:
    training = as_split(train, "train")
    if search is None:
        training, searching = _parted(training, min(_MOST_HELD_OUT, int(_HELD_OUT * len(training))), "train")
    else:
        searching = as_split(search, "search")
    if test is not None:
        return DataSplits(training, searching, as_split(test, "test"))
    searching, testing = _parted(searching, len(searching) // 2, "search")
    return DataSplits(training, searching, testing)


def _parted(split: Split, count: int, role: str) -> tuple[Split, Split]:
    """`split` without the `count` samples that are held out, drawn with a fixed seed, and these."""
    if not 0 < count < len(split):
        raise InputError(f"{role}: {len(split)} samples are too few to hold some out; give search and test data")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return _rows(split, order[count:]), _rows(split, order[:count])


def _rows(split: Split, rows: Tensor) -> Split:
    from haq.quant.nested import map_tensors

    def chosen(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)]

    return Split(map_tensors(chosen, split.inputs), map_tensors(chosen, split.targets))


def _label(function: Any) -> str:
    return f"{getattr(function, '__module__', 'object')}:{getattr(function, '__qualname__', type(function).__name__)}"
