from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from haq.problem.problem import load_problem

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"


def run(script: str, data: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / script), str(DATA / data), "--write-problems", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_hawq_v3_problems_are_solved_to_the_published_policies(tmp_path: Path) -> None:
    done = run("reproduce_hawq_v3.py", "hawq_v3_resnet.json", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "17 of 18 policies as published" in done.stdout
    assert load_problem(tmp_path / "resnet50_size_bytes_0.25.json").objective == "sensitivity"


def test_haq_leaves_fifty_bits_unused(tmp_path: Path) -> None:
    done = run("reproduce_haq.py", "haq_mobilenetv2_latency_table.json", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_problem(tmp_path / "haq_mobilenetv2_0.60.json").budgets["cycles"] > 0
