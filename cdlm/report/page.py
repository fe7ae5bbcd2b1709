"""The report as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from cdlm import __version__, probe, toml
from cdlm.compare import ONE_SEED
from cdlm.evaluate import label
from cdlm.frontier import LESSER
from cdlm.outcome import Record
from cdlm.probe import Probe
from cdlm.recipe import TABLES
from cdlm.report import charts, figures, gallery, tables
from cdlm.report.facts import Facts
from cdlm.report.figures import Chart
from cdlm.report.tables import Cell, Table
from cdlm.report.trace import Trace, Traces

if TYPE_CHECKING:
    from markupsafe import Markup

ROWS = 12  # of a trace, at most; of more, evenly chosen ones
NUMBERS = 30  # rows of numbers under a figure
TILES = 3  # scores at the head of the page
DIFF = 20_000  # letters of uncommitted changes; the run's provenance has all
SIZE = "00000000"  # stands for the page's size until it is known


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart as it stands on the page, and its numbers as a table."""

    chart: Chart
    svg: Markup
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One row of a trace: each word, and whether it is final, new as such, or still open."""

    step: int
    t: float
    words: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A trace as it stands on the page."""

    image_id: str
    moments: list[Moment]
    settled: list[int]
    steps: int

    @property
    def width(self) -> int:
        """How many words the longest row has."""
        return max((len(it.words) for it in self.moments), default=1) or 1


@dataclass(frozen=True, kw_only=True)
class Story:
    """What a report is of: runs and their table; or a study's table, and a run of each point."""

    title: str
    about: str
    command: str  # that makes the report
    runs: list[Facts]
    table: Table
    study: Record | None = None  # what table.json holds
    failed: list[tuple[str, str, str]] = field(default_factory=list)  # of a study: as `missing`

    @property
    def missing(self) -> list[tuple[str, str, str]]:
        """What can't be shown: (run, what, why), once for each reason of a run."""
        found: dict[tuple[str, str], list[str]] = {}
        for facts in self.runs:
            for what, why in facts.missing.items():
                found.setdefault((facts.label, why), []).append(what)
        return [*self.failed, *((run, ", ".join(it), why) for (run, why), it in found.items())]

    @property
    def single(self) -> Facts | None:
        """The only run."""
        return self.runs[0] if len(self.runs) == 1 and not self.study else None


def page(story: Story) -> str:
    """The whole page. What can't be shown is left out, and named among what is missing."""
    script = _part("page.js")
    text = (
        _environment()
        .get_template("page.html")
        .render(
            **_figures(story),
            **_samples(story),
            **_texts(story),
            story=story,
            runs=story.runs,
            single=story.single,
            table=story.table,
            study=story.study,
            missing=story.missing,
            style=_part("page.css"),
            script=script,
            script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
            version=__version__,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            size=SIZE,
        )
    )
    size = f"{len(text.encode()) / 1e6:.2f} MB".ljust(len(SIZE))
    return text.replace(SIZE, size)


def _figures(story: Story) -> dict[str, Any]:
    """The figures of each section."""
    runs, study = story.runs, story.study
    made = {
        "learning": charts.learning(runs),
        "restoration": charts.restoration(runs),
        "quality": [*(charts.cost(study) if study else []), *charts.quality(runs)],
        "settling": charts.settling(runs),
    }
    return {name: [_figure(it) for it in found] for name, found in made.items()}


def _samples(story: Story) -> dict[str, Any]:
    """Captions: gallery and traces. Made first of all, as it may note that pictures are missing."""
    runs = story.runs
    return {
        "groups": gallery.groups(runs, runs[0].recipe.seed) if runs else [],
        "marked": any(it is not None for facts in runs for it in facts.verdicts),
        "traces": [(it, _shown(it.traces, trace)) for it in runs for trace in _some(it, len(runs))],
    }


def _texts(story: Story) -> dict[str, Any]:
    """Tables, recipes, provenance, and what the template needs to word them."""
    runs = story.runs
    shown = [name for name in story.table.metrics if name not in LESSER]
    return {
        "markdown": tables.markdown(story.table),
        "latex": tables.latex(story.table),
        "shown": shown,
        "tiles": shown[:TILES],
        "tried": _tried(runs),
        "differences": _differences(runs),
        "recipes": [(it, _recipe(it)) for it in runs],
        "provenance": [(it, _provenance(it)) for it in runs],
        "asked": (probe.WITH, probe.WITHOUT, probe.NEAREST),
        "restored": probe.SHARE,
        "most_diff": DIFF,
    }


def _tried(runs: Sequence[Facts]) -> list[str]:
    """What samplers were tried on, in a sentence; for each run where it is not the same."""
    said = {}
    for facts in runs:
        if found := facts.frontier:
            sets = [it for it in found.sets if it != f"evaluate.split={found.split}"]
            beside = f", with {' '.join(sets)}" if sets else ""
            said[facts.label] = (
                f"Samplers were tried on the first {found.images:,} images of the split "
                f"{found.split}{beside}, each once, on {found.device}"
            )
    if len(set(said.values())) < 2:
        return list(said.values())[:1]
    return [f"{label}: {how}" for label, how in said.items()]


def _counted(found: Probe) -> str:
    """What a restoration curve was measured on."""
    return (
        f"{found.words:,} words of {found.captions:,} captions, {found.split} split, "
        f"weights of step {found.step:,}"
    )


