"""What two layers lose together beyond what each loses alone, by forward passes (CLADO, arXiv 2307.05657)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from haq.edges.documents import read_checked, write_checked
from haq.edges.validation import Section, one_line
from haq.quant.model import QuantizedModel
from haq.quant.nested import tensors_in
from haq.sensitivity.base import Loss, Progress, Samples, table_signature
from haq.sensitivity.local import float_model
from haq.values.errors import InputError
from haq.values.formats import Precision

Choices = Mapping[str, Sequence[Precision]]
Floats = NDArray[np.float64]
_ROUNDING = 1e-12
"""Entries of the projected matrix that are less, relative to the largest, are rounding."""


class _TableDoc(Section):
    schema_version: Literal[2]
    signature: str
    alone: dict[str, list[float]]
    pairs: list[dict[str, Any]]
    details: dict[str, Any]


@dataclass(frozen=True)
class InteractionTable:
    """A quadratic form over the choices of all layers: what single layers and what pairs lose. It is never negative.

    Attributes:
        signature: hash of model, data, choices, quantization and settings; reused only where it agrees.
        alone: layer -> what each of its choices loses.
        pairs: `{"between": [a, b], "costs": [[]]}` as in a problem document; rows and columns in the order of choices.
        details: passes made, pairs that were not measured.
    """

    signature: str
    alone: Mapping[str, Sequence[float]]
    pairs: Sequence[Mapping[str, Any]]
    details: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write the table as JSON, atomically."""
        write_checked(path, {"schema_version": 2, **self.__dict__})

    @classmethod
    def load(cls, path: Path, *, signature: str) -> InteractionTable:
        """Read a saved table.

        Raises:
            InputError: missing, damaged, or made for another setup.
        """
        document = read_checked(path)
        try:
            found = _TableDoc.model_validate(document)
        except ValidationError as error:
            raise InputError(
                f"{path}: not a table of interactions: {one_line(error)}; delete it to recompute"
            ) from error
        table = cls(found.signature, found.alone, found.pairs, found.details)
        if table.signature != signature:
            raise InputError(
                f"{path}: made for another model, data, choices or quantization (signature {table.signature}, wanted "
                f"{signature}); remove it or write to another folder"
            )
        return table


