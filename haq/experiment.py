"""From an experiment file to the pieces of its search: the one place that knows every part.

Each piece is built when it is first asked for, so that `haq cost` loads no data it does not need.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from haq.config import Bound, ExperimentConfig, QATConfig, load_experiment, one_line, read_json
from haq.costs import cost_report
from haq.errors import InputError
from haq.evaluate import (
    LOSSES,
    METRICS,
    FineTuner,
    MixedModel,
    PTQEvaluator,
    QATEvaluator,
    Scoring,
    SplitEvaluator,
    check_not_folded,
)
from haq.evaluate.context import code_version, numerics, source_digest
from haq.evaluate.float_targets import check_labels, float_targets
from haq.execute import cache_folder
from haq.export.foreign import foreign_policy
from haq.hardware import CostModel, HardwareProfile, build_cost_model, load_profile, require_metrics
from haq.imports import call_reference, describe, guarded, load_reference
from haq.problem import Problem
from haq.quant import QuantizedModel, resolve
from haq.quant.tree import call_model, map_tensors, pick_device
from haq.search import STRATEGIES, AccuracyDropSearch, SearchStrategy, check_options
from haq.search.journal import stored_trials
from haq.search.warm_start import warm_sources
from haq.sensitivity import METRICS as SENSITIVITY_METRICS
from haq.sensitivity import SensitivityTable, sensitivity_table
from haq.sensitivity.interactions import InteractionTable, affordable_pairs, interaction_table
from haq.sensitivity.outputs import are_logits, are_probabilities
from haq.space import SearchSpace, build_space
from haq.tables import problem_document
from haq.trace import trace
from haq.types import Network, Policy, Precision
from haq.zoo import DATASETS, MODELS, DataSplits, load_model

Progress = Callable[[int, int], None]
_LONGEST_REASON = 300
_OF_ANY_DEVICE = ("model", "given_data", "data", "network", "loss", "metric", "hashes")
_OF_ONE_DEVICE = ("profile", "quantization", "cost_model", "space", "quantized", "reference_policy")
_DIFFERENTIATING = ("gradient", "hessian")


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """A stable hash of named tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _known(registry: Mapping[str, Any], name: str, key: str, *, more: str = "") -> None:
    if name not in registry:
        raise InputError(f"{key} = {name!r}: unknown; known: {', '.join(sorted(registry))}{more}")


