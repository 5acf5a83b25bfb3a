"""What can be wrong with an experiment, found before anything is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from haq.edges.plugins import add_plugin
from haq.edges.user_code import guarded, load_reference
from haq.experiment.config import ExperimentConfig
from haq.experiment.loading import check_known
from haq.problem.budgets import allowed_drop
from haq.quant.nested import Loss, call_model, map_tensors
from haq.quant.settings import QuantizationConfig
from haq.search import STRATEGIES, SearchStrategy, check_options
from haq.search.warm_start import warm_sources
from haq.sensitivity import METRICS as SENSITIVITY_METRICS
from haq.sensitivity.outputs import are_logits, are_probabilities
from haq.values.errors import InputError

_DIFFERENTIATING = ("gradient", "hessian")


def check_names(config: ExperimentConfig, *, folder: Path) -> None:
    """Refuse a sensitivity metric or a strategy that there is not.

    Raises:
        InputError: names the key and what is known.
    """
    check_known(SENSITIVITY_METRICS, config.sensitivity.metric, "sensitivity.metric")
    find_strategy(config.search.strategy, folder=folder)


def find_strategy(name: str, *, folder: Path) -> type[SearchStrategy]:
    """The strategy called `name`: one of ours, an installed package's (`haq.strategies`), or the user's `module:Class`.

    Raises:
        InputError: there is none, or it is no `SearchStrategy`.
    """
    key = "search.strategy"
    if ":" in name and name not in STRATEGIES:
        own = load_reference(name, key=key, folder=folder)
        if not (isinstance(own, type) and issubclass(own, SearchStrategy)):
            raise InputError(f"{key} = {name!r}: is no haq.SearchStrategy; derive the class from it")
        STRATEGIES[name] = own
    add_plugin(STRATEGIES, name, group="haq.strategies", wanted=SearchStrategy)
    check_known(STRATEGIES, name, key, more="; or your own module:Class")
    return STRATEGIES[name]


def check_strategy(strategy: type[SearchStrategy], config: ExperimentConfig, *, folder: Path) -> None:
    """Refuse options that the strategy does not have, and a problem that it cannot search.

    Args:
        strategy: what will search.
        config: the experiment.
        folder: where files to warm-start from are looked for.

    Raises:
        InputError: one line with the key, the value and the remedy.
    """
    check_options(strategy, config.search.options)
    strategy.check(config.objective, config.budgets)
    sources, _ = warm_sources(strategy, config.search.options)
    for source in sources:
        if source not in STRATEGIES and not (folder / source).exists():
            raise InputError(
                f"search.options.warm_start = {source!r}: no strategy ({', '.join(STRATEGIES)}), no policy "
                "file or run folder of that name beside the experiment file"
            )


def check_quantization(given: QuantizationConfig, resolved: QuantizationConfig) -> None:
    """Refuse settings that nothing reads, the device's own choices counted.

    Args:
        given: the experiment's section.
        resolved: with the device's choices and the defaults.

    Raises:
        InputError: names the key and what it is for.
    """
    defaults = QuantizationConfig()
    calibrations = (resolved.weight_calibration, resolved.activation_calibration)
    if given.percentile != defaults.percentile and "percentile" not in calibrations:
        raise InputError(
            "quantization.percentile: is for weight_calibration or activation_calibration = 'percentile', which are "
            f"{calibrations[0]!r} and {calibrations[1]!r}; set one of them or leave it out"
        )
    if given.rounding_seed != defaults.rounding_seed and resolved.weight_rounding != "stochastic":
        raise InputError(
            "quantization.rounding_seed: is for weight_rounding = 'stochastic', which is "
            f"{resolved.weight_rounding!r}; set that or leave it out"
        )
    if given.ema_decay != defaults.ema_decay and resolved.activation_calibration != "ema":
        raise InputError(
            "quantization.ema_decay: is for activation_calibration = 'ema', which is "
            f"{resolved.activation_calibration!r}; set that or leave it out"
        )
    if given.group_size != defaults.group_size and resolved.weight_granularity != "group":
        raise InputError(
            "quantization.group_size: is for weight_granularity = 'group', which is "
            f"{resolved.weight_granularity!r}; set that or leave it out"
        )


def check_objective(config: ExperimentConfig) -> None:
    """Refuse an objective that contradicts budgets, ladder or targets.

    Raises:
        InputError: one line with the key, the value and the remedy.
    """
    if config.evaluator.ladder and (config.objective != "sensitivity" or "accuracy_drop" in config.budgets):
        raise InputError("evaluator.ladder: ranks policies by score; needs objective = 'sensitivity', no accuracy_drop")
    if config.data.targets != "labels" and config.sensitivity.metric == "gradient":
        raise InputError(
            "sensitivity.metric = 'gradient': a loss against the float model itself has no gradient; use 'fisher'"
        )
    if allowed_drop(config.budgets) is None:
        return
    if config.objective == "sensitivity":
        raise InputError("budgets.accuracy_drop: needs objective = a cost metric, for example latency_ms")
    if config.search.strategy != "ilp":
        raise InputError(f"budgets.accuracy_drop: needs search.strategy = 'ilp', got {config.search.strategy!r}")


def check_loss(model: nn.Module, batch: tuple[Any, Any], loss: Loss, config: ExperimentConfig) -> None:
    """Run the loss on one batch.

    Args:
        model: the float model.
        batch: inputs and targets.
        loss: what `evaluator.loss` names.
        config: the experiment, for the sensitivity metric and the messages.

    Raises:
        InputError: model or loss fail, or the loss is no finite scalar, or lacks the gradient that is needed.
    """
    label = f"evaluator.loss = {config.evaluator.loss!r}"
    inputs, targets = batch
    with torch.no_grad():
        outputs = guarded(call_model, "the model, run on a batch of the train split,")(model, inputs)
    leaves = map_tensors(lambda z: z.clone().requires_grad_(z.is_floating_point()), outputs)
    value = guarded(loss, label)(leaves, targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{label}: returned {got}; return the mean loss as a scalar tensor")
    if not value.isfinite():
        raise InputError(f"{label}: is {value.item()} on the train split; check the data")
    metric = config.sensitivity.metric
    logits = are_logits(outputs, targets) or are_probabilities(outputs, targets)
    needed = metric in _DIFFERENTIATING or (metric == "fisher" and not logits)
    if needed and not value.requires_grad:
        raise InputError(
            f"{label}: has no gradient, which sensitivity.metric = {metric!r} needs; make the loss differentiable "
            "or use sensitivity.metric = 'kl'"
        )
