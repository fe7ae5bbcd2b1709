"""Curves as SVG for the page: their colours and type are the page's, so they follow its theme.

matplotlib draws each colour as a stand-in, which becomes a CSS variable; text stays text. A figure
is drawn at the width of a telephone (SIZE, in units of 1/72 inch, which the page takes for pixels)
and scales from there.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from cdlm.charts import ROUND

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (340, 244)
INK, GREY, HAIRLINE = "#0a0b0c", "#0a0b0d", "#0a0b0e"  # stand-ins: nobody sees these
STAND_INS = {
    INK: "var(--ink)", GREY: "var(--grey)", HAIRLINE: "var(--line)",
    **{f"#0b0b{i:02d}": f"var(--series-{i})" for i in range(1, 9)},
}  # fmt: skip
SERIES = [colour for colour in STAND_INS if colour.startswith("#0b0b")]
MARKS = "osD^vPX*"
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

Points = tuple[Sequence[float], Sequence[float]]  # xs, ys


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What a figure shows: curves by name over common axes, which it names with their units."""

    name: str  # unique on the page, [a-z-]
    title: str
    across: str
    up: str
    curves: Mapping[str, Points]
    about: str = ""  # what stands below it
    log: bool = False  # x by its logarithm, where it spans enough
    whole: bool = False  # x counts something
    log_up: bool = False  # y too
    span: tuple[float | None, float | None] = (None, None)  # of y
    beneath: Points | None = None  # a broad pale line of steps under all curves
    dots: bool = True  # mark each point, unless there are many


def svg(chart: Chart) -> str:
    """The figure as an SVG element."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": chart.name, "font.size": 10.5,
        "axes.edgecolor": GREY, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "text.color": INK, "axes.linewidth": 0.8, "axes.unicode_minus": True,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(SIZE[0] / 72, SIZE[1] / 72), layout="constrained")
        FigureCanvasSVG(figure)
        _draw(figure.add_subplot(), chart)
        _legend(figure, chart)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(out.getvalue(), chart)


def _draw(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    if chart.beneath:
        axes.step(*chart.beneath, where="post", color=HAIRLINE, linewidth=7, zorder=0)
    for i, (name, (xs, ys)) in enumerate(chart.curves.items()):
        few = chart.dots and len(xs) <= 24
        axes.plot(
            xs, ys, label=name, color=SERIES[i % len(SERIES)], linewidth=1.5,
            linestyle=DASHES[i // 2 % len(DASHES)], markersize=3.6 if len(xs) > 1 else 7,
            marker=MARKS[i % len(MARKS)] if few else "",
        )  # fmt: skip
    if chart.whole:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if chart.log:
        _log(axes, "x", [x for xs, _ in chart.curves.values() for x in xs])
    if chart.log_up:
        _log(axes, "y", [y for _, ys in chart.curves.values() for y in ys])
    axes.set_ylim(*chart.span)
    axes.set_xlabel(chart.across)
    axes.set_title(chart.up, loc="left", fontsize=10.5)
    axes.tick_params(length=3, width=0.8)
    axes.grid(color=HAIRLINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _log(axes: Axes, which: Literal["x", "y"], seen: Sequence[float]) -> None:
    """A logarithmic axis with round numbers on it, where there are some between the ends."""
    ticks = [it for it in ROUND if min(seen) <= it <= max(seen)]
    if len(ticks) < 2:
        return
    ticks = ticks[:: 1 + len(ticks) // 8]
    axes.set(**{f"{which}scale": "log", f"{which}ticks": ticks})
    axes.set(**{f"{which}ticklabels": [f"{it:g}" for it in ticks]})
    axes.minorticks_off()


def _legend(figure: Figure, chart: Chart) -> None:
    """Below the axes, in as many columns as the names leave room for."""
    if len(chart.curves) < 2:
        return
    longest = max(map(len, chart.curves))
    columns = max(1, min(len(chart.curves), 52 // (longest + 7)))
    legend = figure.legend(
        loc="outside lower center", frameon=False, ncols=columns, fontsize=10, handlelength=2.6,
        columnspacing=1.2, borderpad=0,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)  # names of runs are no formulas


# ------------------------------------------------------------------------------------ for the page


def _inlined(text: str, chart: Chart) -> str:
    """The SVG element for a page: sized by it, coloured by it, ids its own, described in words."""
    for stand_in, variable in STAND_INS.items():
        text = text.replace(stand_in, variable)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", text))
    for extra in [it for it in root if it.tag == f"{{{SVG}}}metadata"]:
        root.remove(extra)
    for defs in root.findall(f"{{{SVG}}}defs"):  # a style there would be the whole page's
        for style in defs.findall(f"{{{SVG}}}style"):
            defs.remove(style)
    for element in root.iter():
        _own_ids(element, chart.name)
        if font := element.get("style"):
            element.set("style", re.sub(r"font-family:[^;]*;", "", font))  # the page's own type
    root.attrib.update({"role": "img", "aria-label": _in_words(chart)})
    del root.attrib["width"], root.attrib["height"]
    return ElementTree.tostring(root, encoding="unicode")


def _own_ids(element: ElementTree.Element, name: str) -> None:
    """Ids that no other figure of the page has; groups need none."""
    if element.tag == f"{{{SVG}}}g":
        element.attrib.pop("id", None)
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == f"{{{XLINK}}}href":
            element.set(key, f"#{name}-{value[1:]}")
        else:
            element.set(key, value.replace("url(#", f"url(#{name}-"))


def _in_words(chart: Chart) -> str:
    """For those who can't see it: what is drawn, and each curve's ends."""
    ends = [
        f"{name}: from {ys[0]:.3g} at {xs[0]:.3g} to {ys[-1]:.3g} at {xs[-1]:.3g}"
        for name, (xs, ys) in chart.curves.items()
    ]
    return f"{chart.title}. {chart.up} against {chart.across}. {'; '.join(ends)}."
