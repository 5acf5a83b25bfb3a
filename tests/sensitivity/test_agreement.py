"""Cheap metrics order layers and formats of a trained network much as measured loss increases do."""

import numpy as np
import pytest
import torch.nn.functional as F
from small_models import formats_of, quantize

from haq.sensitivity import METRICS, sensitivity_table
from haq.zoo import DATASETS, load_model

OPTIONS = {"hessian": {"probes": 2}}


def ranks(values):
    return np.argsort(np.argsort(values))


@pytest.fixture(scope="module")
def tables():
    train = DATASETS["digits"]().train
    model = quantize(load_model("digits_cnn"), train.head(256))
    formats = formats_of(model, "int2", "int3", "int4")
    return {
        metric: sensitivity_table(
            model, formats, train.head(256), metric=metric, loss=F.cross_entropy, options=OPTIONS.get(metric)
        )
        for metric in METRICS
    }


@pytest.mark.parametrize(
    ("metric", "floor"), [("kl", 0.9), ("fisher", 0.9), ("gradient", 0.85), ("sqnr", 0.8), ("hessian", 0.5)]
)
def test_rank_correlation_with_the_loss_metric(tables, metric, floor):
    got, wanted = ([row["sensitivity"] for row in tables[name].rows()] for name in (metric, "loss"))
    assert np.corrcoef(ranks(got), ranks(wanted))[0, 1] > floor
