"""What is written: plots, pages, tables; and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_run import write_fake_run

from haq.report import compare_runs, write_heat_map, write_plots, write_report
from haq.results.read import load_run
from haq.values.errors import InputError

_VOID = {"meta", "br", "img", "hr", "link", "input"}
_HOSTILE = ["<script>alert(1)</script>", "a$b$c", "x" * 80, 'd"e', "-->", "&amp;", "</svg>", "{{ 7 * 7 }}"]


class Page(HTMLParser):
    """Collects tags, attributes and text; a tag that is not closed in order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_self_contained(page: Page, *, scripts: int = 0) -> None:
    assert page.open == []
    assert page.tags.count("script") == scripts
    assert not {"iframe", "object", "embed", "base", "form", "link"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href", "srcset", "action"):
            assert value.startswith(("#", "data:image/")), value
        if name == "style":
            assert "url(http" not in value


def png_size(file: Path) -> tuple[int, int]:
    content = file.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def copy(run_dir: Path, target: Path) -> Path:
    return Path(shutil.copytree(run_dir, target, ignore=shutil.ignore_patterns("plots", "report.html")))


def edit(run_dir: Path, **changes: Any) -> None:
    document = json.loads((run_dir / "result.json").read_text())
    (run_dir / "result.json").write_text(json.dumps(document | changes))


def test_plots_are_written(run_dir: Path, tmp_path: Path) -> None:
    files = write_plots(copy(run_dir, tmp_path / "run"))
    names = {file.stem for file in files}
    assert names == {"accuracy", "bits", "costs_latency_ms", "sensitivity", "prediction", "marginal"}
    assert all(min(png_size(file)) > 200 for file in files)


def test_report_is_one_sound_page(run_dir: Path, tmp_path: Path) -> None:
    folder = copy(run_dir, tmp_path / "run")
    page = Page(write_report(folder).read_text())
    assert_self_contained(page)
    result = load_run(folder).result
    assert page.tags.count("svg") == 6
    for text in (
        result.verdict,
        result.device.title,
        result.command,
        f"{result.answer.test_score} %",
        *result.warnings,
    ):
        assert text in page.text
    for layer in result.answer.policy:
        assert layer in page.text


def test_ids_in_the_report_are_unique(run_dir: Path, tmp_path: Path) -> None:
    page = Page(write_report(copy(run_dir, tmp_path / "run")).read_text())
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for name, value in page.attributes if name == "xlink:href" and value[0] == "#"}
    assert targets <= set(ids)


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    folder = write_fake_run(
        tmp_path / "run",
        layers=len(_HOSTILE),
        names=_HOSTILE,
        name="<script>alert(2)</script>",
        title='"><img src=x onerror=alert(3)>',
        trials=2,
    )
    write_plots(folder)
    page = Page(write_report(folder).read_text())
    assert_self_contained(page)
    assert "img" not in page.tags
    for name in _HOSTILE:
        assert name in page.text