def interaction_table(
    model: QuantizedModel,
    choices: Choices,
    samples: Samples,
    *,
    loss: Loss,
    passes: int,
    batch_size: int = 128,
    file: Path | None = None,
    progress: Progress | None = None,
) -> InteractionTable:
    """The loss as a quadratic form, from as many pairs of layers as `passes` allow; from `file` where it fits.

    The interaction of layer i in choice m and layer j in choice n is L(i, j) + L() - L(i) - L(j), L being the mean loss
    with these layers quantized and all others in float (CLADO, equation 5). The matrix of all of them, with L(i) - L()
    on the diagonal, interactions halved beside it and zeros for pairs that were not measured, is replaced by the
    nearest positive semidefinite one, whole: its diagonal is what single layers lose, and it fills in the pairs that
    were not measured. So no policy is predicted to lose less than nothing, which noise would promise.

    Args:
        model: left as found.
        choices: layer -> its precisions, in network order.
        samples: data to measure on; part of the train split.
        loss: `(outputs, targets)` -> mean loss of a batch.
        passes: over the samples, at most. Pairs within a block (a module that holds both) come first, then neighbours.
        batch_size: samples per forward pass.
        file: to reuse or write.
        progress: called with passes done and their total.

    Raises:
        InputError: too few passes for a single pair, or a file made for another setup.
    """
    chosen, used = affordable_pairs(choices, passes)
    settings = {"passes": passes, "batch_size": batch_size, "choices": {k: [*map(str, v)] for k, v in choices.items()}}
    with float_model(model):
        name = f"{loss.__module__}:{getattr(loss, '__qualname__', type(loss).__qualname__)}"
        signature = table_signature(model, {}, samples, {"interactions": json.dumps(settings), "loss": name})
    if file is not None and file.exists():
        return InteractionTable.load(file, signature=signature)
    batches = [(model.to_device(inputs), model.to_device(targets)) for inputs, targets in samples.batches(batch_size)]
    done = 0

    def measure(precisions: Mapping[str, Precision]) -> float:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, used)
        return _mean_loss(model, precisions, batches, loss)

    with float_model(model), torch.no_grad():
        matrices, alone = _measured(choices, chosen, measure)
    alone, matrices = _semidefinite(choices, alone, matrices)
    table = InteractionTable(
        signature,
        {name: row.tolist() for name, row in alone.items()},
        [{"between": list(pair), "costs": matrix.tolist()} for pair, matrix in matrices.items()],
        {**settings, "passes": used, "pairs_left_out": len(choices) * (len(choices) - 1) // 2 - len(chosen)},
    )
    if file is not None:
        table.save(file)
    return table


def affordable_pairs(choices: Choices, passes: int) -> tuple[list[tuple[str, str]], int]:
    """The pairs to measure, nearest first, and how many passes they take in all.

    Raises:
        InputError: too few passes for a single pair.
    """
    position = {name: index for index, name in enumerate(choices)}

    def distance(pair: tuple[str, str]) -> tuple[bool, int]:
        blocks = {name.rpartition(".")[0] for name in pair}
        return len(blocks) > 1, position[pair[1]] - position[pair[0]]

    used = 1 + sum(len(row) for row in choices.values())
    chosen: list[tuple[str, str]] = []
    for pair in sorted(itertools.combinations(choices, 2), key=distance):
        cost = len(choices[pair[0]]) * len(choices[pair[1]])
        if used + cost <= passes:
            chosen.append(pair)
            used += cost
    if not chosen and len(choices) > 1:
        least = used + min(len(a) * len(b) for a, b in itertools.combinations(choices.values(), 2))
        raise InputError(f"sensitivity.interactions = {passes}: a first pair of layers needs {least} passes")
    return chosen, used


def _mean_loss(
    model: QuantizedModel, precisions: Mapping[str, Precision], batches: Sequence[tuple[Any, Any]], loss: Loss
) -> float:
    for layer, precision in precisions.items():
        model.set_precision(layer, precision)
    total, count = 0.0, 0
    for inputs, targets in batches:
        size = len(next(iter(tensors_in(inputs))))
        total += size * float(loss(model(inputs), targets))
        count += size
    for layer in precisions:
        model.set_precision(layer, None)
    return total / count


def _measured(
    choices: Choices, pairs: Sequence[tuple[str, str]], measure: Callable[[Mapping[str, Precision]], float]
) -> tuple[dict[tuple[str, str], Floats], dict[str, Floats]]:
    """Interactions of the pairs, and the loss increases of single layers."""
    zero = measure({})
    alone = {name: np.array([measure({name: p}) - zero for p in row]) for name, row in choices.items()}
    matrices = {}
    for a, b in pairs:
        both = np.array([[measure({a: p, b: q}) - zero for q in choices[b]] for p in choices[a]])
        matrices[a, b] = both - alone[a][:, None] - alone[b][None]
    return matrices, alone


def _semidefinite(
    choices: Choices, alone: Mapping[str, Floats], matrices: Mapping[tuple[str, str], Floats]
) -> tuple[dict[str, Floats], dict[tuple[str, str], Floats]]:
    """The losses of single layers and of pairs after negative eigenvalues of the whole matrix were set to 0.

    Pairs of which nothing but rounding is left are left out.
    """
    start = dict(zip(choices, np.cumsum([0, *(len(row) for row in choices.values())]).tolist(), strict=False))
    whole = np.diag(np.concatenate(list(alone.values())))

    def block(a: str, b: str) -> tuple[slice, slice]:
        return slice(start[a], start[a] + len(choices[a])), slice(start[b], start[b] + len(choices[b]))

    for (a, b), matrix in matrices.items():
        whole[block(a, b)] = matrix / 2
        whole[block(b, a)] = matrix.T / 2
    values, vectors = np.linalg.eigh(whole)
    projected = (vectors * np.maximum(values, 0.0)) @ vectors.T
    rounding = _ROUNDING * float(np.abs(projected).max(initial=0.0))
    pairs = {pair: 2 * projected[block(*pair)] for pair in itertools.combinations(choices, 2)}
    single = {name: np.diagonal(projected[block(name, name)]).copy() for name in choices}
    return single, {pair: matrix for pair, matrix in pairs.items() if np.abs(matrix).max() > rounding}
