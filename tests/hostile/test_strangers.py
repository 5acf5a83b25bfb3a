"""Files from strangers: none runs code or a command, none is read without end, none steers terminal or spreadsheet."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_run import write_fake_run

from haq.commands.cli import main
from haq.edges import documents
from haq.edges.cells import csv_text, from_cell
from haq.edges.documents import write_json
from haq.experiment.experiment import Experiment
from haq.report.html import report_html
from haq.results.read import load_run, load_sensitivities
from haq.runs.remeasure import check_remeasure
from haq.search.journal import Journal
from haq.values.errors import InputError, printable

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "experiments" / "quickstart.toml"
LAYERS = ("stem", "depthwise", "pointwise", "down", "conv", "fc1", "fc2")
HOSTILE = "a\nb\x1b[31m\x07"
CALL = {"factory": "subprocess:getoutput", "options": {"cmd": "touch PWNED"}}
FORMULA = "=cmd|' /C calc'!A0"


@pytest.fixture
def haq(monkeypatch, capsys):
    """Run the command; returns exit code and everything that it said."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["haq", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped, limit(60):
            main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out + captured.err

    return run


@contextmanager
def limit(seconds: int):
    """Whoever waits for a pipe is woken: the test fails instead of hanging."""

    def alarm(*_):
        raise TimeoutError(f"no answer within {seconds} seconds")

    previous = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def stored_run(folder: Path, **sections: dict) -> Path:
    """A run folder whose policy says that it is from the quickstart, with these sections changed."""
    config = Experiment.load(QUICKSTART).config.model_dump(mode="json")
    for name, changes in sections.items():
        config[name] = {**config[name], **changes}
    policy = {name: {"weight_bits": 4, "activation_bits": 8} for name in LAYERS}
    folder.mkdir()
    document = {"schema_version": 1, "policy": policy, "provenance": {"config": config}}
    (folder / "policy.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"model": {"name": None, **CALL}}, "model.factory"),
        ({"data": {"name": None, **CALL}}, "data.factory"),
        ({"evaluator": {"metric": "planted:metric"}}, "evaluator.metric"),
        ({"evaluator": {"loss": "planted:metric"}}, "evaluator.loss"),
        ({"evaluator": {"kind": "qat", "qat": {"training_step": "planted:step"}}}, "evaluator.qat.training_step"),
        ({"device": {"command": "touch PWNED"}}, "device.command"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_run_folder_runs_no_code(haq, tmp_path, monkeypatch, sections, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted.py").write_text("open('PWNED', 'w')\n")
    run = stored_run(tmp_path / "run", **sections)
    code, said = haq("export", run, "--format", "aimet", "--out", tmp_path / "x.json")
    assert code == 2
    assert f"its experiment runs code, {key} = " in said
    assert "--experiment" in said
    assert not (tmp_path / "PWNED").exists()
    assert not (tmp_path / "x.json").exists()


def test_the_users_own_experiment_file_may_name_code(haq, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from haq.zoo import load_model\ndef model():\n    return load_model('digits_cnn')\n"
    )
    text = QUICKSTART.read_text().replace('name = "digits_cnn"', 'factory = "mine:model"')
    (tmp_path / "mine.toml").write_text(text)
    run = stored_run(tmp_path / "run", model={"name": None, "factory": "mine:model"})
    assert haq("export", run, "--format", "aimet", "--out", "x.json")[0] == 2
    assert haq("export", run, "--experiment", "mine.toml", "--format", "aimet", "--out", "x.json")[0] == 0


def stranger_profile(folder: Path) -> Path:
    text = (ROOT / "hardware_profiles" / "riscv_xpulpnn.toml").read_text()
    measured = (
        '\n[measured]\ncpu = "board"\nthreads = 1\ncommand = "touch PWNED"\nlow = "w8a8"\nnetwork = "x"\n'
        "noise_floor_percent = 1.0\nerror_percent = 1.0\nguard_percent = 1.0\n"
    )
    path = folder / "board.toml"
    path.write_text(text + measured)
    return path


def test_a_profile_runs_no_command(haq, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = stranger_profile(tmp_path)
    code, said = haq("validate", profile, "--experiment", QUICKSTART, "--policies", 2, "--rounds", 2, "--out", "v")
    assert code == 2
    assert "measured with the command 'touch PWNED', which is run only if you name it" in said
    overrides = [f"device.profile={profile}", "search.remeasure=2"]
    with pytest.raises(InputError, match="which is run only if you name it"):
        check_remeasure(Experiment.load(QUICKSTART, overrides=overrides))
    assert not (tmp_path / "PWNED").exists()


def test_a_write_never_goes_through_a_planted_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    monkeypatch.setattr(documents.secrets, "token_hex", lambda size: "guessed")
    (tmp_path / ".haq-guessed.tmp").symlink_to(victim)
    with pytest.raises(InputError, match="cannot be written: File exists"):
        write_json(tmp_path / "policy.json", {"a": 1})
    (tmp_path / ".haq-guessed.tmp").unlink()
    (tmp_path / "policy.json").symlink_to(victim)
    write_json(tmp_path / "policy.json", {"a": 1})
    assert not (tmp_path / "policy.json").is_symlink()
    (tmp_path / "trials.jsonl").symlink_to(victim)
    with pytest.raises(InputError, match=r"trials\.jsonl: cannot be written"):
        Journal.create(tmp_path / "trials.jsonl", {})
    assert victim.read_text() == "mine"


def test_a_new_file_has_the_permissions_that_the_user_gives(tmp_path):
    previous = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(previous)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def endless(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, documents.LARGEST_JOURNAL + 1)


COMMANDS = {
    "problem": ("x.json", ("solve", "x.json")),
    "experiment": ("x.toml", ("cost", "x.toml", "--policy", "p.json")),
    "policy": ("x.json", ("cost", QUICKSTART, "--policy", "x.json")),
    "stored policy": ("x.json", ("export", "x.json", "--format", "aimet", "--out", "o")),
    "profile": ("x.toml", ("hardware", "show", "x.toml")),
    "ground truth": ("x.json", ("bench", "regret", "x.json", "--out", "o")),
    "result": ("run/result.json", ("compare", "run", "--out", "o")),
    "trials": ("run/trials.jsonl", ("compare", "run", "--out", "o")),
    "sensitivities": ("run/sensitivity.csv", ("compare", "run", "--out", "o")),
    "journal": ("run/trials.jsonl", ("search", QUICKSTART, "--out", "run", "--resume")),
    "sensitivity table": ("run/sensitivity.json", ("sensitivity", QUICKSTART, "--out", "run")),
    "sweep": ("x.toml", ("sweep", "x.toml", "--out", "o")),
    "checkpoint": ("x.safetensors",
                   ("cost", QUICKSTART, "--policy", "p.json", "--set", "model.checkpoint='{folder}/x.safetensors'")),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
@pytest.mark.parametrize("command", COMMANDS)
def test_only_regular_files_up_to_a_size_are_read(haq, tmp_path, monkeypatch, command, kind):
    if kind == "large" and command == "checkpoint":
        pytest.skip("weights may be as large as they are")
    monkeypatch.chdir(tmp_path)
    name, arguments = COMMANDS[command]
    if name.startswith("run/"):
        write_fake_run(tmp_path / "run", layers=3, trials=3)
        (tmp_path / name).unlink(missing_ok=True)
    endless(tmp_path / name, kind)
    code, said = haq(*(str(argument).replace("{folder}", str(tmp_path)) for argument in arguments))
    assert code == 2, said
    assert Path(name).name in said
    assert "Error" not in said


def test_a_picture_that_is_a_pipe_is_refused(tmp_path):
    from haq.zoo.images import load_images

    for index in range(3):
        os.mkfifo(tmp_path / f"{index}.png")
    with limit(30), pytest.raises(InputError, match=r"png: cannot be read: is no regular file"):
        load_images(str(tmp_path), size=4, train=1, search=1, test=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("cost", QUICKSTART, "--policy", "p.json", "--set", f"data.name={'x' * 4000}"),
        ("cost", QUICKSTART, "--policy", "p.json", "--set", f"space.weights=['{'x' * 4000}']"),
        ("cost", QUICKSTART, "--policy", "long.json"),
        ("hardware", "show", "long.toml"),
        ("hardware", "show", "x" * 4000),
        ("solve", "long_problem.json"),
    ],
    ids=["data", "formats", "policy", "profile", "name", "problem"],
)
def test_a_value_of_a_megabyte_is_not_said_whole(haq, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    long = "x" * 2**20
    policy = {name: {"weight_bits": 4, "activation_bits": 8} for name in LAYERS}
    (tmp_path / "p.json").write_text(json.dumps(policy))
    (tmp_path / "long.json").write_text(json.dumps({long: policy["stem"], **policy}))
    (tmp_path / "long.toml").write_text(f'schema_version = 1\nkind = "{long}"\n')
    (tmp_path / "long_problem.json").write_text(json.dumps({"schema_version": 1, "layers": [], "objective": long}))
    code, said = haq(*arguments)
    assert code == 2
    assert len(said) < 1000
    assert not re.search("x{400}", said)


def test_names_do_not_steer_the_terminal(haq, tmp_path):
    document = {"schema_version": 1, "layers": [{"name": HOSTILE, "choices": []}], "budgets": {}, "objective": HOSTILE}
    (tmp_path / "p.json").write_text(json.dumps(document))
    code, said = haq("solve", tmp_path / "p.json")
    assert code == 2
    assert said.strip().isprintable()
    assert printable("é – x\n") == "é – x\n"


def test_names_do_not_steer_a_page(tmp_path):
    names = ["plain", HOSTILE, FORMULA, "--><script>alert(1)</script>", "fc"]
    page = report_html(load_run(write_fake_run(tmp_path / "run", layers=5, names=names, trials=4)))
    assert not [character for character in page if not character.isprintable() and character != "\n"]
    assert "<script>alert" not in page


def test_names_are_no_formulas_and_come_back(tmp_path):
    names = [FORMULA, "+1", "-x", "@a", "'quoted", "plain", HOSTILE, "a,b"]
    rows = [{"layer": name, "kind": "weight", "format": "int4", "sensitivity": 0.5} for name in names]
    (tmp_path / "sensitivity.csv").write_text(csv_text(rows))
    with (tmp_path / "sensitivity.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert {layer for layer, _ in load_sensitivities(tmp_path / "sensitivity.csv")} == set(names)
    assert from_cell("'plain") == "'plain"
