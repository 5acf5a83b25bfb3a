"""An emulated Cortex-M7: instructions of each layer of the generated C, the same in every run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from haq.deployed.state import capture
from haq.engine import IntegerModel, LoweringOptions, lower
from haq.export.c.folder import run_command, save_c
from haq.quant import QuantizedModel
from haq.values.policy import Policy

BOARD, CPU = "mps2-an500", "cortex-m7"
_REMEDY = "install Debian's qemu-system-arm, gcc-arm-none-eabi and libnewlib-arm-none-eabi"
_WHAT = "--runtime qemu"


class EmulatedBoard:
    """Builds and runs policies of one model on QEMU's `mps2-an500`.

    Args:
        model: the float model.
        quantized: what wraps it; policies are applied to it.
        inputs: samples, from which ranges are taken; the first one is run.
    """

    def __init__(self, model: nn.Module, quantized: QuantizedModel, inputs: Any) -> None:
        self._model, self._quantized, self._inputs = model, quantized, inputs

    @staticmethod
    def versions() -> dict[str, str]:
        """Board, core, and the first lines of what compiler and emulator say of themselves.

        Raises:
            InputError: one of them is not installed.
        """
        found = {"board": BOARD, "cpu": CPU}
        for tool in ("arm-none-eabi-gcc", "qemu-system-arm"):
            text = run_command([tool, "--version"], cwd=Path(), what=_WHAT, remedy=_REMEDY)
            found[tool] = text.splitlines()[0]
        return found

    def instructions(self, policy: Policy) -> dict[str, float]:
        """Layer -> instructions of one inference; what runs between layers counts to the layer before.

        Raises:
            InputError: the policy cannot be lowered to C, or a tool is missing or fails.
        """
        self._quantized.apply(policy)
        lowered = lower(self._model, capture(self._quantized), self._inputs, LoweringOptions(output_bits=8))
        with tempfile.TemporaryDirectory(prefix="haq-") as name:
            folder = Path(name) / "c"
            save_c(lowered, self._inputs, folder)
            text = run_command(["make", "-s", "count"], cwd=folder, what=_WHAT, remedy=_REMEDY)
        counts = {int(node): float(count) for node, count in (line.split() for line in text.splitlines())}
        return by_layer(lowered, counts)


def by_layer(model: IntegerModel, counts: Mapping[int, float]) -> dict[str, float]:
    """Sums of the counts of nodes, each with the layer before it; what runs before the first counts to that."""
    layers = [node.layer for node in model.nodes if node.layer]
    totals = dict.fromkeys(layers, 0.0)
    current = layers[0]
    for index, node in enumerate(model.nodes):
        current = node.layer or current
        totals[current] += counts[index]
    return totals
