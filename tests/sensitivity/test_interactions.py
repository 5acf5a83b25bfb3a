"""Pairwise loss increases against whole policies applied to the model; what passes they take and when they are kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from small_models import two_head_loss

from haq.experiment.experiment import Experiment
from haq.sensitivity.interactions import affordable_pairs, interaction_table
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy

TWO = [Precision.parse(text) for text in ("w2a4", "w4a8")]
FLOAT = Precision.parse("wfp32afp32")


def loss_of(model, split, loss=two_head_loss, **precisions):
    model.apply(Policy({name: precisions.get(name, FLOAT) for name in model.layers}))
    with torch.no_grad():
        result = float(loss(model(split.inputs), split.targets))
    model.apply(None)
    return result


def measured_form(model, split, loss, pairs):
    """The matrix of equation 5 over the entries `(layer, choice)`, before any projection, and these entries."""
    zero = loss_of(model, split, loss)
    entries = list(itertools.product(model.layers, TWO))
    whole = np.zeros((len(entries), len(entries)))
    for (i, (a, p)), (j, (b, q)) in itertools.product(enumerate(entries), repeat=2):
        alone = [loss_of(model, split, loss, **{name: choice}) - zero for name, choice in ((a, p), (b, q))]
        if i == j:
            whole[i, j] = alone[0]
        elif (a, b) in pairs or (b, a) in pairs:
            whole[i, j] = (loss_of(model, split, loss, **{a: p, b: q}) - zero - sum(alone)) / 2
    return whole, entries


def semidefinite(whole):
    values, vectors = np.linalg.eigh(whole)
    return vectors @ np.diag(values.clip(0)) @ vectors.T


def policies(layers):
    """Every policy as the 0/1 vector over the entries, and as one choice per layer."""
    for choice in itertools.product(range(len(TWO)), repeat=len(layers)):
        yield np.array([float(c == k) for c in choice for k in range(len(TWO))]), choice


def predicted(table, layers, choice):
    """The loss of a policy as a problem adds it up."""
    chosen = dict(zip(layers, choice, strict=True))
    loss = sum(table.alone[name][c] for name, c in chosen.items())
    return loss + sum(pair["costs"][chosen[pair["between"][0]]][chosen[pair["between"][1]]] for pair in table.pairs)


def noise(outputs, targets):
    """A loss that says nothing: digits far behind the point."""
    return (1e5 * sum(head.double().sum() for head in outputs.values())).frac().abs()


@pytest.mark.parametrize("passes", [100, 12], ids=["all pairs measured", "one pair measured"])
@pytest.mark.parametrize("loss", [two_head_loss, noise])
def test_the_predicted_loss_is_the_whole_projected_form(two_heads, vectors, loss, passes):
    layers = list(two_heads.layers)
    choices = dict.fromkeys(layers, TWO)
    table = interaction_table(two_heads, choices, vectors, loss=loss, passes=passes)
    pairs, _ = affordable_pairs(choices, passes)
    whole, _ = measured_form(two_heads, vectors, loss, pairs)
    projected = semidefinite(whole)
    for row, choice in policies(layers):
        assert predicted(table, layers, choice) == pytest.approx(row @ projected @ row, abs=1e-5)
        assert predicted(table, layers, choice) >= -1e-9
    assert table.details["pairs_left_out"] == 3 - len(pairs)


def test_without_the_projection_noise_would_promise_negative_losses_and_with_it_other_policies_are_best(
    two_heads, vectors
):
    layers = list(two_heads.layers)
    choices = dict.fromkeys(layers, TWO)
    table = interaction_table(two_heads, choices, vectors, loss=noise, passes=100)
    whole, _ = measured_form(two_heads, vectors, noise, affordable_pairs(choices, 100)[0])
    raw = {choice: row @ whole @ row for row, choice in policies(layers)}
    assert min(raw.values()) < -0.01
    assert all(predicted(table, layers, choice) > value + 1e-3 for choice, value in raw.items() if value < 0)


def test_passes_are_counted_and_not_exceeded(two_heads, vectors):
    calls = []

    def counted(outputs, targets):
        calls.append(1)
        return two_head_loss(outputs, targets)

    choices = dict.fromkeys(two_heads.layers, TWO)
    table = interaction_table(two_heads, choices, vectors, loss=counted, passes=12, batch_size=64)
    assert len(calls) == table.details["passes"] == 1 + 3 * 2 + 4
    assert table.details["pairs_left_out"] == 2
    with pytest.raises(InputError, match="a first pair of layers needs 11 passes"):
        interaction_table(two_heads, choices, vectors, loss=counted, passes=10)


def test_pairs_within_a_block_come_first_then_neighbours():
    names = ["stem", "block1.a", "block1.b", "block1.c", "block2.a", "block2.b"]
    pairs, used = affordable_pairs(dict.fromkeys(names, TWO[:1]), 1 + 6 + 6)
    within = [("block1.a", "block1.b"), ("block1.b", "block1.c"), ("block2.a", "block2.b"), ("block1.a", "block1.c")]
    assert pairs == [*within, ("stem", "block1.a"), ("block1.c", "block2.a")]
    assert used == 13


def test_a_table_is_reused_only_for_the_same_setup(two_heads, vectors, tmp_path):
    choices, file = dict.fromkeys(two_heads.layers, TWO), tmp_path / "interactions.json"
    first = interaction_table(two_heads, choices, vectors, loss=two_head_loss, passes=100, file=file)

    def never(outputs, targets):
        raise AssertionError("measured again")

    never.__module__, never.__qualname__ = two_head_loss.__module__, two_head_loss.__qualname__
    again = interaction_table(two_heads, choices, vectors, loss=never, passes=100, file=file)
    assert again.pairs == first.pairs
    with pytest.raises(InputError, match="made for another model"):
        interaction_table(two_heads, choices, vectors, loss=two_head_loss, passes=50, file=file)


def test_an_experiment_with_interactions_solves_with_them(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(
        '[model]\nname = "digits_cnn"\n[data]\nname = "digits"\n[device]\nprofile = "riscv_xpulpnn"\n'
        '[space]\nweights = ["int2", "int4"]\nactivations = ["int4"]\n[budgets]\nsize_bytes = "40%"\n'
        "[sensitivity]\nsamples = 64\ninteractions = 30\n"
    )
    experiment = Experiment.load(path)
    experiment.check()
    sensitivity, interactions = experiment.sensitivity(), experiment.interactions()
    with_them, without = experiment.problem(sensitivity, interactions), experiment.problem(sensitivity)
    policy = without.policy(np.zeros(7, dtype=int))
    extra = sum(pair["costs"][0][0] for pair in interactions.pairs)
    assert with_them.objective_value(policy) == pytest.approx(
        extra + sum(row[0] for row in interactions.alone.values())
    )
    assert interactions.details["pairs_left_out"] == 7 * 6 // 2 - 3
    assert all(value >= 0 for row in interactions.alone.values() for value in row)
    with pytest.raises(InputError, match=r"sensitivity.interactions = 5: a first pair"):
        Experiment.load(path, overrides=["sensitivity.interactions=5"]).check()
