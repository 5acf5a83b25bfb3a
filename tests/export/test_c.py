"""The generated C equals the engine bit for bit, here and on an emulated Cortex-M7."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from integer_models import lowered

from haq.deployed.state import capture
from haq.engine import IntegerModel, IntegerRunner, LoweringOptions, lower
from haq.export.c.arena import Block, lay_out
from haq.export.c.folder import CRunner, save_c
from haq.export.c.plan import pack
from haq.quant import QuantizedModel
from haq.values.errors import InputError
from haq.values.formats import Precision
from haq.values.policy import Policy
from haq.zoo import DATASETS, load_model

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
needs_emulator = pytest.mark.skipif(
    shutil.which("qemu-system-arm") is None or shutil.which("arm-none-eabi-gcc") is None, reason="no emulator"
)
_SANITIZED = "CFLAGS=-std=c99 -O1 -g -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover"


def _agree(model: IntegerModel, x: torch.Tensor, folder: Path) -> None:
    save_c(model, x, folder)
    runner = IntegerRunner(model)
    (integers,) = runner.quantize(x).values()
    (wanted,) = runner.integers({model.inputs[0].name: integers})
    assert torch.equal(CRunner(folder).integers(integers), wanted.reshape(len(x), -1))


@needs_compiler
@pytest.mark.parametrize(
    ("kind", "policy", "rounding"),
    [
        ("convolutions", "mixed", "half_away"),
        ("convolutions", "w8a8", "gemmlowp"),
        ("joins", "w8a8", "half_even"),
        ("joins", "low", "half_up"),
    ],
)
def test_the_c_equals_the_engine(kind: str, policy: str, rounding: str, tmp_path: Path) -> None:
    model, _, x = lowered(kind, policy, rounding=rounding, output_bits=8)
    _agree(model, x, tmp_path / "c")


@needs_compiler
def test_it_is_clean_under_sanitizers(tmp_path: Path) -> None:
    for kind, policy in (("convolutions", "low"),):
        model, _, x = lowered(kind, policy, output_bits=8)
        save_c(model, x, tmp_path / kind)
        done = subprocess.run(["make", "check", _SANITIZED], cwd=tmp_path / kind, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@needs_compiler
def test_make_check_fails_where_an_output_differs(tmp_path: Path) -> None:
    model, _, x = lowered("joins", "w8a8", output_bits=8)
    save_c(model, x, tmp_path / "c")
    changed = list(model.nodes)
    last = model[model.outputs[0]]
    table = {key: array + (key == "bias") * 1000000 for key, array in last.arrays.items()}
    changed[-1] = replace(last, arrays=table)
    save_c(replace(model, nodes=tuple(changed)), x, tmp_path / "other")
    shutil.copy(tmp_path / "other/vectors.h", tmp_path / "c/vectors.h")
    assert subprocess.run(["make", "check"], cwd=tmp_path / "c", capture_output=True).returncode != 0


def _digits(count: int) -> tuple[list[IntegerModel], torch.Tensor]:
    """The digits network under random policies."""
    rng = random.Random(0)
    data, model = DATASETS["digits"](), load_model("digits_cnn")
    wrapped = QuantizedModel(model, calibration=list(data.train.head(256).batches(256)))
    models = []
    for _ in range(count):
        bits = [(rng.choice([1, 2, 3, 4, 5, 8]), rng.choice([1, 2, 3, 4, 6, 8])) for _ in wrapped.layers]
        pairs = zip(wrapped.layers, bits, strict=True)
        wrapped.apply(Policy({name: Precision.parse(f"w{w}a{a}") for name, (w, a) in pairs}))
        models.append(lower(model, capture(wrapped), data.train.head(64).inputs, LoweringOptions(output_bits=8)))
    return models, data.test.inputs


@needs_compiler
def test_random_policies_of_the_digits_network(tmp_path: Path) -> None:
    models, images = _digits(2)
    for index, model in enumerate(models):
        _agree(model, images, tmp_path / str(index))


@needs_compiler
@pytest.mark.slow
def test_fifty_random_policies_over_a_thousand_images(tmp_path: Path) -> None:
    models, _ = _digits(50)
    data = DATASETS["digits"]()
    images = torch.cat([data.train.inputs, data.search.inputs])[:1000]
    for index, model in enumerate(models):
        _agree(model, images, tmp_path / str(index))


@needs_emulator
def test_the_emulated_cortex_m7_computes_the_same(tmp_path: Path) -> None:
    (model,), images = _digits(1)
    save_c(model, images[:20], tmp_path / "c")
    done = subprocess.run(["make", "check-qemu"], cwd=tmp_path / "c", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "20 test vectors, 0 wrong outputs" in done.stdout


@needs_emulator
@pytest.mark.slow
def test_ten_policies_on_the_emulated_cortex_m7_and_m4(tmp_path: Path) -> None:
    models, images = _digits(10)
    for index, model in enumerate(models):
        folder = tmp_path / str(index)
        save_c(model, images[:20], folder)
        for core in ([], ["CPU=cortex-m4", "BOARD=mps2-an386"]):
            done = subprocess.run(["make", "-B", "check-qemu", *core], cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


@needs_compiler
def test_a_hostile_layer_name_stays_in_its_comment(tmp_path: Path) -> None:
    model, _, x = lowered("joins", "w8a8", output_bits=8)
    evil = '*/ int injected; #include "/etc/passwd" /* \\\n'
    nodes = tuple(replace(node, layer=evil) if node.layer else node for node in model.nodes)
    _agree(replace(model, nodes=nodes), x, tmp_path / "c")
    assert "injected;" not in (tmp_path / "c/model.c").read_text()


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    model, _, x = lowered("joins", "w8a8", output_bits=8)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is in use"):
        save_c(model, x, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_operator_without_a_kernel_is_named(tmp_path: Path) -> None:
    model, _, x = lowered("transformer", "w8a8", output_bits=8)
    with pytest.raises(InputError, match="no C kernel for"):
        save_c(model, x, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [(None, "needs cc, which is not installed"), ("echo 'x.c:1: error: no luck' >&2; exit 1", "cc failed: .*no luck")],
    ids=["none", "failing"],
)
def test_the_compiler_is_named_where_it_is_missing_or_fails(
    script: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, x = lowered("joins", "w8a8", output_bits=8)
    save_c(model, x, tmp_path / "c")
    tools = tmp_path / "bin"
    tools.mkdir()
    if script is not None:
        (tools / "cc").write_text(f"#!/bin/sh\n{script}\n")
        (tools / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(InputError, match=message):
        CRunner(tmp_path / "c")


@pytest.mark.parametrize("seed", range(20))
def test_blocks_that_live_together_do_not_overlap(seed: int) -> None:
    rng = random.Random(seed)
    blocks = [Block(str(i), rng.randint(1, 999), s := rng.randint(0, 9), s + rng.randint(0, 4)) for i in range(12)]
    arena = lay_out(blocks)
    for step in range(14):
        live = sorted((arena.offsets[b.name], b.bytes) for b in blocks if b.first <= step <= b.last)
        assert all(at + size <= after for (at, size), (after, _) in pairwise(live))
    assert arena.lower_bound <= arena.bytes <= 1.5 * arena.lower_bound


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_packed_integers_come_in_order_from_the_lowest_bit(bits: int) -> None:
    values = torch.randint(0, 2**bits, (13,), generator=torch.Generator().manual_seed(bits)).numpy()
    whole = int.from_bytes(pack(values, bits), "little")
    assert [whole >> bits * i & (2**bits - 1) for i in range(13)] == values.tolist()
