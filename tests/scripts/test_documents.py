"""The documents name what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PATH = re.compile(r"`((?:haq|hardware_profiles|experiments|scripts|tests|benchmarks|docs|\.ci)/[\w./*-]*)`")


def named_paths():
    return [
        pytest.param(name, id=f"{document}:{name}")
        for document in DOCUMENTS
        for name in sorted(set(PATH.findall((ROOT / document).read_text(encoding="utf-8"))))
    ]


@pytest.mark.parametrize("name", named_paths())
def test_every_path_that_a_document_names_exists(name):
    assert list(ROOT.glob(name)) if "*" in name else (ROOT / name).exists()


def test_the_documents_name_paths_at_all():
    assert len(named_paths()) > 20


@pytest.mark.parametrize("document", DOCUMENTS)
def test_pictures_and_links_lead_somewhere(document):
    file = ROOT / document
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", file.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (file.parent / target).exists()]
    assert missing == []
