"""One checkpoint, every sampler, one table: quality against steps, network calls and seconds."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from cdlm import plugins, rundir
from cdlm.compose import metrics
from cdlm.errors import CdlmError, nearest
from cdlm.evaluate import available, evaluate, label
from cdlm.job import Job
from cdlm.progress import Tell, silent
from cdlm.records import Said
from cdlm.run import answers_of, caption_features

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

LESSER = {  # in frontier.json, but not shown: BLEU-4 speaks for them, or more is not better
    "bleu_1", "bleu_2", "bleu_3",
    "distinct_1", "distinct_2", "vocabulary", "unique_captions", "self_bleu_4",
    "novel_captions", "novel_4grams", "repeated_bigrams", "doubled_words",
    "words", "reference_words", "empty_captions",
}  # fmt: skip

log = logging.getLogger(__name__)


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
    def metrics(self) -> list[str]:
        """The scores that are shown, the one that counts first: the recipe's first metric's."""
        return [name for name in self.points[0].scores if name not in LESSER]

    @property
    def best(self) -> list[Point]:
        """The points that no other reaches with as few calls, by their calls; of equals the first.

        By the score that counts, higher being better.
        """
        name, found = self.metrics[0], list[Point]()
        for point in sorted(self.points, key=lambda it: (it.calls, -it.scores[name])):
            if not found or point.scores[name] > found[-1].scores[name]:
                found.append(point)
        return found


def samplers(job: Job, wanted: str = "") -> list[str]:
    """The samplers of a list with commas, or all that this run's weights can be sampled with.

    Raises CdlmError for those that there are not, for those asked for that can't be used, and
    where the run's process has no samplers.
    """
    job.recipe.one("sampler")
    known = plugins.load().registry.names("sampler")
    names = list(dict.fromkeys(name.strip() for name in wanted.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise CdlmError(f'--samplers: no sampler is called "{name}"; {nearest(name, known)}')
        _with(job, name, 1)
    return names or [name for name in known if _usable(job, name)]


def _usable(job: Job, name: str) -> bool:
    """Whether it can be tried; says why not."""
    try:
        _with(job, name, 1)
    except CdlmError as error:
        log.warning("left out: %s", error)
        return False
    return True


def _with(job: Job, name: str, steps: int) -> Job:
    """The job with another sampler. Its parameters are the recipe's where it is the same one."""
    own = job.recipe.one("sampler").use == name
    sets = [] if own else [f'sampler={{ use = "{name}" }}']
    try:
        return job.sampling([*sets, f"sampler.steps={steps}"])
    except CdlmError as error:
        raise CdlmError(f"sampler {name} can't be tried as it is: {error}") from error


# -------------------------------------------------------------------------------------- measured


def measure(
    job: Job, names: Sequence[str], steps: Sequence[int], limit: int, tell: Tell = silent
) -> Frontier:
    """Sample and score the first `limit` images of the evaluation split in every way; 0: all.

    Each sampler has its own defaults, but the recipe's where it is the recipe's. One batch before
    all warms the machine; then the samplers take turns, number of steps by number of steps.
    Raises RunError, CdlmError.
    """
    step, split = job.load_weights(), job.recipe.evaluate.split
    table = job.features(split, tell)[: limit or None]
    ways = [(name, n, _with(job, name, n)) for n in sorted(steps) for name in names]
    total, done = len(table) * sum(n for _, n, _ in ways), 0
    _said(ways[0][2], table[: job.recipe.evaluate.batch], silent)
    points = []
    for name, n, way in ways:
        points.append(_point(way, table, _part(tell, done, n, total, f"{name}, {n} steps")))
        done += len(table) * n
    points.sort(key=lambda point: names.index(point.sampler))
    return Frontier(
        split=split,
        images=len(table),
        step=step,
        device=job.device,
        sets=list(job.recipe.sets),
        points=points,
    )


def _part(tell: Tell, done: int, steps: int, total: int, detail: str) -> Tell:
    """What is told of captions, as a part of all steps of all images."""
    return lambda _, captions, *__: tell("image steps", done + captions * steps, total, detail)


def _said(job: Job, table: Tensor, tell: Tell) -> list[Said]:
    return caption_features(job, table, job.recipe.seed, job.recipe.evaluate.batch, tell)


def _point(job: Job, table: Tensor, tell: Tell) -> Point:
    """Caption these images, and score what is said."""
    with _calls(job.parts.network) as calls:
        began = time.perf_counter()
        said = _said(job, table, tell)
        seconds = time.perf_counter() - began
    answers = answers_of(job, said)
    return Point(
        sampler=job.recipe.one("sampler").use,
        steps=job.parts.sampler.steps,
        calls=calls[0] // (len(table) * job.parts.selection.count),
        seconds=seconds,
        scores=available(evaluate(metrics(job.recipe), answers)),
    )


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

    about = Text(
        f"{found.split} split, first {found.images:,} images, single runs, timed in turns on "
        f"{found.device}, weights of step {found.step}. * no other is as good with as few calls; "
        "best in bold",
        style="dim",
        justify="left",
    )
    drawn = Table(title=Text(title), caption=about, title_justify="left", box=box.SIMPLE_HEAD)
    drawn.add_column("sampler", no_wrap=True)
    for name in ("steps", "calls", "seconds", *map(label, found.metrics)):
        drawn.add_column(name.partition(" (")[0], justify="right")
    before = ""
    for point, cells in zip(found.points, _cells(found), strict=True):
        if before and point.sampler != before:
            drawn.add_section()
        drawn.add_row(point.sampler if point.sampler != before else "", *cells)
        before = point.sampler
    return drawn


def _cells(found: Frontier) -> Iterator[list[Text]]:
    """What stands beside each point's sampler."""
    from rich.text import Text

    best = {name: max(it.scores[name] for it in found.points) for name in found.metrics}
    for point in found.points:
        numbers = [str(point.steps), str(point.calls), f"{point.seconds:.1f}"]
        values = [
            Text(f"{point.scores[name]:.4f}", style="bold" if point.scores[name] == most else "")
            for name, most in best.items()
        ]
        values[0] = Text("* " if point in found.best else "") + values[0]
        yield [*map(Text, numbers), *values]


def read(text: str) -> Frontier:
    """What `write` wrote into frontier.json. Raises ValueError, KeyError, TypeError."""
    facts = json.loads(text)
    return Frontier(**facts | {"points": [Point(**it) for it in facts["points"]]})


def write(found: Frontier, folder: Path, title: str) -> Path:
    """frontier.json and frontier.png into this folder; the picture's path. Raises OSError."""
    from cdlm import charts

    folder.mkdir(exist_ok=True)
    rundir.write_json(folder / "frontier.json", asdict(found))
    picture, name = folder / "frontier.png", found.metrics[0]
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for point in found.points:
        xs, ys = curves.setdefault(point.sampler, ([], []))
        xs.append(point.calls)
        ys.append(point.scores[name])
    steps = sorted({point.steps for point in found.points})
    last = max(point.calls for point in found.points)
    best = [*found.best, found.best[-1]]  # and on to the right edge
    charts.lines(
        picture,
        curves,
        title=f"{title}: {label(name)} of every sampler",
        across=f"network calls for a caption, at {', '.join(map(str, steps))} steps",
        up=label(name),
        log=True,
        floor=None,
        beneath=([*(it.calls for it in best[:-1]), last], [it.scores[name] for it in best]),
        note=f"{found.split} split, first {found.images:,} images, weights of step {found.step}; "
        "pale: the best with as few calls",
    )
    return picture
