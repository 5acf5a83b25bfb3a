"""What a room hands on without importing it."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.toml"
ROOMS = ["haq", "haq.quant", "haq.evaluate", "haq.search", "haq.sensitivity", "haq.training"]


def test_reading_an_experiment_file_imports_no_torch_and_no_solver():
    code = (
        "import sys, haq; haq.load_experiment(sys.argv[1]); "
        "print([name for name in ('torch', 'pulp', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, QUICKSTART], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_gives_every_name_that_it_lists(room):
    module = import_module(room)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert set(module.__all__) <= set(dir(module))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'haq\.quant' has no attribute 'Qantizer'"):
        _ = import_module("haq.quant").Qantizer
