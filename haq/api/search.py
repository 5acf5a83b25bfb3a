"""`haq.search`: five lines from a live model to a policy, a model that runs, a report and a file."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from haq.api.live import BUDGETS, live_experiment
from haq.deployed.state import capture, restore
from haq.edges.progress import Silent
from haq.experiment.experiment import Experiment
from haq.export import ExportOptions, export
from haq.runs.search import run_experiment
from haq.search.strategies import STRATEGIES
from haq.search.strategy import SearchStrategy
from haq.values.errors import InputError
from haq.values.policy import Policy
from haq.values.rung import Rung

_SUFFIXES = {".onnx": "onnx", ".safetensors": "torch"}
Progress = Callable[[str, int, int], None]
"""`(stage or note, done, total)`, called as the search goes on."""


class _Callback(Silent):
    def __init__(self, tell: Progress) -> None:
        self._tell, self._stage = tell, ""

    def stage(self, name: str) -> None:
        self._stage = name
        self._tell(name, 0, 0)

    def step(self, done: int, total: int) -> None:
        self._tell(self._stage, done, total)

    def note(self, text: str) -> None:
        self._tell(text, 0, 0)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        experiment: what was searched.
        folder: the run folder: report, plots, trials, policy.
        document: the content of its `result.json`.
    """

    experiment: Experiment = field(repr=False)
    folder: Path
    document: dict[str, Any] = field(repr=False)

    @property
    def verdict(self) -> str:
        """How good the answer is, in one sentence."""
        return str(self.document["verdict"])

    @property
    def score(self) -> float | None:
        """Of the answer, on the test split."""
        value = self.document["answer"]["test_score"]
        return None if value is None else float(value)

    @property
    def costs(self) -> dict[str, float]:
        """Metric -> what the answer costs on the device."""
        return dict(self.document["answer"]["costs"])

    @cached_property
    def policy(self) -> Policy:
        """The answer: layer -> precision."""
        return Policy.from_doc(self.document["answer"]["policy"])

    @cached_property
    def model(self) -> nn.Module:
        """The float model's architecture, quantized by the answer: a plain module that computes what was scored.

        Raises:
            InputError: the policy cannot be measured any more.
        """
        return restore(self.experiment.model, capture(self._scored()))

    def report(self) -> Path:
        """The report page, self-contained."""
        return self.folder / "report.html"

    def export(self, path: str | Path, *, format: str | None = None, **options: Any) -> Path:
        """Write the quantized model as a file that runs.

        Args:
            path: where to; `.onnx` and `.safetensors` say the format.
            format: a name in `haq.export.EXPORTERS`.
            options: of `haq.export.ExportOptions`.

        Raises:
            InputError: the format is not said, or cannot hold the model.
        """
        path = Path(path)
        chosen = format or _SUFFIXES.get(path.suffix)
        if chosen is None:
            raise InputError(
                f"{path}: the name does not say the format; end it in .onnx or .safetensors, or give format="
            )
        inputs = self.experiment.given_data.train.head(128 if options.get("integer_outputs") else 2).inputs
        export(
            self._scored(),
            self.experiment.model,
            path,
            inputs=inputs,
            format=chosen,
            options=ExportOptions(**options),
        )
        return path

    def _scored(self) -> Any:
        """The model with the answer applied as its evaluator applies it."""
        rung = self.experiment.config.evaluator.rungs[-1]
        trains = Rung(rung).trains
        holder = self.experiment.fine_tuner.model if trains else self.experiment.quantized
        measured = self.experiment.evaluator("search", rung=rung)(self.policy)
        if not measured.ok:
            raise InputError(f"the answer cannot be measured: {measured.error}")
        return holder

    def _repr_html_(self) -> str:
        """For a notebook: the verdict, and scores and costs beside float and the baselines."""
        document = self.document
        columns = {"answer": document["answer"], **{k: v for k, v in document["baselines"].items() if v}}
        names = ["", "float", *columns]
        rows = [["test score", document["float"]["test_score"], *(entry["test_score"] for entry in columns.values())]]
        for metric in document["answer"]["costs"]:
            rows.append([metric, None, *(entry["costs"].get(metric) for entry in columns.values())])

        def cell(value: Any) -> str:
            return "–" if value is None else html.escape(value if isinstance(value, str) else f"{value:,.4g}")

        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = "".join("<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows)
        bits = ", ".join(f"{html.escape(layer)} {precision}" for layer, precision in self.policy.items())
        return (
            f"<p><b>{html.escape(self.verdict)}</b></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<p>{bits}</p><p>report: {html.escape(str(self.report()))}</p>"
        )


def search(
    model: nn.Module,
    *,
    train: Any,
    search: Any = None,
    test: Any = None,
    device: str | Path,
    latency: float | str | None = None,
    energy: float | str | None = None,
    size: float | str | None = None,
    memory: float | str | None = None,
    bops: float | str | None = None,
    weight_bits: float | None = None,
    metric: Any = None,
    loss: Any = None,
    training_step: Callable[..., Any] | None = None,
    strategy: str | type[SearchStrategy] = "ilp",
    max_trials: int = 8,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    settings: dict[str, Any] | None = None,
) -> SearchResult:
    """Search the best bit-width for every layer of a live model.

    Args:
        model: any module that `torch.export` captures.
        train: a `DataLoader`, a `Dataset`, an `(inputs, targets)` pair or a `haq.Split`; calibrates, and fine-tunes.
        search: likewise; policies are scored on it. Default: a fifth of `train`.
        test: likewise; only the answer and the baselines are scored on it. Default: half of `search`.
        device: name or path of a hardware profile (`haq hardware list`).
        latency: budget in milliseconds, or in per cent of uniform 8 bit: `"60%"`.
        energy: in millijoules, or per cent.
        size: in bytes, or per cent.
        memory: peak activation memory in bytes, or per cent.
        bops: bit operations, or per cent.
        weight_bits: average bits per weight.
        metric: name or `(outputs, targets)` -> score, larger is better.
        loss: name or `(outputs, targets)` -> scalar tensor.
        training_step: `(model, inputs, targets)` -> scalar loss; for an evaluator that fine-tunes.
        strategy: name, `module:Class`, or a class of your own.
        max_trials: policies to measure besides the baselines.
        seed: of everything random.
        out: run folder; default: a new temporary one.
        resume: go on with the run in `out`.
        progress: `(stage or note, done, total)`.
        settings: further keys of an experiment file, e.g. `{"evaluator": {"kind": "bn"}}`.

    Returns:
        The answer with its policy, model, report and export.

    Raises:
        InputError: something given cannot be used; one line.
        InfeasibleError: no policy meets the budgets.

    Example:
        >>> import haq, torch
        >>> from torch.nn import Flatten, Linear, ReLU, Sequential
        >>> net = Sequential(Flatten(), Linear(16, 32), ReLU(), Linear(32, 2))
        >>> x = torch.randn(256, 1, 4, 4)
        >>> labels = (x.mean((1, 2, 3)) > 0).long()
        >>> found = haq.search(net, train=(x, labels), device="cortex_m7", size="60%")
        >>> sorted(found.policy) == ["1", "3"]
        True
    """
    given = {"latency": latency, "energy": energy, "size": size, "memory": memory, "bops": bops}
    budgets = {BUDGETS[key]: value for key, value in given.items() if value is not None}
    if weight_bits is not None:
        budgets[BUDGETS["weight_bits"]] = weight_bits
    if not budgets:
        raise InputError(f"name at least one budget: {', '.join(BUDGETS)}, for example size='50%'")
    keys = dict(settings or {})
    keys["search"] = {"strategy": _registered(strategy), "max_trials": max_trials, **keys.get("search", {})}
    experiment = live_experiment(
        model,
        train=train,
        search=search,
        test=test,
        device=device,
        budgets=budgets,
        metric=metric,
        loss=loss,
        training_step=training_step,
        name=type(model).__name__.lower() or "live",
        settings={"seed": seed, **keys},
    )
    folder = Path(tempfile.mkdtemp(prefix="haq-")) / "run" if out is None else Path(out)
    reporter = None if progress is None else _Callback(progress)
    threads = torch.get_num_threads()
    try:
        path, document = run_experiment(
            experiment, out=folder, resume=resume, command="haq.search(...)", reporter=reporter
        )
    finally:
        torch.set_num_threads(threads)
    return SearchResult(experiment, path, document)


def _registered(strategy: str | type[SearchStrategy]) -> str:
    """The name under which the loop finds a strategy; a class of the caller's own is known by its own name."""
    if isinstance(strategy, str):
        return strategy
    if not (isinstance(strategy, type) and issubclass(strategy, SearchStrategy)):
        raise InputError(f"strategy: {strategy!r} is no haq.SearchStrategy; derive from it, or give a name")
    name = strategy.__name__
    if STRATEGIES.get(name, strategy) is not strategy and not name[0].isupper():
        raise InputError(f"strategy: {name!r} is the name of another one; rename the class")
    STRATEGIES[name] = strategy
    return name
