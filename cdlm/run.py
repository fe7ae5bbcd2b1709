"""A run from beginning to end: prepare, train, caption a split, score, and write all of it down."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from cdlm import checkpoint, plugins, rundir
from cdlm import recipe as recipes
from cdlm.compose import Parts, compose, dataset, make, metrics
from cdlm.data import Captions
from cdlm.errors import CdlmError, Interrupted, RunError
from cdlm.evaluate import Score, choose, evaluate, records
from cdlm.features import features
from cdlm.gallery import gallery
from cdlm.places import cache_dir
from cdlm.progress import Tell, silent
from cdlm.protocols import Encoder, Split, Tokenizer
from cdlm.recipe import Recipe
from cdlm.records import Answers, Event
from cdlm.rundir import METRICS, SAMPLES, RunDir
from cdlm.sample import captions
from cdlm.train import learner, restore, snapshot, train

SHOWN = 12  # images in a gallery

log = logging.getLogger(__name__)


@dataclass
class Stop:
    """Whether the process was asked to end, and by which signal."""

    number: int = 0

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """SIGINT and SIGTERM only set a flag, which is read between steps."""

        def note(number: int, frame: object) -> None:
            self.number = number

        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def choose_device(wanted: str) -> str:
    """ "auto" is CUDA where there is some. Raises CdlmError for a device that is not there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise CdlmError(f"--device {wanted}: {error}\n    there is: {', '.join(there)}") from error
    return wanted


def begin(recipe: Recipe, root: Path, resume: bool, argv: Sequence[str]) -> RunDir:
    """The run's folder: a new one, or with `resume` the one that is there. Raises RunError."""
    path = rundir.run_path(root, recipe.name, recipe.sets, recipe.seed, recipe.hash)
    if resume and path.exists():
        return RunDir.open(path)
    brought = {plugin.distribution: plugin.version for plugin in plugins.load().loaded}
    known = rundir.provenance(argv, recipe.seed, torch.get_num_threads(), brought)
    return RunDir.create(
        root, recipe.name, recipe.sets, recipe.seed, recipe.hash, recipe.toml(), known
    )


@dataclass(frozen=True)
class Job:
    """A run with its parts built: what training, evaluation and captioning work with."""

    run: RunDir
    recipe: Recipe
    parts: Parts
    device: str
    splits: dict[str, Split] = field(default_factory=dict)  # those loaded so far, by name

    @classmethod
    def open(cls, run: RunDir, device: str, sets: Sequence[str] = ()) -> Job:
        """The parts of a run's recipe, with `sets` on top, on a device; weights not yet loaded."""
        recipe = recipes.loads(run.recipe_text(), run.path.parent.name, place=str(run.recipe))
        recipe = recipe.with_sets(sets) if sets else recipe
        splits: dict[str, Split] = {}
        encoder: Encoder = make(recipe.one("encoder"))
        encoder.to(device)
        tokenizer = _tokenizer(run, recipe, splits)
        return cls(run, recipe, compose(recipe, encoder, tokenizer), device, splits)

    def split(self, name: str) -> Split:
        """A split of the run's dataset."""
        if name not in self.splits:
            self.splits[name] = dataset(self.recipe).split(name)
        return self.splits[name]

    def features(self, name: str, tell: Tell = silent) -> Tensor:
        """The features of a split's images, N C each, from the cache where it has them."""
        return features(self.parts.encoder, self.split(name), cache_dir(), tell)

    def load_weights(self) -> int:
        """Take the averaged weights of the newest checkpoint; its step. Raises RunError."""
        found = checkpoint.newest(self.run.checkpoints)
        if found is None:
            raise RunError(f"{self.run.path}: there is no sound checkpoint yet; train it first")
        modules = self.parts.modules()
        modules.load_state_dict(found.tensors["weights"])
        modules.to(self.device).eval()
        return found.step


def _tokenizer(run: RunDir, recipe: Recipe, splits: dict[str, Split]) -> Tokenizer:
    """The run's vocabulary: the stored one, or else learnt from the training captions and stored."""
    tokenizer: Tokenizer = make(recipe.one("tokenizer"))
    if run.tokenizer.is_file():
        tokenizer.load(run.tokenizer)
        return tokenizer
    splits["train"] = dataset(recipe).split("train")
    tokenizer.fit([text for texts in splits["train"].captions for text in texts])
    with rundir.draft(run.tokenizer) as place:
        tokenizer.save(place)
    return tokenizer


# -------------------------------------------------------------------------------------- training


