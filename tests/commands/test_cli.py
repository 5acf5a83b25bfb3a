"""The `haq` command as a user meets it: what it writes, prints, refuses, and how it goes on after a kill."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from haq.commands.cli import main
from haq.values.policy import Policy

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
FAST = ("--set", "search.max_trials=3", "--set", "sensitivity.samples=64", "--set", "evaluator.samples=100")


@pytest.fixture
def haq(monkeypatch, capsys):
    """Run the command; returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["haq", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run folder of a short search."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    command = [sys.executable, "-m", "haq", "search", str(QUICKSTART), "--out", str(folder), "--json", *FAST]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return folder, json.loads(done.stdout)


def without_times(path):
    """The trials of a journal, less what differs between any two runs."""
    trials = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    for trial in trials:
        trial["measurement"].pop("seconds")
    return trials


def test_search_writes_all_that_it_promises(finished):
    folder, printed = finished
    expected = {"policy.json", "result.json", "trials.jsonl", "trials.csv", "sensitivity.csv", "report.html", "plots"}
    assert expected <= {path.name for path in folder.iterdir()}
    assert printed["verdict"] == json.loads((folder / "result.json").read_text())["verdict"]
    page = (folder / "report.html").read_text()
    assert page.count("<img") + page.count("<svg") >= 5
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", page) == []
    with (folder / "trials.csv").open() as stream:
        assert {"uniform", "greedy", "ilp"} <= {row["source"] for row in csv.DictReader(stream)}


def test_the_policy_file_says_where_it_is_from(finished):
    folder, _ = finished
    document = json.loads((folder / "policy.json").read_text())
    assert set(Policy.from_doc(document["policy"])) == {"stem", "depthwise", "pointwise", "down", "conv", "fc1", "fc2"}
    provenance = document["provenance"]
    assert provenance["seed"] == 0
    assert provenance["splits"] == {"train": 1078, "search": 359, "test": 360}
    assert set(provenance["hashes"]) == {"model", "data", "profile"}
    assert document["predicted"]["latency_ms"] <= document["budgets"]["latency_ms"]


def test_the_answer_is_the_best_on_the_search_split_and_within_budget(finished):
    folder, result = finished
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    within = [
        float(row["score"])
        for row in rows
        if all(float(row[metric]) <= bound for metric, bound in result["budgets"].items())
    ]
    assert result["answer"]["score"] == max(within)


def test_prices_and_drops_are_what_their_numbers_come_to(finished):
    _, result = finished
    answer, floating = result["answer"], result["float"]
    assert result["accuracy_drop"]["search"] == pytest.approx(floating["search_score"] - answer["score"])
    assert result["accuracy_drop"]["test"] == pytest.approx(floating["test_score"] - answer["test_score"])
    prices = []
    for entry in result["marginal"].values():
        points = {point["budget"]: point["objective"] for point in entry["points"]}
        lower, upper = entry["budget"], max(points)
        assert entry["price"] == pytest.approx((points[lower] - points[upper]) / (upper - lower))
        assert upper == pytest.approx(1.25 * lower)
        prices.append(entry["price"])
    assert min(prices) >= 0 < max(prices)  # more of a budget never hurts


def test_cost_and_evaluate_agree_with_the_run(haq, finished):
    folder, result = finished
    policy = folder / "policy.json"
    code, out, _ = haq("cost", QUICKSTART, "--policy", policy, "--json")
    assert code == 0
    assert json.loads(out)["totals"]["latency_ms"] == pytest.approx(result["answer"]["costs"]["latency_ms"], rel=1e-12)
    code, out, _ = haq("evaluate", QUICKSTART, "--policy", policy, *FAST)
    assert code == 0
    assert json.loads(out)["measurement"]["score"] == result["answer"]["score"]
    code, out, _ = haq("cost", QUICKSTART, "--policy", policy)
    assert "latency_ms" in out
    assert "switch" in out or "No switches" in out


def test_evaluate_takes_from_the_cache_what_it_measured_before(haq, finished):
    arguments = ("evaluate", QUICKSTART, "--policy", finished[0] / "policy.json", *FAST)
    documents = [json.loads(haq(*arguments, *more)[1])["measurement"] for more in ((), (), ("--no-cache",))]
    assert documents[0] == documents[1]
    assert documents[2]["score"] == documents[0]["score"]
    assert documents[2]["seconds"] != documents[0]["seconds"]  # measured anew


def test_the_problem_file_of_a_run_solves_to_its_predicted_optimum(haq, finished):
    folder, result = finished
    code, out, err = haq("solve", folder / "problem.json", "--top", 2)
    solved = json.loads(out)
    assert (code, err, solved["status"]) == (0, "", "optimal")
    assert solved["objective"] == pytest.approx(result["predicted_optimum"], rel=1e-9)
    assert len(solved["solutions"]) == 2


def test_sensitivity_and_compare_write_table_and_pages(haq, finished, tmp_path):
    folder, _ = finished
    code, out, _ = haq("sensitivity", QUICKSTART, "--out", tmp_path / "table", "--json", *FAST)
    assert code == 0
    assert {row["layer"] for row in json.loads(out)["rows"]} >= {"stem", "fc2"}
    assert (tmp_path / "table" / "sensitivity.png").stat().st_size > 1000
    code, out, _ = haq("compare", folder, folder, "--out", tmp_path / "both", "--json")
    assert code == 0
    assert len(json.loads(out)["runs"]) == 2
    assert (tmp_path / "both" / "compare.html").exists()


def test_hardware_lists_and_shows(haq):
    code, out, _ = haq("hardware", "list", "--json")
    names = [entry["name"] for entry in json.loads(out)]
    assert code == 0
    assert {"nvidia_t4", "riscv_xpulpnn"} <= set(names)
    code, out, _ = haq("hardware", "show", names[0])
    assert (code, json.loads(out)["name"]) == (0, names[0])


def test_resume_of_a_finished_run_measures_nothing_again(haq, finished):
    folder, result = finished
    before = (folder / "trials.jsonl").read_bytes()
    code, out, _ = haq("search", QUICKSTART, "--out", folder, "--resume", "--json", *FAST)
    assert code == 0
    assert (folder / "trials.jsonl").read_bytes() == before
    assert json.loads(out)["answer"] == result["answer"]


def test_a_run_folder_is_not_overwritten_and_a_changed_setup_not_resumed(haq, finished):
    folder, _ = finished
    code, out, err = haq("search", QUICKSTART, "--out", folder, *FAST)
    assert (code, out) == (2, "")
    assert "a run already exists; add --resume" in err
    code, out, err = haq("search", QUICKSTART, "--out", folder, "--resume", *FAST, "--set", "seed=5")
    assert (code, out) == (2, "")
    assert "seed (0 -> 5)" in err


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_a_journal_cut_anywhere_resumes_to_the_same_trials(haq, finished, tmp_path, cut):
    folder, result = finished
    whole = (folder / "trials.jsonl").read_bytes()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trials.jsonl").write_bytes(whole[: int(cut * len(whole))])
    code, out, _ = haq("search", QUICKSTART, "--out", tmp_path / "run", "--resume", "--json", *FAST)
    assert code == 0
    assert without_times(tmp_path / "run" / "trials.jsonl") == without_times(folder / "trials.jsonl")
    assert json.loads(out)["answer"] == result["answer"]


def test_a_killed_search_resumes(finished, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "haq", "search", str(QUICKSTART), "--out", str(folder), "--no-cache", *FAST]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not (folder / "trials.jsonl").exists() or (folder / "trials.jsonl").read_bytes().count(b"\n") < 4:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    subprocess.run([*command, "--resume"], capture_output=True, check=True)
    assert without_times(folder / "trials.jsonl") == without_times(finished[0] / "trials.jsonl")


def test_infeasible_budgets_exit_with_3_and_the_least_achievable(haq, tmp_path):
    code, out, err = haq("search", QUICKSTART, "--out", tmp_path / "run", "--set", "budgets.latency_ms=1e-6")
    assert (code, out) == (3, "")
    assert "least achievable" in err
    assert not (tmp_path / "run").exists()


def test_an_int8_only_device_refuses_four_bit(haq, tmp_path):
    overrides = ("--set", "device.profile=edge_tpu", "--set", "space.weights=['int4']", "--set", "budgets.bops='50%'")
    code, out, err = haq("search", QUICKSTART, "--out", tmp_path / "run", *overrides)
    assert (code, out) == (2, "")
    assert "edge_tpu" in err
    assert "int4" in err or "w4" in err


HOSTILE = {
    "unknown section": "[serach]\n",
    "unknown key": "[search]\nmax_trails = 3\n",
    "wrong type": "[search]\nmax_trials = 'many'\n",
    "boolean for a number": "seed = true\n",
    "unknown strategy": "[search]\nstrategy = 'magic'\n",
    "unknown option": "[search]\noptions = {gapp = 1}\n",
    "unknown metric": "[sensitivity]\nmetric = 'guess'\n",
    "unknown format": "[space]\nweights = ['int9x']\n",
    "no formats": "[space]\nweights = []\n",
    "unknown layer": "[space.layers]\nnothing = ['w8a8']\n",
}


@pytest.mark.parametrize("addition", HOSTILE.values(), ids=HOSTILE)
def test_a_bad_experiment_is_one_clear_line(haq, tmp_path, addition):
    base = {
        "model": 'name = "digits_cnn"',
        "data": 'name = "digits"',
        "device": 'profile = "riscv_xpulpnn"',
        "budgets": 'latency_ms = "60%"',
    }
    tables = "".join(f"[{name}]\n{body}\n" for name, body in base.items())
    top, rest = (addition, "") if not addition.startswith("[") else ("", addition)
    file = tmp_path / "bad.toml"
    file.write_text(f"{top}{tables}{rest}")
    code, out, err = haq("search", file, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("haq: ")
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ("0", "a budget is a number above 0"),
        ("-1", "a budget is a number above 0"),
        ("nan", "a budget is a number above 0"),
        ("'fast'", "a budget is a number above 0"),
        ("true", "a budget is a number above 0"),
    ],
)
def test_a_budget_that_is_none_is_refused(haq, budget, told):
    code, _, err = haq("search", QUICKSTART, "--set", f"budgets.latency_ms={budget}")
    assert code == 2
    assert told in err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "not valid JSON"),
        ('{"a": 1', "not valid JSON"),
        ('{"stem": {}, "stem": {}}', "appears twice"),
        ('{"stem": {"weight_bits": NaN, "activation_bits": 8}}', "NaN is not a number"),
        ("[1, 2]", "not a policy"),
        ('{"conv9": {"weight_bits": 8, "activation_bits": 8}}', "conv9"),
        ('{"stem": {"weight_bits": 8, "activation_bits": 8, "bits": 2}}', "unknown key 'bits'"),
    ],
)
def test_a_bad_policy_file_is_one_clear_line(haq, tmp_path, content, told):
    file = tmp_path / "policy.json"
    file.write_text(content)
    for command in ("cost", "evaluate"):
        code, out, err = haq(command, QUICKSTART, "--policy", file)
        assert (code, out) == (2, "")
        assert told in err
        assert "policy.json" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("search", "missing.toml"),
        ("search", str(QUICKSTART), "--set", "seed"),
        ("search", str(QUICKSTART), "--nonsense"),
        ("solve", "missing.json"),
        ("solve", str(QUICKSTART)),
        ("cost", str(QUICKSTART)),
        ("compare", "missing", "--out", "x"),
        ("hardware", "show", "abacus"),
    ],
    ids=" ".join,
)
def test_bad_arguments_exit_with_2(haq, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = haq(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("haq: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(hasattr(os, "getuid") and os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_clear_line(haq, tmp_path):
    tmp_path.chmod(0o500)
    code, _, err = haq("search", QUICKSTART, "--out", tmp_path / "run", *FAST)
    assert code == 2
    assert "run" in err.splitlines()[-1]
