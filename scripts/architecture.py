"""Draws how the rooms of `haq` import each other, from the code, and checks that docs/architecture.md lists them.

python scripts/architecture.py            # writes docs/images/architecture.png
python scripts/architecture.py --check    # fails where the page lacks a room or names one that is gone
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "images" / "architecture.png"
WAY = ("trace", "hardware", "quant", "sensitivity", "problem", "solve", "search", "evaluate", "deployed", "export")
"""The rooms that a model goes through, coloured."""


def floors() -> list[list[str]]:
    """The rooms of each floor, from the top down, as the import contract has them."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(contract for contract in tool["contracts"] if contract["type"] == "layers")["layers"]
    return [[name.strip() for name in layer.split("|")] for layer in layers]


def arrows() -> set[tuple[str, str]]:
    """(room, room that it imports)."""
    found = set()
    for file in (ROOT / "haq").rglob("*.py"):
        parts = file.relative_to(ROOT / "haq").parts
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("haq.") and len(parts) > 1:
                other = str(node.module).split(".")[1]
                if other != parts[0]:
                    found.add((parts[0], other))
    return found


def direct(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Without what is reached through another room anyway, and without `edges` and `values`, which all import."""
    kept = {(room, other) for room, other in found if other not in ("edges", "values")}

    def reaches(start: str, end: str, seen: frozenset[str]) -> bool:
        nexts = {other for room, other in kept if room == start and other not in seen}
        return end in nexts or any(reaches(other, end, seen | nexts) for other in nexts)

    return {
        (room, other)
        for room, other in kept
        if not any(
            reaches(third, other, frozenset({room})) for first, third in kept if first == room and third != other
        )
    }


def draw() -> Figure:
    """A box for each room, floor by floor; a line from each to what it imports, reduced by `direct`."""
    rows = floors()
    figure = Figure(figsize=(11, 0.72 * len(rows) + 0.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 11)
    axes.set_ylim(-0.6, len(rows) - 0.2)
    place = {}
    for height, row in enumerate(reversed(rows)):
        for number, room in enumerate(row):
            aside = (height % 3 - 1) * 1.7 if len(row) == 1 else 0.0  # lines pass beside single boxes
            place[room] = (11 * (number + 1) / (len(row) + 1) + aside, float(height))
    for room, other in direct(arrows()):
        if room in place and other in place:
            (x1, y1), (x2, y2) = place[room], place[other]
            axes.annotate(
                "",
                (x2, y2 + 0.2),
                (x1, y1 - 0.2),
                arrowprops={"arrowstyle": "->", "color": "#748191", "lw": 0.8, "connectionstyle": "arc3,rad=0.06"},
            )
    for room, (x, y) in place.items():
        color = "#cfe3f7" if room in WAY else "#f1f3f5"
        box = FancyBboxPatch((x - 0.62, y - 0.2), 1.24, 0.4, boxstyle="round,pad=0.02", fc=color, ec="#495057", lw=0.8)
        axes.add_patch(box)
        axes.text(x, y, room, ha="center", va="center", fontsize=9)
    return figure


def missing() -> list[str]:
    """Rooms that the page does not list, and names that it lists for none."""
    listed = set(re.findall(r"^\| `haq/(\w+)/`", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    rooms = {room for row in floors() for room in row}
    return sorted(rooms ^ listed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        if wrong := missing():
            sys.exit(f"docs/architecture.md: not listed, or gone: {', '.join(wrong)}")
        return
    draw().savefig(PICTURE, dpi=110, facecolor="white")
    for row in floors():
        for room in row:
            source = (ROOT / "haq" / room / "__init__.py").read_text(encoding="utf-8")
            print(f"| `haq/{room}/` | {(ast.get_docstring(ast.parse(source)) or '').splitlines()[0]} |")


if __name__ == "__main__":
    main()