def train_run(job: Job, stop: Stop, tell: Tell = silent) -> None:
    """Train to the recipe's last step, from the newest checkpoint where there is one.

    Raises Interrupted after the checkpoint where `stop` says so; RunError, CdlmError.
    """
    plan, run = job.recipe.train, job.run
    pupil = learner(job.parts, plan, job.device)
    found = _newest(run)
    if found is not None:
        restore(pupil, found.tensors)
        _warn_of_threads(found.state)
    first = found.step if found else 0
    run.rewind(first)
    if first == plan.steps:
        return
    table = job.features("train", tell)
    data = Captions.of(
        job.split("train"), table, job.parts.tokenizer, job.recipe.model.length, job.device
    )
    began = time.monotonic()
    loss = float("nan")
    for event in train(job.parts, pupil, data, plan, job.recipe.seed, first):
        halt = stop.number and event.name == "step" and event.step < plan.steps
        if event.name == "checkpoint" or halt:
            state = {"threads": torch.get_num_threads(), "seed": job.recipe.seed}
            checkpoint.save(run.checkpoints, event.step, snapshot(pupil), state, plan.keep)
        if halt:
            raise Interrupted(str(run.path), stop.number)
        if event.name == "loss":
            loss = event.value
        _record(run, event)
        if event.name == "step":
            pace = (event.step - first) * plan.batch * plan.accumulate / (time.monotonic() - began)
            tell("training", event.step, plan.steps, f"loss {loss:.3f}, {pace:,.0f} captions/s")


def _record(run: RunDir, event: Event) -> None:
    if event.name not in ("step", "checkpoint"):
        run.append(METRICS, {"step": event.step, "name": event.name, "value": event.value})
    for failure in plugins.load().tell(event, run.path):
        log.warning("%s", failure)


def _newest(run: RunDir) -> checkpoint.Checkpoint | None:
    found = checkpoint.newest(run.checkpoints)
    if found is None and run.last_step is not None:
        raise RunError(
            f"{run.checkpoints}: no checkpoint is sound any more (the newest is of step "
            f"{run.last_step})\n    run again with another seed, or move this folder away"
        )
    return found


def _warn_of_threads(state: dict[str, Any]) -> None:
    now = torch.get_num_threads()
    if state.get("threads", now) != now:
        log.warning(
            "this run was begun with %s threads and goes on with %s: its numbers will differ in "
            "the last digits from an undisturbed run's (--threads %s keeps them equal)",
            state["threads"],
            now,
            state["threads"],
        )


# ------------------------------------------------------------------------------------ evaluation


@dataclass(frozen=True)
class Outcome:
    """A split, captioned and scored."""

    answers: Answers
    scores: list[Score]
    step: int  # of the weights
    seconds: float  # of sampling alone


def evaluate_run(job: Job, tell: Tell = silent) -> Outcome:
    """Caption the recipe's evaluation split with the newest weights, and score the captions."""
    step, plan = job.load_weights(), job.recipe.evaluate
    split = job.split(plan.split)
    table = job.features(plan.split, tell)
    count = min(plan.limit or len(table), len(table))
    began = time.monotonic()
    said = caption_features(job, table[:count], job.recipe.seed, plan.batch, tell)
    seconds = time.monotonic() - began
    answers = Answers(
        image_ids=split.ids[:count],
        captions=said,
        references=split.captions[:count],
        truths=split.truths[:count],
    )
    return Outcome(answers, evaluate(metrics(job.recipe), answers), step, seconds)


def caption_features(
    job: Job, table: Tensor, seed: int, batch: int, tell: Tell = silent
) -> list[str]:
    """A caption for each row of features N C; the same for the same seed and batch."""
    rng = Generator(job.device).manual_seed(seed)
    said: list[str] = []
    for rows in table.split(batch):
        said += captions(job.parts, rows.to(job.device), rng)
        tell("captions", len(said), len(table), "")
    return said


def write_down(job: Job, outcome: Outcome, tell: Tell = silent) -> Path | None:
    """Samples, gallery and summary into the run's folder; the gallery's path, if there are images."""
    run, plan = job.run, job.recipe.evaluate
    lines = b"".join(rundir.line(record) for record in records(outcome.answers))
    rundir.write_bytes(run.path / SAMPLES, lines)
    picture = draw_gallery(job, outcome, run.path / "gallery.png")
    run.finish(
        {
            "recipe": job.recipe.name,
            "hash": job.recipe.hash,
            "split": plan.split,
            "step": outcome.step,
            "sampling_seconds": round(outcome.seconds, 3),
            "scores": {score.name: score.value for score in outcome.scores},
            "n": len(outcome.answers.captions),
        }
    )
    return picture


def draw_gallery(job: Job, outcome: Outcome, path: Path) -> Path | None:
    """A contact sheet of some images with their captions; None where the images aren't to be had."""
    answers = outcome.answers
    rows = choose(len(answers.captions), SHOWN, job.recipe.seed)
    try:
        images = job.split(job.recipe.evaluate.split).images(rows)
    except CdlmError as error:
        log.warning("no gallery: %s", error)
        return None
    marks = _marks(job, answers)
    gallery(
        images,
        [answers.captions[i] for i in rows],
        [answers.references[i][0] for i in rows],
        [marks[i] for i in rows],
        path,
        job.recipe.about or job.recipe.name,
        f"{job.recipe.evaluate.split} split, single sample, "
        f"{job.parts.sampler.steps} steps, weights of step {outcome.step}",
    )
    return path


def _marks(job: Job, answers: Answers) -> list[bool | None]:
    """Each caption's own verdict, from the first metric that gives verdicts."""
    for metric in metrics(job.recipe):
        if (marks := metric.marks(answers)) is not None:
            return list(marks)
    return [None] * len(answers.captions)