@pytest.mark.parametrize("layers", [1, 8, 150])
def test_any_number_of_layers_fits_the_page(layers: int, tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", layers=layers, trials=2)
    for file in write_plots(folder):
        width, height = png_size(file)
        assert 400 < width <= 11 * 144
        assert height < 20 * 144


def test_missing_baselines_are_told(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", layers=4, trials=3, failed_trials=3, baselines=False)
    write_plots(folder)
    page = Page(write_report(folder).read_text())
    assert "best uniform within budget: none exists" in page.text
    assert "policies that failed" in page.text


def test_a_device_without_latency_shows_size(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", layers=4, metrics=("size_bytes",), trials=2)
    assert "costs_size_bytes" in {file.stem for file in write_plots(folder)}
    assert "Latency" not in Page(write_report(folder).read_text()).text


def test_a_run_without_extras_still_makes_a_page(run_dir: Path, tmp_path: Path) -> None:
    folder = copy(run_dir, tmp_path / "run")
    (folder / "sensitivity.csv").unlink()
    (folder / "trials.jsonl").write_text("")
    edit(folder, marginal={}, references=[], baselines={}, score_noise=None, warnings=[], bound=None)
    assert {file.stem for file in write_plots(folder)} == {"accuracy", "bits", "costs_latency_ms"}
    assert_self_contained(Page(write_report(folder).read_text()))


def test_an_accuracy_drop_budget_is_shown_in_points(run_dir: Path, tmp_path: Path) -> None:
    folder = copy(run_dir, tmp_path / "run")
    result = load_run(folder).result
    edit(folder, budgets={"accuracy_drop": 0.25}, objective="latency_ms", marginal={})
    assert result.unquantized.search_score is not None
    assert result.answer.score is not None
    used = result.unquantized.search_score - result.answer.score
    text = Page(write_report(folder).read_text()).text
    assert "0.25 points" in text
    assert f"{used:.4g} points" in text


def test_heat_map_of_a_table_alone(run_dir: Path, tmp_path: Path) -> None:
    write_heat_map(run_dir / "sensitivity.csv", tmp_path / "sensitivity.png")
    assert min(png_size(tmp_path / "sensitivity.png")) > 200
    with pytest.raises(InputError, match="no sensitivities in it"):
        write_heat_map(tmp_path / "absent.csv", tmp_path / "x.png")


def test_importing_the_report_does_not_import_matplotlib() -> None:
    code = "import sys, haq.report; print(any(name in sys.modules for name in ('matplotlib', 'jinja2', 'pandas')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_plotting_leaves_matplotlib_settings_alone(run_dir: Path, tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    write_plots(copy(run_dir, tmp_path / "run"))
    assert dict(mpl.rcParams) == before


def test_compare_overlays_runs(run_dir: Path, tmp_path: Path) -> None:
    other = write_fake_run(tmp_path / "other", trials=5, name="other", metrics=("size_bytes", "bops"))
    rows = compare_runs([run_dir, other], tmp_path / "out")
    with (tmp_path / "out" / "compare.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [row["run"] for row in table] == ["resnet20_t4_ilp", "other"]
    assert float(table[1]["size_bytes"]) == load_run(other).result.answer.costs["size_bytes"]
    assert "latency_ms" not in rows[0]
    page = Page((tmp_path / "out" / "compare.html").read_text())
    assert_self_contained(page, scripts=2)
    assert {file.stem for file in (tmp_path / "out" / "plots").iterdir()} == {"accuracy", "progress", "bits"}
    assert "budgets.size bytes" in page.text


def test_compare_of_other_layers_leaves_the_strips_out(run_dir: Path, tmp_path: Path) -> None:
    other = write_fake_run(tmp_path / "other", layers=5, trials=2)
    rows = compare_runs([run_dir, other], tmp_path / "out")
    assert not (tmp_path / "out" / "plots" / "bits.png").exists()
    assert [row["run"] for row in rows] == ["resnet20", "other"]


def test_compare_names_equal_runs_apart(run_dir: Path, tmp_path: Path) -> None:
    rows = compare_runs([run_dir, run_dir], tmp_path / "out")
    assert [row["run"] for row in rows] == ["resnet20_t4_ilp #1", "resnet20_t4_ilp #2"]


def test_compare_refuses_another_score(run_dir: Path, tmp_path: Path) -> None:
    other = write_fake_run(tmp_path / "other", layers=2, trials=2, score="negative_mse")
    with pytest.raises(InputError, match=r"other: its score is negative_mse.*compare runs of one score"):
        compare_runs([run_dir, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_compare_needs_two_runs(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two or more run folders"):
        compare_runs([run_dir], tmp_path / "out")


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def _truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text((folder / name).read_text()[:500])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("result.json"), "has no result.json; give the folder of a finished run"),
        (_truncate("result.json"), r"result\.json: not valid JSON"),
        (_write("result.json", "[]"), r"result\.json: top level"),
        (_write("result.json", '{"schema_version": 2}'), r"result\.json: schema_version"),
        (lambda folder: edit(folder, answer=None), r"result\.json: answer"),
        (lambda folder: edit(folder, budgets={"latency_ms": "much"}), r"result\.json: budgets\.latency_ms"),
        (lambda folder: edit(folder, breakdown={"layers": [{"name": "a", "precision": "w4", "costs": {}}]}), "w4a8"),
        (_remove("policy.json"), r"policy\.json: no such file"),
        (_write("policy.json", "{}"), r"policy\.json: no section `provenance`"),
        (_remove("trials.jsonl"), r"trials\.jsonl: no such file"),
        (_write("trials.jsonl", '{"setup": 1}\n{"policy": 3}\n\n'), r"trials\.jsonl: line 2 is no trial"),
        (_write("sensitivity.csv", "layer,kind\na,weight\n"), r"sensitivity\.csv: not a table"),
        (_write("sensitivity.csv", "layer,kind,format,sensitivity\na,weight,int99,1"), "unknown number format 'int99'"),
    ],
    ids=[
        "no result", "torn result", "list", "other version", "no answer", "text for a budget", "bad precision",
        "no policy", "no provenance", "no journal", "bad trial", "missing column", "bad format",
    ],
)  # fmt: skip
def test_damaged_runs_are_refused(run_dir: Path, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    folder = copy(run_dir, tmp_path / "run")
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder; give the folder of a finished run"):
        write_plots(tmp_path / "absent")
