"""`benchmarks/qat_step.py` and the other libraries' rows of `benchmarks/qat_peers.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from haq.values.formats import Precision

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import qat_peers

    return qat_peers


def test_rows_hold_times_and_memory_against_float(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    import qat_step

    present = {"torch FX": peers.PEERS["torch FX"], "absent": peers.Peer(peers.nncf, "absent", "a-package")}
    monkeypatch.setattr(peers, "PEERS", present)
    options = ["--batch-size", "4", "--repeats", "1", "--threads", "1", "--peers", "--json"]
    monkeypatch.setattr(sys, "argv", ["qat_step.py", *options])
    qat_step.main()
    missing, document = capsys.readouterr().out.splitlines()
    assert missing == "absent: pip install a-package"
    rows = json.loads(document)
    assert rows["eager float"]["wall_median_ratio"] == 1
    assert rows["eager torch FX w4a4"]["kept_mb"] > rows["eager lsq"]["kept_mb"] > 0


def test_a_peer_that_does_not_quantize_as_said_is_refused(peers: ModuleType) -> None:
    images, module = torch.randn(2, 1, 8, 8), nn.Conv2d(1, 2, 3)
    with pytest.raises(RuntimeError, match=r"idle: not w4a4: levels of weights and activations \(9, "):
        peers.check("idle", module, Precision.parse("w4a4"), images)
