"""How every figure looks: one colour per number format, fonts, sizes, saving. Sets matplotlib up; no pyplot state.

matplotlib is imported when something is drawn, so that importing `haq.report` stays cheap.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from haq.values.formats import Format

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

INK, MUTED, RULE, ACCENT = "#1f2328", "#69707a", "#dfe3e8", "#b3261e"
RUN_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a", "#000000")
"""Okabe and Ito's palette: one colour per run in comparisons."""
PAGE_WIDTH = 11.0
"""Inches; every figure has this width, so that fonts have one size on the page."""

# Red to yellow to blue with the bits (ColorBrewer's RdYlBu, colour-blind safe, darkened where it meets white paper).
_INTEGERS = {1: "#67001f", 2: "#c62a22", 3: "#ef6a32", 4: "#fbb04e", 5: "#f3dc7c", 6: "#b5dbe0", 7: "#7fb8d8"}
_INTEGERS |= {8: "#3f7fc1", 16: "#26408b", 32: "#1b1f3b"}
_NAMED = {"binary": "#8e0152", "ternary": "#de77ae", "fp16": "#6a51a3", "bf16": "#9e9ac8", "fp32": "#54545c"}
# Of formats that are no plain integers or floats: greens and browns, which no number of bits has.
_TINTS = {
    "scaled float": "#00441b",
    "microscaling": "#1b7837",
    "nvfp4": "#35978f",
    "micro-exponents": "#80cdc1",
    "normal float": "#5aae61",
    "vector-scaled": "#a6dba0",
    "power of two": "#543005",
    "k-means": "#8c510a",
    "product quantization": "#bf812d",
}

_SETTINGS: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "hatch.linewidth": 0.7,
    "figure.dpi": 144,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "haq",
}


def format_color(name: str) -> str:
    """The colour of a number format in every plot and table: the fewer bits, the warmer."""
    if name in _NAMED:
        return _NAMED[name]
    form = Format.parse(name)
    if form.group_size is not None:  # paler than the same bits without groups, the more the finer the groups
        pale = 1 - min(0.6, 12 / (form.group_size + 12) + 0.1)
        return _hex([255 - pale * (255 - c) for c in rgb(format_color(f"int{form.bits}"))])
    if form.family.name in _TINTS:
        tint, own = rgb(_TINTS[form.family.name]), rgb(format_color(f"int{form.bits}"))
        return _hex([0.65 * t + 0.35 * o for t, o in zip(tint, own, strict=True)])
    bits = form.bits
    low = max(known for known in _INTEGERS if known <= bits)
    high = min(known for known in _INTEGERS if known >= bits)
    share = 0.0 if low == high else (bits - low) / (high - low)
    channels = zip(rgb(_INTEGERS[low]), rgb(_INTEGERS[high]), strict=True)
    return _hex([a + share * (b - a) for a, b in channels])


def _hex(channels: Iterable[float]) -> str:
    return "#" + "".join(f"{round(channel):02x}" for channel in channels)


def rgb(color: str) -> tuple[int, int, int]:
    """The channels (0 to 255) of `#rrggbb`."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def text_on(color: str) -> str:
    """Black or white, whichever reads better on `color` (WCAG 2 relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb(color))]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def sorted_formats(names: Iterable[str]) -> list[str]:
    """Distinct format names by their bits, so that legends and axes are ordered alike."""
    return [form.name for form in sorted({Format.parse(name) for name in names})]


def label(text: str, *, longest: int = 24) -> str:
    """Text of a user that is safe in a figure: one line, elided in the middle, `$` never read as mathematics."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    if len(clean) > longest:
        head = (longest - 1) // 3
        clean = f"{clean[:head]}…{clean[len(clean) - (longest - 1 - head) :]}"
    return clean.replace("$", r"\$")


def styled(plot: Callable[P, T]) -> Callable[P, T]:
    """Run `plot` under the settings of this module and leave matplotlib's own as they were."""

    @wraps(plot)
    def draw(*args: P.args, **kwargs: P.kwargs) -> T:
        from matplotlib import rc_context

        with rc_context(_SETTINGS):
            return plot(*args, **kwargs)

    return draw


def new_figure(height: float, *, width: float = PAGE_WIDTH) -> Figure:
    """An empty figure, in inches, that lays itself out."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def rows_of_layers(count: int, *, longest: int = 48, most: int = 8) -> list[range]:
    """Break `count` layers into even rows of at most `longest`; longer ones where that would need over `most` rows."""
    rows = min(most, max(1, math.ceil(count / longest)))
    size = math.ceil(count / rows)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def label_room(names: Sequence[str]) -> float:
    """Inches that the names of layers need under a row of bars."""
    return 0.25 if _flat(names) else 0.2 + 0.065 * max(len(label(name)) for name in names)


def _flat(names: Sequence[str]) -> bool:
    return len(names) <= 12 and max(map(len, names), default=0) <= 10


def show_layers(axes: Axes, names: Sequence[str], *, width: int) -> None:
    """Name the layers under a row of bars that has room for `width`; in very long rows only each second, third, ..."""
    stride = math.ceil(width / 72)
    shown = range(0, len(names), stride)
    upright = width <= 12 and _flat(names)
    axes.set_xticks(list(shown), [label(names[i]) for i in shown], rotation=0 if upright else 90)
    axes.tick_params(axis="x", length=0, labelsize=8 if width <= 30 else 7)
    axes.set_xlim(-0.6, width - 0.4)


def width_for(layers: int) -> float:
    """Inches for a row of `layers` bars: the page's width, less for few."""
    return min(PAGE_WIDTH, 3.6 + 0.5 * layers)


def format_legend(axes: Axes, formats: Sequence[str], extra: Sequence[Any] = ()) -> None:
    """One patch per format on the right of the title; `extra` handles follow."""
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=format_color(name), label=name) for name in formats]
    axes.legend(
        handles=[*patches, *extra],
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        borderpad=0.2,
        ncols=len(patches) + len(extra),
        columnspacing=1.1,
        handlelength=1.4,
        handletextpad=0.5,
    )


def png(figure: Figure) -> bytes:
    """The figure as a PNG image, 144 dots per inch, on white."""
    return _rendered(figure, "png")


def svg(figure: Figure, *, prefix: str) -> str:
    """The figure as an `<svg>` element to put into a page, whose text and rules take the page's colours.

    Args:
        figure: what to write.
        prefix: put before every id, since several figures share one page.
    """
    text = _rendered(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-").replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    for color, variable in ((INK, "ink"), (MUTED, "muted"), (RULE, "rule"), (ACCENT, "accent")):
        text = text.replace(color, f"var(--{variable})")
    width, height = figure.get_size_inches()
    size = f'width="{96 * width:g}" height="{96 * height:g}" viewBox="0 0 {72 * width:g} {72 * height:g}"'
    return re.sub(r"<svg[^>]*>", f'<svg {size} role="img">', text, count=1)


@styled
def _rendered(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "svg":
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    else:
        figure.savefig(buffer, format="png", dpi=144, facecolor="white")
    return buffer.getvalue()
