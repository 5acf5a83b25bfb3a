"""The comparison of an exported model with the one it was made of."""

import pytest
import torch

from haq.deployed.check import compare


def spread(outputs, targets):
    """No mean over samples: halves of a set know nothing of the whole."""
    return float(outputs.max() - outputs.min())


def batches(*parts):
    return [(part, torch.zeros(len(part))) for part in parts]


def test_the_metric_is_over_the_whole_set():
    first, second = torch.tensor([[0.0, 1.0]]), torch.tensor([[10.0, 12.0]])
    found = compare(lambda x: x, lambda x: 2 * x, batches(first, second), metric=spread)
    assert (found.score, found.exported_score) == (12.0, 24.0)
    assert (found.samples, found.agreement, found.largest_difference) == (2, 100.0, 12.0)


def test_batches_that_cannot_be_joined_are_averaged_by_samples():
    parts = torch.zeros(1, 2, 3), torch.ones(3, 2, 5)
    found = compare(lambda x: x, lambda x: x, batches(*parts), metric=lambda outputs, _: float(outputs.mean()))
    assert found.score == pytest.approx(0.75)


def mean(outputs, targets):
    return float(outputs.mean())


def test_two_models_of_other_classes_do_not_agree():
    outputs = torch.eye(4) + 1.0
    found = compare(lambda x: outputs, lambda x: outputs[[1, 0, 2, 3]], batches(torch.zeros(4, 2)), metric=mean)
    assert found.agreement == 50.0
    assert found.relative_error == pytest.approx(2.0 / outputs.norm())  # four entries off by one
    assert [*found.failures(0.02)][1] == "50.00 % of the positions have another class"
    assert found.failures(0.6) == ()


def test_classes_of_tokens_are_along_the_dimension_that_labels_lack():
    wanted = torch.zeros(2, 3, 5)
    wanted[..., 1] = 1.0
    got = wanted.clone()
    got[0, 0, 4] = 2.0  # one token of six says another class; along the time axis three of ten would
    labels = torch.zeros(2, 3, dtype=torch.long)
    found = compare(lambda x: wanted, lambda x: got, [(torch.zeros(2), labels)], metric=mean)
    assert found.agreement == pytest.approx(100 * 5 / 6)


def test_a_class_axis_may_be_given():
    wanted = torch.eye(3).expand(2, 3, 3)
    got = wanted.roll(1, dims=2)
    found = compare(lambda x: wanted, lambda x: got, batches(torch.zeros(2)), metric=mean, class_axis=2)
    assert found.agreement == 0.0


def test_embeddings_are_compared_by_relative_error_and_cosine():
    wanted = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    found = compare(lambda x: wanted, lambda x: 2 * wanted, batches(torch.zeros(2)), metric=mean, kind="values")
    assert (found.kind, found.agreement) == ("values", None)
    assert found.cosine == pytest.approx(1.0)
    assert found.relative_error == pytest.approx(1.0)
    assert found.failures(0.02) == ("outputs differ by 100 % of their norm",)


def test_a_file_that_holds_for_one_batch_size_only_fails():
    def exported(x):
        return x if len(x) == 8 else x + 1.0

    found = compare(lambda x: x, exported, batches(torch.ones(8, 3)), metric=mean)
    assert found.relative_error == 0.0
    assert found.batch_errors == {1: pytest.approx(1.0), 3: pytest.approx(1.0)}
    assert found.failures(0.02) == (
        "batches of 1 differ by 100 % of their norm",
        "batches of 3 differ by 100 % of their norm",
    )


def test_outputs_that_are_not_finite_fail():
    found = compare(lambda x: x, lambda x: x * float("nan"), batches(torch.ones(2, 3)), metric=mean)
    assert found.failures(0.5)
