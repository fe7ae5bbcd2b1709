"""How a study stands, while it runs and before: a table of points and seeds on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cdlm.conduct import Show, Trial, Work

if TYPE_CHECKING:
    from rich.table import Table

REDRAW_S = 0.5


@contextmanager
def live(work: Work) -> Iterator[Show]:
    """Shows the study on standard error: a live table, or a line for each change elsewhere."""
    if not sys.stderr.isatty():
        yield _print
        return
    from rich.console import Console
    from rich.live import Live

    with Live(table(work), console=Console(stderr=True), auto_refresh=False) as drawn:
        last = time.monotonic()

        def show(work: Work, changed: Sequence[Trial]) -> None:
            nonlocal last
            if changed or time.monotonic() - last > REDRAW_S:
                last = time.monotonic()
                drawn.update(table(work), refresh=True)

        yield show


def _print(work: Work, changed: Sequence[Trial]) -> None:
    done = sum(trial.state == "finished" for trial in work.trials.values())
    for trial in changed:
        said = _state(trial) if trial.state != "running" else "begun"
        what = f"{trial.labels[0]}, seed {trial.recipe.seed}: {said}"
        print(f"{what} ({done} of {len(work.trials)} finished)", file=sys.stderr, flush=True)


def table(work: Work) -> Table:
    """A row for each point, a column for each seed."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    done = sum(trial.state == "finished" for trial in work.trials.values())
    title = Text(f"{work.study.name}: {done} of {len(work.trials)} runs have finished")
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    drawn.add_column(work.study.header)
    for seed in work.study.seeds:
        drawn.add_column(f"seed {seed}", justify="right")
    for point in work.study.points:
        states = [_state(work.trial(point, seed)) for seed in work.study.seeds]
        drawn.add_row(Text(point.label), *map(Text, states))
    return drawn


def _state(trial: Trial) -> str:
    """A few words on how a run stands; of a finished one its first score."""
    if trial.state == "finished":
        value = next(iter(trial.summary()["scores"].values()), None)
        return f"{value:.4f}" if isinstance(value, float) else "finished"
    if trial.state == "failed":
        return "failed"
    step, steps = trial.step(), trial.recipe.train.steps
    if trial.state == "waiting":
        return f"stopped at {step:,}" if step else "waiting"
    return "captions" if step >= steps else f"{step:,} of {steps:,}"


def plan(work: Work) -> Table:
    """The points before anything runs, and why some need no training."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    study = work.study
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    title = f"{study.name}: {len(study.points)} points, {seeds}, {len(work.trials)} runs"
    drawn = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for name in (study.header, "hash", "finished", "to do"):
        drawn.add_column(name)
    seen: dict[str, str] = {}
    for point in study.points:
        trials = [work.trial(point, seed) for seed in study.seeds]
        done = sum(trial.state == "finished" for trial in trials)
        todo = "" if done == len(trials) else _todo(work, trials, seen)
        seen.setdefault(trials[0].recipe.training_hash, point.label)
        cells = [point.label, point.recipe.hash[:8], f"{done} of {len(trials)}", todo]
        drawn.add_row(*map(Text, cells))
    return drawn


def _todo(work: Work, trials: Sequence[Trial], seen: dict[str, str]) -> str:
    """What has yet to be done for a point."""
    first = trials[0]
    alike = seen.get(first.recipe.training_hash)
    if len(set(first.labels)) > 1 and alike in first.labels:
        return f"nothing: its recipe is that of {alike}"
    if alike:
        return f"captions only: trained as {alike} is"
    trained = sum(trial.recipe.training_hash in work.trained for trial in trials)
    return "captions only" if trained == len(trials) else "training and captions"


def estimated(seconds: float, jobs: int) -> str:
    """The sentence about the time that is left."""
    if not seconds:
        return "estimate: nothing is left to do"
    at_once = f", if {jobs} at a time are as fast as one" if jobs > 1 else ", one after the other"
    source = "by finished runs of the same size, else by a few timed steps"
    return f"estimate: about {_duration(seconds / jobs)}{at_once} ({source})"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
