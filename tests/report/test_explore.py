"""The interactive part of a comparison, its data and its page in a real browser."""

import json
import re
import shutil
import subprocess

import pytest
from fake_run import write_fake_run

from haq.report import compare_runs
from haq.report.explore import explore_data
from haq.results.read import load_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A comparison of two runs."""
    base = tmp_path_factory.mktemp("explore")
    runs = [write_fake_run(base / name, trials=6, failed_trials=1) for name in ("first", "second")]
    compare_runs(runs, base / "both")
    return base


def browse(page, tmp_path, *arguments, fragment=""):
    """What headless Chromium prints and logs for a page."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=2000", f"--user-data-dir={tmp_path}", *arguments, f"file://{page}{fragment}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_points_are_the_measured_trials(folder):
    runs = [load_run(folder / name) for name in ("first", "second")]
    data = explore_data(("a", "b"), runs, ("latency_ms", "size_bytes"))
    measured = [trial for run in runs for trial in run.trials if trial.measurement.ok]
    assert [point["score"] for point in data["points"]] == [trial.measurement.score for trial in measured]
    assert {point["run"] for point in data["points"]} == {0, 1}
    layer, weight, activation = data["points"][0]["policy"][0]
    assert (weight, activation) == (
        measured[0].policy[layer].weight.name,
        measured[0].policy[layer].activation.name,
    )


def test_names_cannot_break_out_of_the_page(folder, tmp_path):
    run = write_fake_run(tmp_path / "odd", trials=3)
    result = json.loads((run / "result.json").read_text())
    result["experiment"]["name"] = "</script><script>alert(1)</script>"
    (run / "result.json").write_text(json.dumps(result))
    compare_runs([run, folder / "first"], tmp_path / "both")
    page = (tmp_path / "both" / "compare.html").read_text()
    assert "<script>alert" not in page
    assert len(re.findall("<script", page)) == 2


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_page_shows_its_points_and_the_difference_of_two_in_a_browser(folder, tmp_path):
    data = json.loads(
        re.search(r'id="explore-data">(.*?)</script>', (folder / "both" / "compare.html").read_text(), re.S).group(1)
    )
    first, second = data["points"][0]["policy"], data["points"][-1]["policy"]
    expected = sum(a != b for a, b in zip(first, second, strict=True))
    shown = browse(folder / "both" / "compare.html", tmp_path, "--dump-dom", fragment=f"#0,{len(data['points']) - 1}")
    assert len(re.findall(r"<circle[^>]*data-index", shown.stdout)) == len(data["points"])
    count = re.search('id="explore-count">([^<]*)<', shown.stdout).group(1)
    assert count == (f"{expected} of {len(first)} layers differ." if expected else "The same formats everywhere.")
    assert "CONSOLE" not in shown.stderr
