"""How long a study will take: by runs of the same size that have finished, else by timed steps."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cdlm import plugins, run
from cdlm.conduct import Trial, Work
from cdlm.job import Job
from cdlm.progress import Tell, silent
from cdlm.recipe import Recipe
from cdlm.rundir import RunDir

STEPS = 12  # that are timed
START_S = 5.0  # of a process, until it has loaded its libraries


@dataclass(frozen=True)
class Pace:
    """How fast recipes of one size are."""

    step: float  # seconds
    caption: float  # seconds, for one sampling step
    begin: float  # seconds of all else
    images: int  # that are captioned, unless evaluate.limit says fewer


def seconds(work: Work, device: str, tell: Tell = silent) -> float:
    """All that has yet to run, one after the other. Raises CdlmError where it can't be timed."""
    paces: dict[str, Pace] = {}
    for trial in _finished(work):
        paces.setdefault(size(trial.recipe), _known(trial))
    left = [trial for trial in work.trials.values() if trial.state != "finished"]
    unknown = {size(it.recipe): it for it in left if size(it.recipe) not in paces}
    with _each_warning_once(), plugins.unheard():
        for i, key in enumerate(sorted(unknown)):
            tell("sizes timed", i, len(unknown), "")
            paces[key] = timed(unknown[key].recipe, device, tell)
    trained, total = set(work.trained), 0.0
    for trial in left:
        total += _expected(trial, paces[size(trial.recipe)], trial.recipe.training_hash in trained)
        trained.add(trial.recipe.training_hash)
    return total


@contextmanager
def _each_warning_once() -> Iterator[None]:
    """What runs warn of is said once, however many of them are timed."""
    said = set[str]()

    def new(record: logging.LogRecord) -> bool:
        text, before = record.getMessage(), len(said)
        said.add(text)
        return len(said) > before

    run.log.addFilter(new)
    try:
        yield
    finally:
        run.log.removeFilter(new)


def size(recipe: Recipe) -> str:
    """Equal for recipes that take about as long for a step: of the same widths, layers, batch."""
    values = recipe.values()
    speed = ("batch", "accumulate", "precision", "compile", "limit")
    train = {key: values["train"][key] for key in speed}
    kinds = ("dataset", "encoder", "tokenizer", "process", "embedding", "denoiser", "conditioning")
    return json.dumps([values["model"], train, *(values.get(kind) for kind in kinds)])


def _expected(trial: Trial, pace: Pace, trained: bool) -> float:
    recipe = trial.recipe
    steps = 0 if trained else recipe.train.steps - trial.step()
    count = min(recipe.evaluate.limit or pace.images, pace.images)
    return pace.begin + steps * pace.step + count * _sampling_steps(recipe) * pace.caption


def _sampling_steps(recipe: Recipe) -> int:
    """Of its sampler, or of a process that goes without one; 1, where that says nothing."""
    return int(recipe.one(recipe.stepped_by).parameters.get("steps", 1))


def _finished(work: Work) -> Sequence[Trial]:
    return [trial for trial in work.trials.values() if trial.state == "finished"]


def _known(trial: Trial) -> Pace:
    summary = trial.summary()
    each = summary["sampling_seconds"] / max(1, summary["n"]) / _sampling_steps(trial.recipe)
    training = summary.get("training_seconds") or 0.0
    return Pace(training / trial.recipe.train.steps, each, START_S, summary["n"])


def timed(recipe: Recipe, device: str, tell: Tell = silent) -> Pace:
    """By a few steps of the recipe, and a few captions, in a folder that goes again."""
    few = [f"train.steps={STEPS}", f"evaluate.limit={min(32, recipe.evaluate.limit or 32)}"]
    short = recipe.with_sets(few)
    with TemporaryDirectory(prefix="cdlm-estimate-") as folder:
        job = Job.open(run.begin(short, Path(folder), False, []), device)
        for split in ("train", recipe.evaluate.split):
            job.features(split, tell)  # into the cache: the points find them there
        job.views("train", tell)
        began = time.monotonic()
        job = Job.open(job.run, device)
        run.train_run(job)
        found = run.evaluate_run(job)
        whole = time.monotonic() - began
        trained, images = _seconds_of(job.run), len(job.split(recipe.evaluate.split).ids)
    each = found.seconds / len(found.said) / _sampling_steps(recipe)
    return Pace(trained / STEPS, each, START_S + whole - trained - found.seconds, images)


def _seconds_of(run: RunDir) -> float:
    from cdlm import checkpoint

    return float(checkpoint.last_state(run.checkpoints)["seconds"])