def _part(name: str) -> str:
    return (files("cdlm.report") / name).read_text(encoding="utf-8")


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cdlm.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": label, "till": probe.till, "spoken": _spoken, "each": _each,
        "range": _range, "sign": tables.sign, "word": _word, "counted": _counted,
    }  # fmt: skip
    return environment


def _word(verdict: str) -> str:
    """A verdict without what holds of the whole table."""
    return verdict.removesuffix(ONE_SEED)


def _spoken(number: float) -> str:
    """A large number as people say it: 1.2 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def _each(seconds: float, n: int) -> str:
    """The time for one of n."""
    one = seconds / max(n, 1)
    return f"{1000 * one:.3g} ms" if one < 1 else f"{one:.3g} s"


def _range(cell: Cell) -> str:
    """Where an interval lies on a scale that begins at 0, as CSS variables."""
    low, high = (cell.value if it is None else it for it in (cell.low, cell.high))
    scale = 10.0 ** math.ceil(math.log10(max(cell.value, high, 0.1)))
    ends = {"low": low, "value": cell.value, "high": high}
    return "; ".join(f"--{name}: {max(it, 0) / max(scale, 1):.4f}" for name, it in ends.items())


# ---------------------------------------------------------------------------------------- figures


def _figure(chart: Chart) -> Figure:
    from markupsafe import Markup

    xs = sorted({x for across, _ in chart.curves.values() for x in across})
    kept = _evenly(xs, NUMBERS)
    known = {name: dict(zip(*points, strict=True)) for name, points in chart.curves.items()}
    rows = [[f"{x:.4g}", *(_number(it.get(x)) for it in known.values())] for x in kept]
    return Figure(
        chart=chart, svg=Markup(figures.svg(chart)), head=[chart.across, *known], rows=rows
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _evenly(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the values, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


# ----------------------------------------------------------------------------------------- traces


def _some(facts: Facts, runs: int) -> list[Trace]:
    """All traces of a single run; of several, the first of each."""
    found = facts.traces.traces if facts.traces else []
    return found if runs == 1 else found[:1]


def _shown(traces: Traces | None, trace: Trace) -> Shown:
    assert traces
    moments, before = [], -1
    said = trace.said
    news = [i for i in range(len(said)) if i in (0, len(said) - 1) or said[i] != said[i - 1]]
    for step in _evenly(news, ROWS):
        words = [(it, _state(trace, place, step, before)) for place, it in enumerate(said[step])]
        moments.append(Moment(step=step, t=traces.times[step], words=words))
        before = step
    return Shown(
        image_id=trace.image_id,
        moments=moments,
        settled=trace.settled,
        steps=len(trace.said) - 1,
    )


def _state(trace: Trace, place: int, step: int, before: int) -> str:
    """What a word is at a step, seen after the step `before`."""
    if place >= len(trace.settled) or trace.settled[place] > step:
        return "open"
    return "new" if trace.settled[place] > before else "final"


# ---------------------------------------------------------------------------- recipes, provenance


def _recipe(facts: Facts) -> Markup:
    """The resolved recipe, its parts told apart."""
    from markupsafe import Markup
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import TOMLLexer

    return Markup(highlight(facts.recipe.toml(), TOMLLexer(), HtmlFormatter(nowrap=True)))


def _flat(facts: Facts) -> dict[str, str]:
    """The recipe's values by dotted name, components whole."""
    flat: dict[str, str] = {}
    for name, value in facts.recipe.values().items():
        if name in TABLES:
            flat |= {f"{name}.{key}": toml.text(it) for key, it in value.items()}
        elif name != "about":
            flat[name] = toml.text(value)
    return flat


def _differences(runs: Sequence[Facts]) -> dict[str, list[str]]:
    """The values of recipes that are not the same in all of these runs."""
    flats = [_flat(facts) for facts in runs]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    values = {name: [flat.get(name, "") for flat in flats] for name in names}
    return {name: it for name, it in values.items() if len(set(it)) > 1}


def _provenance(facts: Facts) -> dict[str, str]:
    """What is needed to repeat the run, line by line."""
    known, git = facts.provenance, facts.provenance.get("git", {})
    changed = git.get("changed", [])
    lines = {
        "run": facts.run.path.name,
        "recipe hash": facts.recipe.hash,
        "seed": facts.recipe.seed,
        "started": known.get("started"),
        "command": " ".join(["cdlm", *known.get("argv", [])[1:]]),
        "commit": git.get("commit") or f"none: {git.get('reason', 'unknown')}",
        "changed files": ", ".join(changed) if changed else "none" if git.get("commit") else None,
        "weights of step": facts.summary.get("step"),
        "sampling": _sampling(facts),
        "versions": _pairs(known.get("versions", {})),
        "plugins": _pairs(known.get("plugins", {})),
        "machine": known.get("platform"),
        "evaluated on": facts.summary.get("device"),
        "processors": known.get("cpus"),
        "threads": known.get("threads"),
    }
    return {name: str(value) for name, value in lines.items() if value not in (None, "")}


def _pairs(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _sampling(facts: Facts) -> str:
    if not facts.summary:
        return ""
    seconds, n = facts.summary["sampling_seconds"], facts.summary["n"]
    return f"{n:,} captions in {seconds:.1f} s, {1000 * seconds / max(n, 1):.1f} ms each"
