"""`haq family`: several policies of a finished run, or of a front, as one artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.adaptive.family import DOCUMENT, Member, load, save_family
from haq.adaptive.nesting import nest
from haq.deployed.state import ModelState, capture, restore
from haq.edges.documents import read_json
from haq.edges.progress import Reporter, Silent
from haq.experiment.experiment import Experiment
from haq.hardware.costs import cost_report
from haq.quant import reestimate_batch_norm
from haq.quant.nested import call_model, joined
from haq.results.read import load_run
from haq.training.fine_tuning import Failure, FineTuner
from haq.training.settings import QATConfig
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.rung import Rung


def family_experiment(source: Path) -> Experiment:
    """The experiment of a run folder or of a front's first point.

    Raises:
        InputError: neither.
    """
    return Experiment.stored(_runs(source)[0] / "policy.json")


def _runs(source: Path) -> list[Path]:
    """The run folders: one, or those of a front's points."""
    if (source / "front.json").is_file():
        document = read_json(source / "front.json")
        points = document.get("points") if isinstance(document, dict) else None
        if not isinstance(points, list) or not all(isinstance(entry, dict) for entry in points):
            raise InputError(f"{source / 'front.json'}: points: expected a list; it was not written by haq search")
        names = [str(entry.get("point")) for entry in points if entry.get("policy") is not None]
        folders = [source / name for name in names if (source / name / "policy.json").is_file()]
        if folders:
            return folders
    if (source / "policy.json").is_file():
        return [source]
    raise InputError(f"{source}: neither a run folder nor that of a front; give what haq search wrote")


