"""All that a report says of a run, read from its folder; what is not to be had, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cdlm import recipe as recipes
from cdlm.compare import Draws
from cdlm.compose import dataset, metrics
from cdlm.errors import CdlmError
from cdlm.evaluate import label, marks
from cdlm.frontier import Frontier
from cdlm.probe import Probe
from cdlm.protocols import Metric, Split
from cdlm.recipe import Recipe
from cdlm.records import Answers
from cdlm.report.kept import Kept
from cdlm.report.trace import Traces
from cdlm.rundir import METRICS, SAMPLES, RunDir

Curve = tuple[list[int], list[float]]  # steps, values
Found = TypeVar("Found")


@dataclass(kw_only=True)
class Facts:
    """One run. What is None, or empty, `missing` explains."""

    label: str
    run: RunDir
    recipe: Recipe
    provenance: dict[str, Any]
    summary: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)  # what training logged, by name
    split: Split | None = None  # the images that were captioned, where their files are there
    answers: Answers | None = None
    verdicts: list[bool | None] = field(default_factory=list)
    draws: Draws | None = None
    probe: Probe | None = None
    frontier: Frontier | None = None
    traces: Traces | None = None
    missing: dict[str, str] = field(default_factory=dict)  # what: why

    @property
    def scores(self) -> dict[str, float]:
        """What the run's summary says, less what was not finite; {} where it was not evaluated."""
        return {k: it for k, it in self.summary.get("scores", {}).items() if it is not None}


def gather(run: RunDir, label: str, kept: Kept, frontier: bool = True) -> Facts:
    """Read a run, and measure what is not measured yet. Raises CdlmError where it is no run.

    frontier: whether to try every sampler, which takes longest; else as `cdlm frontier` left it.
    """
    place = str(run.recipe)
    facts = Facts(
        label=label,
        run=run,
        recipe=recipes.loads(run.recipe_text(), run.path.parent.name, place=place),
        provenance=run.provenance(),
        curves=_curves(run),
    )
    if not facts.curves:
        facts.missing["learning curves"] = "nothing was logged: it has not been trained yet"
    _read_answers(facts, kept)
    facts.probe = _try(facts, "restoration curve", kept.probe)
    if frontier or kept.has_frontier:
        facts.frontier = _try(facts, "quality against steps", kept.frontier)
    facts.traces = _try(facts, "denoising trace", kept.traces)
    return facts


def _try(facts: Facts, what: str, make: Callable[[], Found]) -> Found | None:
    """What is made, or None and the reason among what is missing."""
    try:
        return make()
    except CdlmError as error:
        facts.missing[what] = str(error).partition("\n")[0].removeprefix(f"{facts.run.path}: ")
        return None


def _curves(run: RunDir) -> dict[str, Curve]:
    """Steps and values by name; values that were not finite are left out."""
    curves: dict[str, Curve] = {}
    for record in run.records(METRICS):
        if record["value"] is not None:
            steps, values = curves.setdefault(record["name"], ([], []))
            steps.append(record["step"])
            values.append(record["value"])
    return curves


# ----------------------------------------------------------------------------------------- scores


def _read_answers(facts: Facts, kept: Kept) -> None:
    """Captions, scores and their intervals into the facts."""
    place = facts.run.path / SAMPLES
    if not (facts.run.finished and place.is_file()):
        facts.missing["scores, gallery"] = (
            "it has not been evaluated yet; go on with: cdlm run ... --resume"
        )
        return
    facts.summary = facts.run.summary()
    facts.missing |= {label(k): why for k, why in facts.summary.get("not_scored", {}).items()}
    records = facts.run.records(SAMPLES)
    name = facts.summary["split"]
    split = _try(facts, "images", lambda: dataset(facts.recipe).split(name))
    rows = {image_id: i for i, image_id in enumerate(split.ids)} if split else {}
    known = all(record["image_id"] in rows for record in records)
    facts.split = split if known else None
    if split and not known:
        facts.missing["images"] = f"the dataset's split {name} is not the one that was captioned"
    facts.answers = Answers(
        image_ids=[it["image_id"] for it in records],
        captions=[it["caption"] for it in records],
        references=[it["references"] for it in records],
        truths=[split.truths[rows[it["image_id"]]] if split and known else None for it in records],
    )
    _judge(facts, kept)


def _judge(facts: Facts, kept: Kept) -> None:
    """Each caption's verdict, and the draws behind the intervals."""
    assert facts.answers
    answers, judges = facts.answers, _judges(facts)
    facts.verdicts = marks(judges, answers)
    facts.draws = _try(facts, "intervals", lambda: kept.draws(judges, answers))


def _judges(facts: Facts) -> list[Metric]:
    """The recipe's metrics; without the dataset, those that need captions alone."""
    return [it for it in metrics(facts.recipe) if facts.split or not it.needs]


# ----------------------------------------------------------------------------------------- labels


def labels(runs: Sequence[RunDir]) -> list[str]:
    """A short name for each run: its recipe's, with its options and seed where several share it."""
    short = [run.path.resolve().parent.name for run in runs]
    if len(set(short)) == len(short):
        return short
    options = [run.path.resolve().name.rpartition("-")[0] or run.path.name for run in runs]
    if len(set(short)) > 1:
        options = [f"{name} {option}" for name, option in zip(short, options, strict=True)]
    if len(set(options)) == len(options):
        return options
    return [f"{option} ({i})" for i, option in enumerate(options, start=1)]
