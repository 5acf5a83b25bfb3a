"""What renewing activation ranges gives back under shift: six corruptions at three strengths, without labels.

    python benchmarks/drift.py experiments/quickstart.toml

For each corruption of the test split and each format: accuracy with the old ranges, with ranges renewed on the other
half of the corrupted samples, and with all activations behind the first in float, which is all that ranges could give;
with the inputs' range opened, too; and how often windows without a corruption look like drift.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from haq import Experiment
from haq.adaptive.sessions import load_onnx
from haq.deployed.state import capture, restore
from haq.quant.nested import call_model
from haq.runs.family import make_family
from haq.serve.drift import WINDOW, Drift, Observer
from haq.serve.ranges import opened, renewed
from haq.values.formats import Precision
from haq.values.policy import Policy


def corrupted(images: torch.Tensor, kind: str, strength: float) -> torch.Tensor:
    """Images `[n, channels, h, w]` under a corruption; strength 0 to 1."""
    spread = images.std()
    if kind == "contrast":
        return images.mean() + (images - images.mean()) * (1 - 0.8 * strength)
    if kind == "brightness":
        return images + 2.0 * strength * spread
    if kind == "noise":
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return images + strength * spread * noise
    if kind == "blur":
        kernel = torch.full((images.shape[1], 1, 3, 3), strength / 9)
        kernel[:, :, 1, 1] += 1 - strength
        return nn.functional.conv2d(images, kernel, padding=1, groups=images.shape[1])
    if kind == "occlusion":
        size = max(1, round(0.5 * strength * images.shape[-1]))
        hidden = images.clone()
        hidden[:, :, -size:, -size:] = images.min()
        return hidden
    assert kind == "gain"
    return images * (1 + 3 * strength)


KINDS = ("contrast", "brightness", "noise", "blur", "occlusion", "gain")


def accuracy(module: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> float:
    with torch.no_grad():
        return 100 * float((call_model(module, images).argmax(dim=1) == targets).float().mean())


def table(experiment: Experiment, text: str) -> None:
    policy = Policy.uniform(experiment.network.layer_names, Precision.parse(text))
    assert experiment.evaluator("search")(policy).ok
    state = capture(experiment.quantized)
    images, targets = experiment.data.test.inputs, experiment.data.test.targets
    old, inner = restore(experiment.model, state), opened(experiment.model, state, images[:2])
    free, bare = restore(experiment.model, inner), restore(experiment.model, state, hooks=False)
    print(
        f"{text}: unshifted {accuracy(old, images, targets):.1f}, activations in float "
        f"{accuracy(free, images, targets):.1f}"
    )
    for kind in (*KINDS, "none"):
        for strength in (0.25, 0.5, 1.0) if kind != "none" else (0.0,):
            shifted = images if kind == "none" else corrupted(images, kind, strength)
            fresh = restore(experiment.model, renewed(experiment.model, state, [shifted[::2]]))
            part, right = shifted[1::2], targets[1::2]
            before, after, bound, plain = (accuracy(one, part, right) for one in (old, fresh, free, bare))
            shown = f"before {before:5.1f}  after {after:5.1f}  float {bound:5.1f}  inputs too {plain:5.1f}"
            print(f"  {kind:10} {strength:4}  {shown}")


def false_alarms(experiment: Experiment) -> None:
    names = experiment.network.layer_names
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "F"
        make_family(experiment, [Policy.uniform(names, Precision.parse("w8a8"))], out, onnx=True)
        observer, family = Observer(out, 1), load_onnx(out)
        name = family.inputs[0][0]

        def statistics(split):
            return observer([{name: one[None]} for one in split.inputs])

        drift = Drift(statistics(experiment.data.search))
        fresh, rng = statistics(experiment.data.test), np.random.default_rng(0)
        found = [drift(fresh[rng.choice(len(fresh), WINDOW)]) > drift.threshold for _ in range(1000)]
        print(f"{100 * np.mean(found):.1f} % of 1000 windows of the test split alarm (1 % asked for)")
        pool = np.concatenate([statistics(experiment.data.search), statistics(experiment.data.test)])
    rng, alarms = np.random.default_rng(0), []
    for seed in range(30):
        order = rng.permutation(len(pool))
        drift = Drift(pool[order[WINDOW:]], seed=seed)
        alarms.append(drift(pool[order[:WINDOW]]) > drift.threshold)
    print(f"{100 * np.mean(alarms):.1f} % of {len(alarms)} windows of both splits mixed alarm (1 % asked for)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--formats", nargs="+", default=["w8a8", "w4a4"])
    given = parser.parse_args()
    loaded = Experiment.load(given.experiment)
    for text in given.formats:
        table(loaded, text)
    false_alarms(loaded)
