"""The table of scores: rows of runs, columns of metrics, as Markdown and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cdlm.compare import HIGHER, LOWER, NOISE, SAME, Difference, Result, difference
from cdlm.evaluate import OUTSIDE, SINGLE, label
from cdlm.outcome import Record
from cdlm.report.facts import Facts

SIGNS = {HIGHER: "▲", LOWER: "▼", NOISE: "≈", SAME: "="}
ARROWS = {"▲": r"\uparrow", "▼": r"\downarrow", "≈": r"\approx", "=": "="}  # the same in LaTeX


def sign(verdict: str) -> str:
    """A verdict as a sign: never shown without the word."""
    return next((it for word, it in SIGNS.items() if verdict.startswith(word)), "")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One score of one row."""

    value: float
    low: float | None = None  # the ends of the 95 % interval; None where it is not known
    high: float | None = None
    gain: float | None = None  # over the row that the others are compared with
    verdict: str = ""  # what of that is more than noise; "" where nothing is compared
    best: bool = False  # the highest of its column

    @property
    def sign(self) -> str:
        """The verdict as a sign, or ""."""
        return sign(self.verdict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run, or one group of runs."""

    label: str
    images: int
    cells: dict[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Scores of rows; `metrics` names the columns in their order, `about` is what stands below."""

    rows: list[Row]
    metrics: list[str]
    about: str


def of_study(found: Record) -> Table:
    """The means over seeds that a study's table.json holds, and its verdicts."""
    means: dict[str, list[float]] = {}
    for row in found["rows"]:
        for name, score in row["scores"].items():
            means.setdefault(name, []).append(score["mean"])
    names = [name for name in found["scores"] if name in means]
    rows = [
        Row(
            label=row["label"],
            images=found["n"],
            cells={
                name: _mean(row, name, row["scores"][name]["mean"] == max(means[name]))
                for name in names
                if name in row["scores"]
            },
        )
        for row in found["rows"]
    ]
    return Table(rows=rows, metrics=names, about=_about_study(found))


def _about_study(found: Record) -> str:
    """What has to be known to read a study's table."""
    seeds, count = len(found["seeds"]), sum(not row["baseline"] for row in found["rows"])
    base = next(row["label"] for row in found["rows"] if row["baseline"])
    of = (
        f"means of {seeds} seeds, in brackets their 95 % intervals by Student's t"
        if seeds > 1
        else "one seed"
    )
    return (
        f"Split {found['split']}, {found['n']:,} images; {of}. Differences: to {base}; higher or "
        "lower where 0 lies outside of the 95 % intervals from resampled images and from seeds. "
        f"Of {count} comparisons about {count / 20:.1f} would do so by chance. In bold the highest."
    )


def _mean(row: Record, name: str, best: bool) -> Cell:
    """A point's score: its mean over seeds, and how it compares with the baseline's."""
    score, against = row["scores"][name], (row["against_baseline"] or {}).get(name)
    low, high = score["interval"] or (None, None)
    return Cell(
        value=score["mean"],
        low=low,
        high=high,
        gain=against["difference"] if against else None,
        verdict=against["verdict"] if against else "",
        best=best,
    )


def of_runs(runs: Sequence[Facts]) -> Table:
    """The scores of these runs' summaries, with intervals where captions were drawn again."""
    runs = [facts for facts in runs if facts.scores]
    metrics = list(dict.fromkeys(name for facts in runs for name in facts.scores))
    best = {name: max(it.scores.get(name, -1.0) for it in runs) for name in metrics}
    rows = [
        Row(
            label=facts.label,
            images=facts.summary["n"],
            cells={
                name: _cell(facts, runs[0], name, value, len(runs) > 1 and value == best[name])
                for name, value in facts.scores.items()
            },
        )
        for facts in runs
    ]
    return Table(rows=rows, metrics=metrics, about=_about(runs))


def _cell(facts: Facts, first: Facts, name: str, value: float, best: bool) -> Cell:
    gain = _gain(facts, first, name)
    low, high = _interval(facts, name)
    return Cell(
        value=value,
        low=low,
        high=high,
        gain=gain.value if gain else None,
        verdict=gain.verdict if gain else "",
        best=best,
    )


def _interval(facts: Facts, name: str) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval over images: as the run wrote it down, else by its draws."""
    if written := facts.summary.get("intervals", {}).get(name):
        return written[0], written[1]
    if not (facts.draws and name in facts.draws.scores):
        return None, None
    low, high = np.percentile(facts.draws.scores[name], OUTSIDE)
    return float(low), float(high)


def _gain(facts: Facts, first: Facts, name: str) -> Difference | None:
    """What this run has more than the first, where both captioned the same images."""
    if facts is first or not (facts.draws and first.draws):
        return None
    one, two = (Result(it.run.path, it.scores, it.draws) for it in (facts, first) if it.draws)
    found = difference([[(one, two)]], name)
    return found if found and found.images else None


def _about(runs: Sequence[Facts]) -> str:
    """Where the numbers come from, in a sentence or two."""
    if not runs:
        return ""
    data = {f"{it.summary['split']} split of {it.recipe.one('dataset').use}" for it in runs}
    how = {it.summary.get("protocol") or it.summary.get("captions", SINGLE) for it in runs}
    said = [f"{text[:1].upper()}{text[1:]}." for text in (*sorted(data), *sorted(how))]
    said.append("In brackets: 95 % intervals over images; another seed of training may do more.")
    if len(runs) > 1:
        said.append(f"Differences: to {runs[0].label}, by paired bootstrap. In bold the highest.")
    return " ".join(said)


# ------------------------------------------------------------------------------------------- text

LATEX_SIGNS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def markdown(table: Table) -> str:
    """The table in Markdown, with what stands below it."""
    head, *rows = _grid(table, _markdown_cell, _markdown)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", table.about, ""])


def latex(table: Table) -> str:
    """The table in LaTeX, for the package booktabs."""
    head, *rows = _grid(table, _latex_cell, _latex)
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        "\\toprule",
        f"{' & '.join(head)} \\\\",
        "\\midrule",
        *(f"{' & '.join(row)} \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
        f"\\caption{{{_latex(table.about)}{_legend(table)}}}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _grid(
    table: Table, shown: Callable[[Cell], str], escaped: Callable[[str], str]
) -> list[list[str]]:
    """Head and rows as texts; of a single run its metrics are the rows."""
    names = [escaped(label(name)) for name in table.metrics]
    cells = [
        [shown(row.cells[name]) if name in row.cells else "n/a" for name in table.metrics]
        for row in table.rows
    ]
    counts = [f"{row.images:,}" for row in table.rows]
    if len(table.rows) == 1:
        lines = zip(names, cells[0], counts * len(names), strict=True)
        return [["metric", escaped(table.rows[0].label), "N"], *map(list, lines)]
    rows = zip(table.rows, cells, counts, strict=True)
    return [["", *names, "N"], *([escaped(row.label), *it, n] for row, it, n in rows)]


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text)


def _markdown_cell(cell: Cell) -> str:
    value = f"**{cell.value:.4f}**" if cell.best else f"{cell.value:.4f}"
    return value + _brackets(cell) + (f" ({cell.verdict})" if cell.verdict else "")


def _brackets(cell: Cell) -> str:
    return "" if cell.low is None else f" [{cell.low:.4f}, {cell.high:.4f}]"


def _latex_cell(cell: Cell) -> str:
    value = f"\\textbf{{{cell.value:.4f}}}" if cell.best else f"{cell.value:.4f}"
    small = f" {{\\scriptsize{_brackets(cell)}}}" if cell.low is not None else ""
    arrow = f"$^{{{ARROWS[cell.sign]}}}$" if cell.sign else ""
    return value + arrow + small


def _legend(table: Table) -> str:
    signs = {cell.sign for row in table.rows for cell in row.cells.values()}
    said = [f"${ARROWS[it]}$ {word}" for word, it in SIGNS.items() if it in signs]
    return f" {', '.join(said)}." if said else ""


def _latex(text: str) -> str:
    return "".join(LATEX_SIGNS.get(letter, letter) for letter in text)
