"""The documents name what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
PATH = re.compile(r"`((?:haq|hardware_profiles|experiments|scripts|tests|benchmarks|docs|\.ci)/[\w./*-]*)`")


def named_paths():
    for document in DOCUMENTS:
        for name in sorted(set(PATH.findall((ROOT / document).read_text(encoding="utf-8")))):
            yield pytest.param(name, id=f"{document}:{name}")


@pytest.mark.parametrize("name", named_paths())
def test_every_path_that_a_document_names_exists(name):
    assert list(ROOT.glob(name)) if "*" in name else (ROOT / name).exists()


def test_the_documents_name_paths_at_all():
    assert len(list(named_paths())) > 20


@pytest.mark.parametrize("document", DOCUMENTS)
def test_pictures_and_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert missing == []
