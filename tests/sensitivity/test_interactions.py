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


def loss_of(model, split, **precisions):
    model.apply(Policy({name: precisions.get(name, FLOAT) for name in model.layers}))
    with torch.no_grad():
        result = float(two_head_loss(model(split.inputs), split.targets))
    model.apply(None)
    return result


def test_all_pairs_are_the_semidefinite_part_of_what_pairs_lose_beyond_their_sum(two_heads, vectors):
    layers = list(two_heads.layers)
    table = interaction_table(two_heads, dict.fromkeys(layers, TWO), vectors, loss=two_head_loss, passes=100)
    zero = loss_of(two_heads, vectors)
    whole = np.zeros((6, 6))
    entries = list(itertools.product(layers, TWO))
    for (i, (a, p)), (j, (b, q)) in itertools.product(enumerate(entries), repeat=2):
        alone = [loss_of(two_heads, vectors, **{name: choice}) - zero for name, choice in ((a, p), (b, q))]
        if i == j:
            whole[i, j] = alone[0]
        elif a != b:
            whole[i, j] = (loss_of(two_heads, vectors, **{a: p, b: q}) - zero - sum(alone)) / 2
    values, vectors_ = np.linalg.eigh(whole)
    expected = vectors_ @ np.diag(values.clip(0)) @ vectors_.T
    for pair in table.pairs:
        i, j = (2 * layers.index(name) for name in pair["between"])
        assert np.array(pair["costs"]) == pytest.approx(2 * expected[i : i + 2, j : j + 2], abs=1e-5)
    assert len(table.pairs) == 3
    assert table.details["pairs_left_out"] == 0


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
    gained = with_them.objective_value(policy) - without.objective_value(policy)
    assert gained == pytest.approx(extra)
    assert len(interactions.pairs) == 3
    with pytest.raises(InputError, match=r"sensitivity.interactions = 5: a first pair"):
        Experiment.load(path, overrides=["sensitivity.interactions=5"]).check()
