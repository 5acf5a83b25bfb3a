"""Fixtures: fake run folders, built once per session and never written to."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_run import write_fake_run

from haq.results.read import Run, load_run


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 22 layers with baselines and two failed trials."""
    return write_fake_run(tmp_path_factory.mktemp("runs") / "resnet20", trials=12, failed_trials=2)


@pytest.fixture(scope="session")
def run(run_dir: Path) -> Run:
    return load_run(run_dir)
