"""Starting the command line, and the experiments that come with it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from haq import InputError
from haq.commands.cli import app
from haq.experiment.examples import example_names


def test_the_command_line_starts_without_what_it_may_not_need():
    code = (
        "import sys, haq.commands.cli; print([n for n in ('torch', 'numpy', 'matplotlib', 'ray') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_example_searches_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--example", "quickstart", "--out", "run", "--set", "search.max_trials=1", "--json"]
    done = CliRunner().invoke(app, ["search", *options])
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout)["trials"] >= 1
    assert "quickstart" in example_names()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give an experiment file, or --example quickstart"),
        (["--example", "nothing"], "known: .*quickstart"),
        (["mine.toml", "--example", "quickstart"], "leave it out, or the file mine.toml"),
    ],
)
def test_what_is_meant_is_one_experiment(arguments, message):
    done = CliRunner().invoke(app, ["search", *arguments])
    assert isinstance(done.exception, InputError)
    with pytest.raises(InputError, match=message):
        raise done.exception
