"""From an experiment to what a search needs: what measures policies, sensitivities, the problem to solve.

Each piece is built when it is first asked for, so that `haq cost` loads no data it does not need.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from haq.distributed.compressors import check_compressor
from haq.edges.documents import read_json
from haq.edges.user_code import guarded
from haq.edges.validation import one_line
from haq.evaluate import PTQEvaluator, QATEvaluator, Scoring, SplitEvaluator
from haq.execute.ray_group import RayGroup
from haq.experiment.checks import (
    check_loss,
    check_names,
    check_objective,
    check_quantization,
    check_strategy,
    find_strategy,
)
from haq.experiment.config import ExperimentConfig, load_experiment, named_code
from haq.experiment.inputs import Pieces
from haq.hardware import require_metrics
from haq.problem.from_network import problem_document
from haq.problem.problem import Problem
from haq.repair import RepairedWeights, in_order, with_repair
from haq.search import AccuracyDropSearch, SearchStrategy
from haq.sensitivity import SensitivityTable, sensitivity_table
from haq.sensitivity.interactions import InteractionTable, affordable_pairs, interaction_table
from haq.training import FineTuner, MixedModel, check_not_folded
from haq.training.data_parallel import Launch
from haq.training.group import train_by_group
from haq.training.settings import QATConfig
from haq.values.errors import InputError
from haq.values.rung import Rung

Progress = Callable[[int, int], None]
_OF_ANY_DEVICE = ("model", "given_data", "data", "network", "loss", "metric", "hashes")
_OF_ONE_DEVICE = ("profile", "quantization", "cost_model", "space", "equalized_model", "quantized", "reference_policy")


class Experiment(Pieces):
    """One experiment: its pieces, what measures policies, and the problem to solve; each built lazily.

    Args:
        config: what the experiment file says.
        folder: of the experiment file; relative paths and user modules are looked for there.
    """

    def __init__(self, config: ExperimentConfig, *, folder: Path | None = None) -> None:
        super().__init__(config, folder or Path.cwd())
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
        """The experiment that made a run's `policy.json`. Relative paths are looked for in the working directory.

        A policy file may come from anybody, so it runs nothing: an experiment in it that names code is refused.

        Raises:
            InputError: no such file, a policy that does not say where it is from, or one that names code.
        """
        document = read_json(path)
        try:
            record = document["provenance"]["config"]
        except (KeyError, TypeError):
            record = None
        return cls.recorded(record, source=path)

    @classmethod
    def recorded(cls, record: Any, *, source: str | Path) -> Experiment:
        """The experiment that a file from anybody says it is from: its configuration, which may name no code.

        Args:
            record: the configuration as plain data.
            source: the file, for messages.

        Raises:
            InputError: none, a damaged one, or one that names code.
        """
        if not isinstance(record, dict):
            raise InputError(f"{source}: does not say which experiment it is from; add --experiment")
        try:
            config = ExperimentConfig.model_validate_json(json.dumps(record))
        except ValidationError as error:
            raise InputError(f"{source}: its experiment: {one_line(error)}; give another --experiment") from error
        if (named := named_code(config)) is not None:
            raise InputError(
                f"{source}: its experiment runs code, {named[0]} = {named[1]!r}, and files that may come from anybody "
                "run none; if it is yours, add --experiment with the experiment file"
            )
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
        other.adopt({name: vars(self)[name] for name in shared if name in vars(self)})
        return other

    @cached_property
    def fine_tuner(self) -> FineTuner:
        """Trains policies on the train split; made once, for all evaluators."""
        return FineTuner(
            self.equalized_model,
            self.quantized,
            self.data.train,
            settings=self.config.evaluator.qat or QATConfig(),
            loss=self.loss,
            training_step=self.training_step,
            space=self.space,
            seed=self.config.seed,
            class_axis=self.config.evaluator.class_axis,
            launch=self._launch,
        )

    @cached_property
    def _launch(self) -> Launch | None:
        """Who starts the group of workers that trains a policy; `None` where one worker does."""
        qat, executor = self.config.evaluator.qat or QATConfig(), self.config.executor
        if qat.data_parallel == 1:
            return None
        check_compressor(qat.compressor, **qat.compressor_options)
        group = RayGroup(
            workers=qat.data_parallel,
            address=executor.address,
            cpus_per_worker=executor.cpus_per_worker or 1.0,
            gpus_per_worker=executor.gpus_per_worker,
            retries=executor.retries,
        )
        return partial(train_by_group, group)

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
        chosen = Rung(rung)
        if not chosen.trains:
            repairs = self.repairs if chosen.repair is None else with_repair(self.repairs, chosen.repair)
            return PTQEvaluator(
                self.quantized,
                data,
                kind="bn" if chosen.kind == "bn" else "ptq",
                repairs=repairs,
                store=self._repaired,
                scoring=scoring,
            )
        return QATEvaluator(
            self.fine_tuner,
            self.quantized,
            data,
            kind="shared" if chosen.joint else "qat",
            steps=chosen.steps,
            scoring=scoring,
        )

    @property
    def repairs(self) -> tuple[str, ...]:
        """What is repaired under each policy, in the order in which it is done."""
        return in_order(self.quantization)

    @cached_property
    def _repaired(self) -> RepairedWeights:
        """Weights that were rounded by data, kept for every policy that has them: in the cache's folder, too."""
        keys = {"hashes": self.hashes, "quantization": self.quantization.model_dump(mode="json")}
        folder = self.cache_folder
        return RepairedWeights(None if folder is None else folder / "repaired", keys, seed=self.config.seed)

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
        config = self.config
        check_names(config, folder=self.folder)
        check_strategy(self.strategy, config, folder=self.folder)
        if self.strategy.needs_model:
            check_not_folded(self.quantization)
        check_objective(config)
        check_quantization(config.quantization, self.quantization)
        _ = (self.space, self.budgets, self.metric, self.compute_device)
        if config.sensitivity.interactions:
            affordable_pairs(self.space.precisions, config.sensitivity.interactions)
        require_metrics(self.cost_model, (config.objective, *self.budgets))
        size = config.sensitivity.batch_size
        check_loss(self.model, next(self.data.train.head(size).batches(size)), self.loss, config)
        if config.evaluator.trains:
            _ = self.fine_tuner

    def mixed_model(self, problem: Problem) -> MixedModel:
        """The model as the differentiable search trains it, on the train split.

        Raises:
            InputError: batch norm is folded.
        """
        return MixedModel(
            self.equalized_model,
            self.quantized,
            choices={layer: problem.choices(layer) for layer in problem.layers},
            split=self.data.train,
            loss=self.loss,
            batch_size=self.config.sensitivity.batch_size,
        )

    @property
    def strategy(self) -> type[SearchStrategy]:
        """The search strategy; with `budgets.accuracy_drop`, the bisection that keeps to it."""
        if "accuracy_drop" in self.config.budgets:
            return AccuracyDropSearch
        return find_strategy(self.config.search.strategy, folder=self.folder)

    def problem(self, sensitivity: SensitivityTable | None, interactions: InteractionTable | None = None) -> Problem:
        """The search problem as dense tables; `None`: with no predicted loss anywhere, to check the costs alone.

        Args:
            sensitivity: loss increases of single layers.
            interactions: what single layers and pairs of them lose, in place of `sensitivity`.

        Raises:
            InputError: the sensitivity table lacks a choice.
        """
        try:
            rows = {
                layer: {str(p): 0.0 if sensitivity is None else sensitivity.of(layer, p) for p in choices}
                for layer, choices in self.space.precisions.items()
            }
            if interactions is not None:
                rows = {
                    layer: dict(zip(map(str, choices), interactions.alone[layer], strict=True))
                    for layer, choices in self.space.precisions.items()
                }
        except (KeyError, TypeError) as error:
            raise InputError(f"the sensitivity table is damaged: {error!r}; delete it to recompute") from error
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
