"""Train the zoo's reference checkpoints: `python scripts/train_zoo.py resnet20 --epochs 14`.

Trains on the train split, watches the search split, and reads the test split once, at the end. The checkpoint's
metadata holds the command and the accuracies.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from haq.zoo import DATASETS, MODELS
from haq.zoo.data import Split

DEFAULTS = {
    "digits_cnn": ("digits", 60),
    "resnet20": ("fashion_mnist", 14),
    "mobilenet_v2_small": ("fashion_mnist", 14),
}


def augment(images: Tensor, generator: torch.Generator, pad: int = 2) -> Tensor:
    """Random shifts by up to `pad` pixels and, for half of the images, a horizontal flip."""
    n, _, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad), mode="replicate")
    top = torch.randint(0, 2 * pad + 1, (n, 1), generator=generator)
    left = torch.randint(0, 2 * pad + 1, (n, 1), generator=generator)
    columns = torch.arange(width).expand(n, width)
    flip = torch.rand((n, 1), generator=generator) < 0.5
    columns = torch.where(flip, width - 1 - columns, columns) + left
    rows = torch.arange(height).expand(n, height) + top
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(model: torch.nn.Module, split: Split) -> float:
    """Per cent of `split` that `model` classifies correctly."""
    model.eval()
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in split.batches(500))
    return 100.0 * hits / len(split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(DEFAULTS))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="autocast the forward pass to bfloat16")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "haq" / "zoo" / "checkpoints")
    args = parser.parse_args()
    dataset, default_epochs = DEFAULTS[args.model]
    epochs = args.epochs or default_epochs

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    data = DATASETS[dataset]()
    model = MODELS[args.model]().to(memory_format=torch.channels_last)
    steps = epochs * (len(data.train) // args.batch_size)
    decay = [p for p in model.parameters() if p.ndim > 1]
    keep = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": 5e-4}, {"params": keep, "weight_decay": 0.0}],
        args.lr,
        momentum=0.9,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.2)
    start = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(data.train), generator=generator)
        total = 0.0
        for index in order.split(args.batch_size):
            if len(index) < args.batch_size:
                continue
            x, y = data.train.inputs[index], data.train.targets[index]
            if dataset != "digits":
                x = augment(x, generator)
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        search = accuracy(model, data.search)
        mean_loss, seconds = total * args.batch_size / len(order), time.perf_counter() - start
        print(f"epoch {epoch + 1}/{epochs}  loss {mean_loss:.4f}  search {search:.2f} %  {seconds:.0f} s", flush=True)

    test = accuracy(model, data.test)
    print(f"test accuracy {test:.2f} %")
    args.out.mkdir(parents=True, exist_ok=True)
    command = f"python scripts/train_zoo.py {args.model} --epochs {epochs} --lr {args.lr}"
    command += f" --batch-size {args.batch_size} --seed {args.seed}"
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        args.out / f"{args.model}.safetensors",
        {
            "command": command + (" --bf16" if args.bf16 else ""),
            "torch": torch.__version__,
            "search_accuracy": f"{search:.2f}",
            "test_accuracy": f"{test:.2f}",
        },
    )


if __name__ == "__main__":
    main()
