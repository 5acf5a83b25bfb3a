"""The cache key changes with the code that measures."""

import shutil
from pathlib import Path

import pytest

import haq
from haq.experiment import measurement_key

PACKAGE = Path(haq.__file__).parent
MEASURING = ["quant", "training", "evaluate", "zoo"]


@pytest.fixture
def copied(tmp_path, monkeypatch):
    for room in MEASURING:
        shutil.copytree(PACKAGE / room, tmp_path / room, ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    monkeypatch.setattr(measurement_key, "_PACKAGE", tmp_path)
    yield tmp_path
    measurement_key.code_version.cache_clear()


def version():
    measurement_key.code_version.cache_clear()
    return measurement_key.code_version()


@pytest.mark.parametrize("room", MEASURING)
def test_an_edit_in_a_measuring_room_is_another_key(room, copied):
    before = version()
    file = sorted((copied / room).rglob("*.py"))[-1]
    file.write_text(file.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")
    assert version() != before


def test_the_key_of_unchanged_code_stays(copied):
    assert version() == version()
