"""Curves as a PNG, in one style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cdlm.rundir import draft

INK, GREY, HAIRLINE = "#1c1f24", "#858b94", "#dfe2e6"
COLOURS = ("#2563eb", "#e07a1f", "#1f9d55", "#8b4fc8", "#d64545", "#12879b", "#8a6d1b", "#c2458f")
MARKS = "osD^vPX*"
SIZE = (7.2, 4.4)  # inches
DPI = 200
ROUND = [step * 10.0**power for power in range(-6, 7) for step in (1, 2, 5)]  # ticks of logarithms


def lines(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    across: str,
    up: str,
    log: bool = False,
    floor: float | None = 0.0,
    ceiling: float | None = None,
    beneath: tuple[Sequence[float], Sequence[float]] | None = None,
    note: str = "",
) -> None:
    """Draw each curve (xs, ys) by its name, and write the file whole or not at all.

    `across` and `up` name the axes, with their units; `log` spaces x by its logarithm; `floor` and
    `ceiling` are the ends of y, None to suit the curves; `beneath` is a broad pale line of steps
    under them all; `note` stands small at the foot. Raises OSError.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if beneath:
        axes.step(*beneath, where="post", color=HAIRLINE, linewidth=7, solid_capstyle="round")
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        axes.plot(
            xs, ys, label=name, color=COLOURS[i % len(COLOURS)], marker=MARKS[i % len(MARKS)],
            markersize=4, linewidth=1.6,
        )  # fmt: skip
    if log:
        axes.set_xscale("log")
        seen = [x for xs, _ in curves.values() for x in xs]
        ticks = [it for it in ROUND if min(seen) <= it <= max(seen)] or sorted(set(seen))
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    axes.set_ylim(floor, ceiling)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(across, fontsize=9, color=INK)
    axes.set_ylabel(up, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK, length=3)
    axes.grid(color=HAIRLINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(GREY)
    figure.legend(loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
    if note:
        figure.supxlabel(note, fontsize=7, color=GREY, x=0.01, ha="left")
    with draft(path) as place:
        figure.savefig(place, format="png")
