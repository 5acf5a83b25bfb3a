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