def front_policies(source: Path, experiment: Experiment, *, count: int, by: str | None = None) -> list[Policy]:
    """Policies that nothing measured beats in both score and cost, cheapest first, spread evenly over the cost.

    Args:
        source: a run folder, or a front's.
        experiment: of the run; gives the cost metric where `by` is not given: its first budget.
        count: how many; fewer where the front has fewer.
        by: the cost.

    Raises:
        InputError: fewer than two, or a cost that the device does not model.
    """
    metric = by or next((key for key in experiment.budgets if key != "sensitivity"), "bops")
    known: dict[str, tuple[float, float, Policy]] = {}
    for folder in _runs(source):
        run = load_run(folder)
        measured = [(trial.policy, trial.measurement.score) for trial in run.trials if trial.measurement.ok]
        for policy, score in measured:
            totals = cost_report(experiment.network, experiment.cost_model, policy).totals
            if metric not in totals:
                raise InputError(
                    f"--by {metric}: {experiment.profile.name} models {', '.join(totals)}; take one of them"
                )
            known[policy.key] = (totals[metric], score, policy)
    front: list[tuple[float, float, Policy]] = []
    for cost, score, policy in sorted(known.values(), key=lambda entry: (entry[0], -entry[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score, policy))
    if len(front) < 2:
        raise InputError(
            f"{source}: a family needs two policies of which neither beats the other in score and {metric}; this "
            f"run measured {len(front)}: raise search.max_trials, or list several budgets and give the front's folder"
        )
    return [policy for _, _, policy in _spread(front, count)]


def _spread(front: Sequence[tuple[float, float, Policy]], count: int) -> list[tuple[float, float, Policy]]:
    """Both ends, and between them what is nearest to equal steps of the cost."""
    low, high = front[0][0], front[-1][0]
    chosen = {0, len(front) - 1}
    for step in range(1, max(2, count) - 1):
        wanted = low + (high - low) * step / (count - 1)
        left = [number for number in range(len(front)) if number not in chosen]
        if left:
            chosen.add(min(left, key=lambda number: abs(front[number][0] - wanted)))
    return [front[number] for number in sorted(chosen)]


class _Members:
    """What joint training draws from: exactly these policies."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = tuple(policies)

    def draw(self, random: Random) -> Policy:
        """One of them, each as often."""
        return random.choice(self._policies)


def make_family(
    experiment: Experiment,
    policies: Sequence[Policy],
    out: Path,
    *,
    train: bool = False,
    nested: bool = False,
    onnx: bool | None = None,
    source: str = "",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Write a family of `policies` to the folder `out`.

    Args:
        experiment: gives model, data and settings.
        policies: cheapest first.
        out: is made; must be new or empty.
        train: one set of weights trained jointly over these members (`evaluator.qat` says how; Yu et al. 2021), each
            member with its own steps and batch-norm statistics; default: each as its run measures it.
        nested: weights of a layer are stored once, lower formats are the leading bits of the highest.
        onnx: also as ONNX; default: where onnx and onnxruntime are installed.
        source: what the document says the family is from.
        reporter: shows progress.

    Returns:
        `folder`, `members` (name, costs, `search_score` as packed and `alone`), `torch` and `onnx`: bytes, and the sum
        of as many single files.

    Raises:
        InputError: the policies or the settings cannot be used.
    """
    show = reporter or Silent()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty; name another --out")
    evaluator = experiment.config.evaluator.model_copy(update={"device": "cpu"})
    experiment = experiment.at(experiment.config.model_copy(update={"evaluator": evaluator}))
    show.stage("training the members jointly" if train else "quantizing the members")
    alone: list[float | None] = [None] * len(policies)
    if train:
        states = _trained(experiment, policies)
    else:
        states, alone = _single(experiment, policies, show)
    if nested:
        inside = nest(states)
        states = [
            state if state is plain else _restated(experiment, state)
            for state, plain in zip(inside, states, strict=True)
        ]
    show.stage("scoring the members")
    scores = [_score(experiment, restore(experiment.model, state)) for state in states]
    members = [
        Member.of(
            number,
            policy,
            cost_report(experiment.network, experiment.cost_model, policy).totals,
            search_score=scores[number],
            alone=alone[number],
        )
        for number, policy in enumerate(policies)
    ]
    details = {
        "source": source,
        "device": experiment.profile.name,
        "metric": experiment.config.evaluator.metric,
        "trained": train,
        "nested": nested,
        "experiment": experiment.config.model_dump(mode="json"),
    }
    sizes = {"torch": save_family(out, states, members, nested=nested, details=details)}
    if onnx if onnx is not None else find_spec("onnx") is not None and find_spec("onnxruntime") is not None:
        from haq.adaptive.sessions import save_sessions

        show.stage("writing ONNX")
        sizes["onnx"] = save_sessions(out, experiment.model, states, experiment.given_data.train.head(2).inputs)
    load(out, experiment.model)  # what was written can be read
    return {
        "schema_version": 1,
        "folder": str(out),
        "file": str(out / DOCUMENT),
        "metric": experiment.config.evaluator.metric,
        "members": [
            {"name": one.name, "costs": one.costs, "search_score": one.search_score, "alone": one.alone}
            for one in members
        ],
        **sizes,
    }


def _single(
    experiment: Experiment, policies: Sequence[Policy], show: Reporter
) -> tuple[list[ModelState], list[float | None]]:
    """Each policy as its run measures it on the last rung."""
    rung = experiment.config.evaluator.rungs[-1]
    evaluator = experiment.evaluator("search", rung=rung)
    states, scores = [], []
    for number, policy in enumerate(policies):
        measured = evaluator(policy)
        if not measured.ok:
            raise InputError(f"member {number} cannot be measured: {measured.error}")
        states.append(capture(experiment.fine_tuner.model if Rung(rung).trains else experiment.quantized))
        scores.append(measured.score)
        show.step(number + 1, len(policies))
    return states, list(scores)


def _trained(experiment: Experiment, policies: Sequence[Policy]) -> list[ModelState]:
    tuner = FineTuner(
        experiment.equalized_model,
        experiment.quantized,
        experiment.data.train,
        settings=experiment.config.evaluator.qat or QATConfig(),
        loss=experiment.loss,
        training_step=experiment.training_step,
        space=_Members(policies),
        seed=experiment.config.seed,
        class_axis=experiment.config.evaluator.class_axis,
    )
    states = []
    for policy in policies:
        failure = tuner.apply_shared(policy)
        if isinstance(failure, Failure):
            raise InputError(f"the members cannot be trained: {failure.reason}")
        states.append(capture(tuner.model))
    return states


class _Restored:
    """A restored module whose batch norms are re-estimated: nested weights shift what they see."""

    def __init__(self, module: nn.Module, calibration: Sequence[Any]) -> None:
        self.module, self.calibration = module, tuple(calibration)
        self.batch_norms = {
            name: part
            for name, part in module.named_modules()
            if isinstance(part, _BatchNorm) and part.running_mean is not None
        }

    def __call__(self, inputs: Any) -> Any:
        return call_model(self.module, inputs)

    def set_batch_norm_statistics(self, statistics: Any) -> None:
        for name, (mean, variance) in statistics.items():
            norm = self.batch_norms[name]
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


def _restated(experiment: Experiment, state: ModelState) -> ModelState:
    """The state with batch norms of its own weights, where it has any that are not folded."""
    model = _Restored(restore(experiment.model, state), experiment.quantized.calibration)
    if not model.batch_norms:
        return state
    reestimate_batch_norm(model)
    found = model.module.state_dict()
    return replace(state, tensors={name: found.get(name, value).clone() for name, value in state.tensors.items()})


def _score(experiment: Experiment, module: nn.Module) -> float:
    """On the search split, by the experiment's metric."""
    config = experiment.config.evaluator
    split = experiment.data.search if config.samples is None else experiment.data.search.head(config.samples)
    outputs, targets = [], []
    with torch.no_grad():
        for inputs, wanted in split.batches(config.batch_size):
            outputs.append(call_model(module, inputs))
            targets.append(wanted)
    return float(experiment.metric(joined(outputs), joined(targets)))
