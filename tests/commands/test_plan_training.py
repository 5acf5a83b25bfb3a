from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from haq.commands.cli import main


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["haq", "plan-training", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()  # type: ignore[return-value]

    return run


def test_a_slower_link_takes_fewer_workers(plan: Any) -> None:
    counts = []
    for bandwidth in ("1e6", "1e10"):
        code, out, _ = plan("--parameters", "270000", "--compute-seconds", "2", "--bandwidth", bandwidth, "--json")
        assert code == 0
        counts.append(json.loads(out)["recommended"]["workers"])
    assert counts[0] < counts[1]


def test_the_table_names_what_to_take(plan: Any) -> None:
    code, out, _ = plan("--parameters", "270000", "--compute-seconds", "2", "--bandwidth", "1e8")
    assert code == 0
    assert "take " in out
    assert "s a step" in out


@pytest.mark.parametrize(("option", "value"), [("--bandwidth", "0"), ("--compute-seconds", "-1"), ("--latency", "nan")])
def test_impossible_figures_are_refused(plan: Any, option: str, value: str) -> None:
    given = {"--parameters": "10", "--compute-seconds": "1", "--bandwidth": "1e9", option: value}
    code, _, err = plan(*[part for pair in given.items() for part in pair])
    assert code == 2
    assert option in err
