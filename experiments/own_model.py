"""An example of your own model, data and metric: a tabular classifier scored by balanced accuracy.

`experiments/own_model.toml` names the functions below as `own_model:build`, `own_model:data`, ...
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from haq import DataSplits, Split


def data(seed: int = 0) -> DataSplits:
    """569 samples of 30 standardised features and two classes; 60 / 20 / 20 %."""
    bunch = load_breast_cancer()
    features = torch.tensor(bunch.data, dtype=torch.float32)
    targets = torch.tensor(bunch.target)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    train, search, test = order[:341], order[341:455], order[455:]
    features = (features - features[train].mean(0)) / features[train].std(0)
    return DataSplits(*(Split(features[part], targets[part]) for part in (train, search, test)))


def build(hidden: int = 64, steps: int = 100) -> nn.Module:
    """A small network; here it is trained on the spot, yours would load its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    train = data().train
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(train.inputs), train.targets).backward()
        optimizer.step()
    return model


def balanced_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Mean of the two classes' recalls, in per cent; larger is better."""
    hits = outputs.argmax(1) == targets
    recalls = [hits[targets == label].float().mean() for label in targets.unique()]
    return 100.0 * float(torch.stack(recalls).mean())
