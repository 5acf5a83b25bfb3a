"""What an experiment file names, as objects: the model, the data, the device, the space of formats, the budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from haq.evaluate import LOSSES, METRICS
from haq.evaluate.base import with_class_axis
from haq.evaluate.float_targets import check_labels, float_targets, targets_kind
from haq.execute import cache_folder
from haq.experiment.config import ExperimentConfig
from haq.experiment.loading import load_float_model, load_function, load_splits, splits_hash, tensors_hash
from haq.experiment.policy_files import load_policies, load_policy
from haq.hardware import CostModel, HardwareProfile, build_cost_model, load_profile
from haq.problem.budgets import allowed_drop, nearest_to_8_bit, resolved_bound
from haq.problem.space import SearchSpace, build_space
from haq.quant import QuantizedModel, resolve
from haq.quant.nested import pick_device
from haq.repair.absorb import absorb_bias
from haq.repair.equalize import equalize, find_pairs
from haq.trace import prepared_model, trace
from haq.values.errors import InputError
from haq.values.network import Network
from haq.values.policy import Policy
from haq.zoo import DataSplits


class Pieces:
    """The pieces of one experiment that depend on its file alone, each built when it is first asked for.

    Args:
        config: what the experiment file says.
        folder: of the experiment file; relative paths and user modules are looked for there.
    """

    def __init__(self, config: ExperimentConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder

    def adopt(self, built: Mapping[str, Any]) -> None:
        """Take pieces that are built elsewhere: live objects, or those of another experiment that has the same.

        Args:
            built: name of a piece -> the piece.
        """
        unknown = [name for name in built if not isinstance(getattr(type(self), name, None), cached_property)]
        if unknown:
            raise AttributeError(f"{unknown[0]} is no piece of an experiment")
        vars(self).update(built)

    @cached_property
    def model(self) -> nn.Module:
        """The float model, in evaluation mode, its packed modules taken apart."""
        return prepared_model(load_float_model(self.config.model, folder=self.folder), self.config.model.float_modules)

    @cached_property
    def data(self) -> DataSplits:
        """The train, search and test splits, with the targets that `data.targets` asks for."""
        if self.config.data.targets == "labels":
            check_labels(self.given_data)
            return self.given_data
        config = self.config.evaluator
        kind = targets_kind(self.config.data.targets, loss=config.loss, metric=config.metric)
        return float_targets(
            self.model, self.given_data, batch_size=config.batch_size, kind=kind, class_axis=config.class_axis
        )

    @cached_property
    def given_data(self) -> DataSplits:
        """The splits as they were loaded."""
        return load_splits(self.config.data, folder=self.folder)

    @cached_property
    def network(self) -> Network:
        """The traced model."""
        inputs = self.given_data.train.head(1).inputs
        keywords = dict(inputs) if isinstance(inputs, Mapping) else {}
        arguments = () if keywords else inputs if isinstance(inputs, tuple) else (inputs,)
        kept = self.config.model.float_modules
        return trace(self.model, arguments, example_kwargs=keywords, float_modules=kept)

    @cached_property
    def profile(self) -> HardwareProfile:
        """The device."""
        name = self.config.device.profile
        if not isinstance(name, str):
            raise InputError(
                f"device.profile lists {', '.join(name)}, which only haq search takes; choose one: "
                f"--set device.profile={name[0]}"
            )
        return load_profile(name, base=self.folder)

    @cached_property
    def quantization(self) -> Any:
        """The quantization settings: the experiment's, else the device's, else the defaults."""
        return resolve(self.config.quantization, self.profile.quantization)

    @cached_property
    def cost_model(self) -> CostModel:
        """What prices layers and switches."""
        return build_cost_model(
            self.profile,
            weight_granularity=self.quantization.weight_granularity,
            group_size=self.quantization.group_size,
            weight_scheme=self.quantization.weight_scheme,
        )

    @cached_property
    def space(self) -> SearchSpace:
        """The precisions that each layer may take."""
        return build_space(self.network, self.config.space, self.cost_model)

    @cached_property
    def equalized_model(self) -> nn.Module:
        """The float model as it is quantized: it computes the same as `model` (or nearly, where biases are absorbed),
        with ranges that suit it better."""
        repairs, model = self.quantization.repairs, self.model
        if not {"equalize", "absorb_bias"} & set(repairs):
            return model
        inputs = self.given_data.train.head(2).inputs
        pairs = find_pairs(model, inputs)
        if "equalize" in repairs:
            model = equalize(model, inputs)
        return absorb_bias(model, inputs, pairs) if "absorb_bias" in repairs else model

    @cached_property
    def quantized(self) -> QuantizedModel:
        """The model whose formats switch in place."""
        split = self.given_data.train.head(self.quantization.calibration_samples)
        return QuantizedModel(
            self.equalized_model,
            quantization=self.quantization,
            calibration=list(split.batches(self.config.evaluator.batch_size)),
            layers=self.network.layer_names,
            device=str(self.compute_device),
        )

    @cached_property
    def compute_device(self) -> torch.device:
        """What `evaluator.device` comes to in this process: where the model is calibrated, scored and trained.

        Raises:
            InputError: torch cannot use it here.
        """
        try:
            return pick_device(self.config.evaluator.device)
        except InputError as error:
            raise InputError(f"evaluator.device: {error}") from error

    @cached_property
    def loss(self) -> Callable[[Any, Any], Tensor]:
        """The loss that sensitivities are increases of."""
        config = self.config.evaluator
        function = load_function(LOSSES, config.loss, key="evaluator.loss", folder=self.folder)
        return with_class_axis(function, config.class_axis)

    @cached_property
    def metric(self) -> Callable[[Any, Any], float]:
        """The score, larger is better."""
        config = self.config.evaluator
        function = load_function(METRICS, config.metric, key="evaluator.metric", folder=self.folder)
        return with_class_axis(function, config.class_axis)

    @cached_property
    def training_step(self) -> Callable[..., Any] | None:
        """The user's own training step, if any."""
        qat = self.config.evaluator.qat
        if qat is None or qat.training_step is None:
            return None
        return load_function({}, qat.training_step, key="evaluator.qat.training_step", folder=self.folder)

    def score_floor(self, float_score: float) -> float | None:
        """The least score that `budgets.accuracy_drop` allows, `None` without that budget.

        Raises:
            InputError: it is not a number of points.
        """
        drop = allowed_drop(self.config.budgets)
        return None if drop is None else float_score - drop

    @cached_property
    def reference_policy(self) -> Policy:
        """Uniform 8 bit where the device can, else the nearest it supports: what percentages refer to."""
        return nearest_to_8_bit(self.network, self.cost_model)

    @cached_property
    def budgets(self) -> dict[str, float]:
        """Metric -> bound, percentages resolved; `accuracy_drop` left out (it is measured, not predicted)."""
        return {
            key: resolved_bound(key, value, self.network, self.cost_model, self.reference_policy)
            for key, value in self.config.budgets.items()
            if key != "accuracy_drop"
        }

    def load_policy(self, path: Path) -> Policy:
        """Read a policy file (`policy.json`, just its `policy` part, or another tool's file) for this network.

        Raises:
            InputError: not a policy, or one for another model.
        """
        return load_policy(path, self.network)

    def policies_in(self, source: str) -> list[Policy]:
        """The policy of a policy file, or all that a run measured, the best first; relative to the experiment file.

        Raises:
            InputError: none of these, or for another network.
        """
        return load_policies(self.folder / source, self.network)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Of model weights and data: what a measurement depends on beside the configuration."""
        return {"model": tensors_hash(self.model.state_dict()), "data": splits_hash(self.given_data)}

    @property
    def cache_folder(self) -> Path | None:
        """Where measurements are kept; `None`: nowhere."""
        config = self.config.cache
        if not config.enabled:
            return None
        return cache_folder(None if config.folder is None else self.folder / config.folder)