class Experiment:
    """The pieces of one experiment, built lazily.

    Args:
        config: what the experiment file says.
        folder: of the experiment file; relative paths and user modules are looked for there.
    """

    def __init__(self, config: ExperimentConfig, *, folder: Path | None = None) -> None:
        self.config = config
        self.folder = folder or Path.cwd()
        self._tables: list[SensitivityTable] = []
        self._evaluators: dict[tuple[str, str], SplitEvaluator] = {}
        if config.threads is not None:
            torch.set_num_threads(min(config.threads, os.cpu_count() or 1))

    @classmethod
    def load(cls, path: str | Path, *, overrides: tuple[str, ...] | list[str] = ()) -> Experiment:
        """Read an experiment file; see `load_experiment` for its errors."""
        return cls(load_experiment(path, overrides=overrides), folder=Path(path).parent)

    @classmethod
    def stored(cls, path: Path) -> Experiment:
        """The experiment that made a run's `policy.json`. Relative paths and user modules are looked for in the
        working directory.

        Raises:
            InputError: no such file, or a policy that does not say where it is from.
        """
        document = read_json(path)
        try:
            config = ExperimentConfig.model_validate_json(json.dumps(document["provenance"]["config"]))
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: does not say which experiment it is from; add --experiment") from error
        except ValidationError as error:
            raise InputError(f"{path}: provenance.config.{one_line(error)}; give another --experiment") from error
        return cls(config)

    def at(self, config: ExperimentConfig) -> Experiment:
        """The same experiment for another device, other budgets or other sensitivities; shares what does not depend on
        them and is built."""
        other = Experiment(config, folder=self.folder)
        same_device = (config.device, config.evaluator.device) == (self.config.device, self.config.evaluator.device)
        shared = (*_OF_ANY_DEVICE, *_OF_ONE_DEVICE) if same_device else _OF_ANY_DEVICE
        if same_device:
            other._evaluators = self._evaluators
        if same_device and config.sensitivity == self.config.sensitivity:
            other._tables = self._tables
        other.__dict__.update({name: self.__dict__[name] for name in shared if name in self.__dict__})
        return other

    @cached_property
    def model(self) -> nn.Module:
        """The float model, in evaluation mode."""
        config = self.config.model
        if config.name is not None:
            _known(MODELS, config.name, "model.name", more=", or your own factory = module:function")
            if config.options:
                raise InputError("model.options: a model of the zoo takes none; use model.factory for a model of yours")
            model = load_model(config.name)
        else:
            assert config.factory is not None
            model = call_reference(config.factory, config.options, key="model.factory", folder=self.folder)
            if not isinstance(model, nn.Module):
                raise InputError(
                    f"model.factory = {config.factory!r} returned {type(model).__name__}; return an nn.Module"
                )
        if config.checkpoint is not None:
            self._load_checkpoint(model, self.folder / config.checkpoint)
        return model.eval()

    @staticmethod
    def _load_checkpoint(model: nn.Module, path: Path) -> None:
        try:
            model.load_state_dict(load_file(path))
        except FileNotFoundError as error:
            raise InputError(f"model.checkpoint: {path}: no such file") from error
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"model.checkpoint: {path}: does not fit the model: {reason[:_LONGEST_REASON]}; give a safetensors "
                "file of this model's state_dict"
            ) from error

    @cached_property
    def data(self) -> DataSplits:
        """The train, search and test splits, with the targets that `data.targets` asks for."""
        if self.config.data.targets == "labels":
            check_labels(self.given_data)
            return self.given_data
        return float_targets(self.model, self.given_data, batch_size=self.config.evaluator.batch_size)

    @cached_property
    def given_data(self) -> DataSplits:
        """The splits as they were loaded."""
        config = self.config.data
        if config.name is not None:
            _known(DATASETS, config.name, "data.name", more=", or your own factory = module:function")
            try:
                return DATASETS[config.name](**config.options)
            except TypeError as error:
                raise InputError(f"data.options: {error}") from error
            except (OSError, ValueError) as error:
                raise InputError(f"data.name = {config.name!r}: {error}") from error
        assert config.factory is not None
        value = call_reference(config.factory, config.options, key="data.factory", folder=self.folder)
        try:
            return DataSplits.of(value)
        except Exception as error:  # a Dataset is the user's code, too
            reason = error if type(error) is ValueError else describe(error)
            raise InputError(f"data.factory = {config.factory!r}: {reason}") from error

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
    def quantized(self) -> QuantizedModel:
        """The model whose formats switch in place."""
        split = self.given_data.train.head(self.quantization.calibration_samples)
        return QuantizedModel(
            self.model,
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

    def _named(self, registry: Mapping[str, Callable[..., Any]], name: str, key: str) -> Callable[..., Any]:
        if ":" in name:
            return guarded(load_reference(name, key=key, folder=self.folder), f"{key} = {name!r}")
        _known(registry, name, key, more=", or your own module:function")
        return registry[name]

    @cached_property
    def loss(self) -> Callable[[Any, Any], Tensor]:
        """The loss that sensitivities are increases of."""
        return self._named(LOSSES, self.config.evaluator.loss, "evaluator.loss")

    @cached_property
    def metric(self) -> Callable[[Any, Any], float]:
        """The score, larger is better."""
        return self._named(METRICS, self.config.evaluator.metric, "evaluator.metric")

    @cached_property
    def training_step(self) -> Callable[..., Any] | None:
        """The user's own training step, if any."""
        qat = self.config.evaluator.qat
        if qat is None or qat.training_step is None:
            return None
        return self._named({}, qat.training_step, "evaluator.qat.training_step")

    @cached_property
    def fine_tuner(self) -> FineTuner:
        """Trains policies on the train split; made once, for all evaluators."""
        return FineTuner(
            self.model,
            self.quantized,
            self.data.train,
            settings=self.config.evaluator.qat or QATConfig(),
            loss=self.loss,
            training_step=self.training_step,
            space=self.space,
            seed=self.config.seed,
        )

    def evaluator(self, split: str, *, rung: str | None = None) -> SplitEvaluator:
        """Scores policies on `split`: `search`, or `test` for the answer at the very end.

        Args:
            split: of the data.
            rung: `ptq`, `bn`, `shared`, `qat` or `qat:STEPS`; default: the first one for the search split, where
                policies are many, and the last for the test split.
        """
        rungs = self.config.evaluator.rungs
        rung = rung or rungs[-1 if split == "test" else 0]
        if (split, rung) not in self._evaluators:
            self._evaluators[split, rung] = self._evaluator(split, rung)
        return self._evaluators[split, rung]

    def _evaluator(self, split: str, rung: str) -> SplitEvaluator:
        data, scoring = getattr(self.data, split), self._scoring(split)
        kind, _, steps = rung.partition(":")
        if kind in ("ptq", "bn"):
            return PTQEvaluator(self.quantized, data, kind="bn" if kind == "bn" else "ptq", scoring=scoring)
        return QATEvaluator(
            self.fine_tuner,
            self.quantized,
            data,
            kind="shared" if kind == "shared" else "qat",
            steps=int(steps) if steps else None,
            scoring=scoring,
        )

    def _scoring(self, split: str) -> Scoring:
        config = self.config.evaluator
        return Scoring(
            metric=self.metric,
            loss=self.loss,
            batch_size=config.batch_size,
            samples=config.samples if split == "search" else None,
            standard_error=split == "test",
            amp=config.amp,
        )

    def sensitivity(self, *, file: Path | None = None, progress: Progress | None = None) -> SensitivityTable:
        """The sensitivity table: from `sensitivity.file` or `file` where it is there and fits, else measured and saved.

        Raises:
            InputError: unknown metric, or a file made for another setup.
        """
        config = self.config.sensitivity
        path = self.folder / config.file if config.file is not None else file
        if self._tables and path is not None and not path.exists():
            self._tables[0].save(path)
        measure = guarded(sensitivity_table, f"sensitivity.metric = {config.metric!r}")
        table: SensitivityTable = measure(
            self.quantized,
            self.space.formats(),
            self.data.train.head(config.samples),
            metric=config.metric,
            loss=self.loss,
            batch_size=config.batch_size,
            seed=self.config.seed,
            file=path,
            progress=progress,
        )
        self._tables[:] = [table]
        return table

    def interactions(self, *, file: Path | None = None, progress: Progress | None = None) -> InteractionTable | None:
        """What pairs of layers lose together, from `file` where it is there and fits; `None` where not asked for.

        Raises:
            InputError: too few passes for a pair, or a file made for another setup.
        """
        config = self.config.sensitivity
        if not config.interactions:
            return None
        return interaction_table(
            self.quantized,
            self.space.precisions,
            self.data.train.head(config.samples),
            loss=self.loss,
            passes=config.interactions,
            batch_size=config.batch_size,
            file=file,
            progress=progress,
        )

    def check(self) -> None:
        """Build what is cheap and can be wrong, so that a bad experiment fails before anything is measured.

        Raises:
            InputError: the names, model, data, device, space, budgets, objective, loss or metric cannot be used.
        """
        self._check_names()
        _ = (self.space, self.budgets, self.metric, self.compute_device)
        if self.config.sensitivity.interactions:
            affordable_pairs(self.space.precisions, self.config.sensitivity.interactions)
        require_metrics(self.cost_model, (self.config.objective, *self.budgets))
        self._check_loss()
        if self.config.evaluator.trains:
            _ = self.fine_tuner

    def _check_names(self) -> None:
        config = self.config
        _known(SENSITIVITY_METRICS, config.sensitivity.metric, "sensitivity.metric")
        _known(STRATEGIES, config.search.strategy, "search.strategy")
        check_options(self.strategy, config.search.options)
        self.strategy.check(config.objective, config.budgets)
        if self.strategy.needs_model:
            check_not_folded(self.quantization)
        self._check_warm_start()
        if config.evaluator.ladder and (config.objective != "sensitivity" or "accuracy_drop" in config.budgets):
            raise InputError(
                "evaluator.ladder: ranks policies by score; needs objective = 'sensitivity', no accuracy_drop"
            )
        if config.data.targets == "float_model" and config.sensitivity.metric == "gradient":
            raise InputError(
                "sensitivity.metric = 'gradient': a loss against the float model itself has no gradient; take 'fisher'"
            )
        if "accuracy_drop" not in config.budgets:
            return
        self.score_floor(0.0)
        if config.objective == "sensitivity":
            raise InputError("budgets.accuracy_drop: needs objective = a cost metric, for example latency_ms")
        if config.search.strategy != "ilp":
            raise InputError(f"budgets.accuracy_drop: needs search.strategy = 'ilp', got {config.search.strategy!r}")

    def _check_warm_start(self) -> None:
        sources, _ = warm_sources(self.strategy, self.config.search.options)
        for source in sources:
            if source not in STRATEGIES and not (self.folder / source).exists():
                raise InputError(
                    f"search.options.warm_start = {source!r}: no strategy ({', '.join(STRATEGIES)}), no policy "
                    "file or run folder of that name beside the experiment file"
                )

    def policies_in(self, source: str) -> list[Policy]:
        """The policy of a policy file, or all that a run measured, the best first; relative to the experiment file.

        Raises:
            InputError: none of these, or for another network.
        """
        path = self.folder / source
        if path.is_file():
            return [self.load_policy(path)]
        trials = [trial for trial in stored_trials(path / "trials.jsonl") if trial.measurement.ok]
        trials.sort(key=lambda trial: -trial.measurement.score)
        for trial in trials:
            try:
                trial.policy.check_layers(self.network.layer_names)
            except ValueError as error:
                raise InputError(f"{path}: {error}") from error
        return [trial.policy for trial in trials]

    def _check_loss(self) -> None:
        """Run the loss on one batch of the train split."""
        label, size = f"evaluator.loss = {self.config.evaluator.loss!r}", self.config.sensitivity.batch_size
        inputs, targets = next(self.data.train.head(size).batches(size))
        with torch.no_grad():
            outputs = guarded(call_model, "the model, run on a batch of the train split,")(self.model, inputs)
        leaves = map_tensors(lambda z: z.clone().requires_grad_(z.is_floating_point()), outputs)
        value = guarded(self.loss, label)(leaves, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"{label}: returned {got}; return the mean loss as a scalar tensor")
        if not value.isfinite():
            raise InputError(f"{label}: is {value.item()} on the train split; check the data")
        metric = self.config.sensitivity.metric
        logits = are_logits(outputs, targets) or are_probabilities(outputs, targets)
        needed = metric in _DIFFERENTIATING or (metric == "fisher" and not logits)
        if needed and not value.requires_grad:
            raise InputError(
                f"{label}: has no gradient, which sensitivity.metric = {metric!r} needs; make the loss differentiable "
                "or take sensitivity.metric = 'kl'"
            )

    def mixed_model(self, problem: Problem) -> MixedModel:
        """The model as the differentiable search trains it, on the train split.

        Raises:
            InputError: batch norm is folded.
        """
        return MixedModel(
            self.model,
            self.quantized,
            choices={layer: problem.choices(layer) for layer in problem.layers},
            split=self.data.train,
            loss=self.loss,
            batch_size=self.config.sensitivity.batch_size,
        )

    @property
    def strategy(self) -> type[SearchStrategy]:
        """The search strategy; with `budgets.accuracy_drop`, the bisection that keeps to it."""
        return AccuracyDropSearch if "accuracy_drop" in self.config.budgets else STRATEGIES[self.config.search.strategy]

    def score_floor(self, float_score: float) -> float | None:
        """The least score that `budgets.accuracy_drop` allows, `None` without that budget.

        Raises:
            InputError: it is no number of points.
        """
        drop = self.config.budgets.get("accuracy_drop")
        if isinstance(drop, str | tuple):
            raise InputError(f"budgets.accuracy_drop = {drop!r}: give points of the score as a number, such as 1.0")
        return None if drop is None else float_score - drop

    @cached_property
    def reference_policy(self) -> Policy:
        """Uniform 8 bit where the device can, else the nearest it supports: what percentages refer to."""
        wanted = Precision.parse("w8a8")

        def nearest(layer: str) -> Precision:
            supported = self.cost_model.supported(self.network[layer])
            distance = {p: abs(p.weight.bits - 8) + abs(p.activation.bits - 8) for p in supported}
            return wanted if wanted in supported else min(supported, key=lambda p: (distance[p], str(p)))

        return Policy({name: nearest(name) for name in self.network.layer_names})

    @cached_property
    def budgets(self) -> dict[str, float]:
        """Metric -> bound, percentages resolved; `accuracy_drop` left out (it is measured, not predicted)."""
        bounds = {}
        for key, value in self.config.budgets.items():
            if key != "accuracy_drop":
                bounds[key] = self._bound(key, value)
        return bounds

    def _bound(self, key: str, value: Bound) -> float:
        if isinstance(value, tuple):
            raise InputError(
                f"budgets.{key} lists several bounds, which only haq search takes; choose one: --set budgets.{key}=..."
            )
        if not isinstance(value, str):
            return float(value)
        share = float(value.removesuffix("%")) / 100.0
        if key == "average_weight_bits":
            return 8.0 * share
        if key == "sensitivity":
            raise InputError('budgets.sensitivity: a predicted loss is no share of 8 bit; give a number, not "..%"')
        totals = cost_report(self.network, self.cost_model, self.reference_policy).totals
        if key not in totals:
            raise InputError(f"budgets.{key}: {self.profile.name} does not model it; it models {', '.join(totals)}")
        return share * totals[key]

    def problem(self, sensitivity: SensitivityTable | None, interactions: InteractionTable | None = None) -> Problem:
        """The search problem as dense tables; `None`: with no predicted loss anywhere, to check the costs alone.

        Args:
            sensitivity: loss increases of single layers.
            interactions: and what pairs of layers lose beyond their sum.

        Raises:
            InputError: the sensitivity table lacks a choice.
        """
        try:
            rows = {
                layer: {str(p): 0.0 if sensitivity is None else sensitivity.of(layer, p) for p in choices}
                for layer, choices in self.space.precisions.items()
            }
        except (KeyError, TypeError) as error:
            raise InputError(f"the sensitivity table is damaged: {error!r}; remove it to have it made anew") from error
        document = problem_document(
            self.network,
            self.cost_model,
            self.space,
            sensitivity=rows,
            budgets=self.budgets,
            objective=self.config.objective,
            interactions=() if interactions is None else interactions.pairs,
        )
        return Problem.from_doc(document)

    def load_policy(self, path: Path) -> Policy:
        """Read a policy file (`policy.json`, just its `policy` part, or another tool's file) for this network.

        Raises:
            InputError: not a policy, or one for another model.
        """
        document = read_json(path)
        try:
            if (foreign := foreign_policy(document, self.network)) is not None:
                return foreign
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        if isinstance(document, dict) and isinstance(document.get("policy"), dict):
            if document.get("schema_version", 1) != 1:
                raise InputError(f"{path}: schema_version {document['schema_version']!r} is unknown; this haq reads 1")
            document = document["policy"]
        if not isinstance(document, dict):
            raise InputError(f"{path}: not a policy; expected an object that maps layer names to bits")
        try:
            policy = Policy.from_doc(document)
            policy.check_layers(self.network.layer_names)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: {error}") from error
        return Policy({name: policy[name] for name in self.network.layer_names})

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Of model weights and data: what a measurement depends on beside the configuration."""
        splits = {name: getattr(self.given_data, name).tensors() for name in ("train", "search", "test")}
        data = {f"{name}.{index}": tensor for name, tensors in splits.items() for index, tensor in enumerate(tensors)}
        return {"model": tensors_hash(self.model.state_dict()), "data": tensors_hash(data)}

    @property
    def cache_folder(self) -> Path | None:
        """Where measurements are kept; `None`: nowhere."""
        config = self.config.cache
        if not config.enabled:
            return None
        return cache_folder(None if config.folder is None else self.folder / config.folder)

    def measurement_context(
        self, *, rung: str | None = None, threads: int | None = None, device: str | None = None
    ) -> dict[str, Any]:
        """What a measurement on the search split depends on beside the policy; scores the float model.

        Args:
            rung: of the ladder; default: the first.
            threads: of whoever evaluates, where that is not this process.
            device: likewise.
        """
        config = self.config
        rung, qat = rung or config.evaluator.rungs[0], config.evaluator.qat or QATConfig()
        scoring = config.evaluator.model_dump(mode="json", exclude={"device", "kind", "ladder", "reduction", "qat"})
        floating = self.evaluator("search").float_measurement()
        context: dict[str, Any] = {
            "model": config.model.model_dump(mode="json"),
            "hashes": self.hashes,
            "float": {"score": floating.score, **floating.details},
            "evaluator": {**scoring, "rung": rung},
            "quantization": self.quantization.model_dump(mode="json"),
            "layers": list(self.network.layer_names),
            "sources": source_digest([*self._own_functions(), *map(type, self.model.modules())]),
            "code": code_version(),
            "numerics": numerics(torch.device(device) if device else self.quantized.device, threads=threads),
        }
        if config.data.targets != "labels":
            context["targets"] = config.data.targets
        if rung in ("ptq", "bn"):
            # Nothing is drawn at random without training: runs of several seeds share their measurements.
            return context
        # Joint training draws its policies from the space.
        space = {name: [str(p) for p in choices] for name, choices in self.space.precisions.items()}
        drawn = {"space": space, "ties": self.space.ties, "activation_ties": self.space.activation_ties}
        jointly = rung == "shared" or qat.start == "shared"
        trained = {"qat": qat.model_dump(mode="json"), "seed": config.seed, "drawn": drawn if jointly else None}
        return {**context, **trained}

    def _own_functions(self) -> list[Callable[..., Any]]:
        """What of the user's code makes measurements, beside the model."""
        return [self.metric, self.loss, *([] if self.training_step is None else [self.training_step])]
