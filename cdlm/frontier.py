"""One checkpoint, every sampler, one table: quality against steps, network calls and seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from cdlm import plugins, rundir
from cdlm.compose import metrics
from cdlm.errors import CdlmError, RecipeError, nearest
from cdlm.evaluate import LABELS, evaluate
from cdlm.progress import Tell, silent
from cdlm.records import Answers
from cdlm.run import Job, caption_features

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Point:
    """One sampler at one number of steps."""

    sampler: str
    steps: int
    calls: int  # of the network, for one caption
    seconds: float  # of sampling them all
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """What was measured, on the same images with the same first noise."""

    split: str
    images: int
    step: int  # of the weights
    device: str
    sets: list[str]  # how it was sampled, apart from sampler and steps
    points: list[Point]

    @property
    def metric(self) -> str:
        """The first metric of the recipe: the one that counts."""
        return next(iter(self.points[0].scores))


def samplers(wanted: str) -> list[str]:
    """The samplers of a list with commas, or all there are. Raises CdlmError for others."""
    known = plugins.load().registry.names("sampler")
    names = [name.strip() for name in wanted.split(",") if name.strip()] or known
    for name in names:
        if name not in known:
            raise CdlmError(f'--samplers: no sampler is called "{name}"; {nearest(name, known)}')
    return list(dict.fromkeys(names))


def measure(
    job: Job, names: Sequence[str], steps: Sequence[int], limit: int, tell: Tell = silent
) -> Frontier:
    """Sample and score the first `limit` images of the evaluation split in every way.

    Each sampler has its own defaults, but the recipe's where it is the recipe's. The way that takes
    longest is not warmed up: one short call before all warms the machine.
    Raises RunError, CdlmError, RecipeError where a sampler can't do without a parameter.
    """
    step, plan = job.load_weights(), job.recipe.evaluate
    split, table = job.split(plan.split), job.features(plan.split, tell)
    table = table[: limit or None]
    rows = slice(len(table))
    ways = [(name, _with(job, name, n), n) for name in names for n in steps]
    caption_features(ways[0][1], table[:2], job.recipe.seed, plan.batch)
    points = []
    for i, (name, way, n) in enumerate(ways):
        tell("samplers", i, len(ways), f"{name}, {n} steps")
        with _calls(way.parts.network) as calls:
            began = time.perf_counter()
            said = caption_features(way, table, job.recipe.seed, plan.batch)
            seconds = time.perf_counter() - began
        answers = Answers(
            image_ids=split.ids[rows],
            captions=[it.caption for it in said],
            references=split.captions[rows],
            truths=split.truths[rows],
        )
        scores = {score.name: score.value for score in evaluate(metrics(job.recipe), answers)}
        share = calls[0] // (len(table) * way.parts.selection.count)
        points.append(Point(sampler=name, steps=n, calls=share, seconds=seconds, scores=scores))
    tell("samplers", len(ways), len(ways), "")
    return Frontier(
        split=plan.split,
        images=len(table),
        step=step,
        device=job.device,
        sets=list(job.recipe.sets),
        points=points,
    )


def _with(job: Job, name: str, steps: int) -> Job:
    """The job with another sampler. Its parameters are the recipe's where it is the same one."""
    own = job.recipe.one("sampler").use == name
    sets = [] if own else [f'sampler={{ use = "{name}" }}']
    try:
        return job.sampling([*sets, f"sampler.steps={steps}"])
    except RecipeError as error:
        raise CdlmError(f"sampler {name} can't be tried as it is: {error}") from error


@contextmanager
def _calls(network: nn.Module) -> Iterator[list[int]]:
    """Counts the captions that pass the network: calls times their batch."""
    seen = [0]

    def count(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[0] += len(given[0])

    handle = network.register_forward_pre_hook(count)
    try:
        yield seen
    finally:
        handle.remove()


# ----------------------------------------------------------------------------------------- shown


def table(found: Frontier, title: str) -> Table:
    """A row for each sampler and number of steps; the best value of each metric in bold."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = list(found.points[0].scores)
    best = {name: max(point.scores[name] for point in found.points) for name in names}
    caption = Text(
        f"{found.split} split, first {found.images:,} images, weights of step {found.step}, on "
        f"{found.device}; single runs, timed one after the other; best in bold",
        style="dim",
        justify="left",
    )
    drawn = Table(title=Text(title), caption=caption, title_justify="left", box=box.SIMPLE_HEAD)
    drawn.add_column("sampler", no_wrap=True)
    for name in ("steps", "calls", "seconds", *(LABELS.get(it, it) for it in names)):
        drawn.add_column(name.partition(" (")[0].replace("_", " "), justify="right")
    before = ""
    for point in found.points:
        if before and point.sampler != before:
            drawn.add_section()
        values = [
            Text(f"{value:.4f}", style="bold" if value == best[name] else "")
            for name, value in point.scores.items()
        ]
        label = point.sampler if point.sampler != before else ""
        drawn.add_row(label, f"{point.steps}", f"{point.calls}", f"{point.seconds:.1f}", *values)
        before = point.sampler
    return drawn


def write(found: Frontier, folder: Path, title: str) -> Path:
    """frontier.json and frontier.png into this folder; the picture's path. Raises OSError."""
    from cdlm import charts

    folder.mkdir(exist_ok=True)
    rundir.write_text(folder / "frontier.json", json.dumps(asdict(found), indent=2) + "\n")
    picture, name = folder / "frontier.png", found.metric
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for point in found.points:
        xs, ys = curves.setdefault(point.sampler, ([], []))
        xs.append(point.calls)
        ys.append(point.scores[name])
    label = LABELS.get(name, name.replace("_", " "))
    charts.lines(
        picture,
        curves,
        title=f"{title}: {label} of every sampler",
        across="network calls for a caption",
        up=label,
        log=True,
        note=f"{found.split} split, {found.images:,} images, weights of step {found.step}",
    )
    return picture
