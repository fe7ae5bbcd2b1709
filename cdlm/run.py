"""A run from beginning to end: prepare, train, caption a split, score, and write all of it down."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from cdlm import checkpoint, compare, foreign, plugins, ranks, results, rundir
from cdlm import recipe as recipes
from cdlm.checkpoint import Checkpoint
from cdlm.compose import dataset, metrics
from cdlm.data import Captions, flat
from cdlm.errors import CdlmError, Interrupted, RunError
from cdlm.evaluate import (
    ORACLE,
    RESAMPLES,
    SINGLE,
    Score,
    choose,
    draws,
    evaluate,
    marks,
    oracle,
    records,
)
from cdlm.features import features, text_features
from cdlm.gallery import gallery
from cdlm.job import Job, fitting, start_of, stored, vocabulary
from cdlm.places import cache_dir
from cdlm.progress import Tell, silent
from cdlm.protocols import Encoder, Metric
from cdlm.recipe import Choice, Recipe
from cdlm.records import Answers, Event, Said
from cdlm.rundir import DRAWS, METRICS, SAMPLES, RunDir
from cdlm.sample import at_once, captions
from cdlm.speed import Meter
from cdlm.stop import Stop
from cdlm.train import Learner, learner, restore, snapshot, train

SHOWN = 12  # images in a gallery

log = logging.getLogger(__name__)


def begin(recipe: Recipe, root: Path, resume: bool, argv: Sequence[str]) -> RunDir:
    """The run's folder: a new one, or with `resume` the one that is there. Raises RunError."""
    path = rundir.run_path(root, recipe.name, recipe.sets, recipe.seed, recipe.hash)
    if resume and path.exists():
        run = RunDir.open(path)
        if stored(run).hash != recipe.hash:
            raise RunError(f"{run.recipe}: changed since the run began\n    undo that to go on")
        return run
    brought = {plugin.distribution: plugin.version for plugin in plugins.load().loaded}
    known = rundir.provenance(argv, recipe.seed, torch.get_num_threads(), brought)
    known |= {"hash": recipe.hash, "training": recipe.training_hash}
    known |= {"components": foreign.used(recipe)}
    return RunDir.create(
        root, recipe.name, recipe.sets, recipe.seed, recipe.hash, recipe.toml(), known
    )


def begin_point(recipe: Recipe, root: Path, argv: Sequence[str]) -> RunDir:
    """The run of this recipe, whatever it is called; or a new one. Raises RunError."""
    path = rundir.find(root, recipe.hash)
    return RunDir.open(path) if path else begin(recipe, root, True, argv)


def borrow(run: RunDir, recipe: Recipe, root: Path) -> RunDir | None:
    """Let a run that has no weights take over those of one that was trained in the same way.

    That is one of the same `training_hash`, trained to its end, without a part that learns among
    those that training should not look at. Its vocabulary and metrics come along. Returns it, or
    None where there is none. Raises OSError.
    """
    if run.last_step is not None:
        return None
    for path in rundir.runs(root):
        other = RunDir(path)
        if other.last_step != recipe.train.steps or path == run.path:
            continue
        if rundir.known(path).get("training") == recipe.training_hash:
            found = checkpoint.newest(other.checkpoints)
            if found and found.step == recipe.train.steps and not _learned(found, recipes.SAMPLING):
                shutil.copyfile(other.tokenizer, run.tokenizer)
                shutil.copyfile(path / METRICS, run.path / METRICS)
                checkpoint.adopt(found.path, run.checkpoints)
                return other
    return None


def _learned(found: Checkpoint, kinds: Sequence[str]) -> bool:
    return any(name.partition(".")[0] in kinds for name in found.tensors["weights"])


@contextmanager
def gone_unless_started(run: RunDir) -> Iterator[None]:
    """A run that fails before anything is trained leaves no folder in the way of the next try."""
    try:
        yield
    except BaseException:
        if run.last_step is None and not (run.path / METRICS).exists():
            shutil.rmtree(run.path, ignore_errors=True)
        raise


# -------------------------------------------------------------------------------------- training


def train_run(job: Job, tell: Tell = silent) -> None:
    """Train to the recipe's last step, from the newest checkpoint where there is one.

    Raises RunError, CdlmError; Interrupted after SIGINT or SIGTERM, once a checkpoint is written.
    """
    if job.recipe.train.batch < ranks.count():
        raise CdlmError(f"train.batch: fewer captions than the {ranks.count()} processes")
    pupil, first, seconds = _pupil(job)
    ranks.must_agree(first, f"{job.run.checkpoints}: not the same folder for all processes")
    if ranks.rank() == 0:
        job.run.rewind(first)
    if first == job.recipe.train.steps:
        return
    plan = job.recipe.train
    with ranks.first():
        data = _captions(job, "train", plan.limit, tell)
        unseen = _captions(job, plan.validate_on, 0, tell) if plan.validate_every else None
    _warn_of_cuts(job, data)
    events = train(job.parts, pupil, data, plan, job.recipe.seed, first, unseen)
    with Stop().listening() as stop:
        _follow(events, job, pupil, first, seconds, stop, tell)


def _pupil(job: Job) -> tuple[Learner, int, float]:
    """The learner of the newest checkpoint, its step and seconds of training; or a first one."""
    pupil = learner(job.parts, job.recipe.train, job.device)
    found = checkpoint.newest(job.run.checkpoints)
    if found is None and job.run.last_step is not None:
        raise RunError(
            f"{job.run.checkpoints}: no checkpoint is sound any more (the newest is of step "
            f"{job.run.last_step})\n    run again with another seed, or move this folder away"
        )
    if found is None:
        if job.recipe.train.start:
            _start(pupil, job)
        return pupil, 0, 0.0
    if "training" not in found.tensors:
        raise RunError(
            f"{found.path}: weights alone, as `cdlm export` leaves them; they caption, but there "
            "is nothing to go on training with"
        )
    with fitting(found, job.run):
        restore(pupil, found.tensors)
    if found.step < job.recipe.train.steps:
        _warn_of_threads(found.state["threads"])
    return pupil, found.step, found.state.get("seconds", 0.0)


def _start(pupil: Learner, job: Job) -> None:
    """Take over the averaged weights of the run that this one starts with. Raises RunError."""
    plan = job.recipe.train
    found = checkpoint.find(start_of(job.recipe).checkpoints, plan.start_step or None)
    weights = found.tensors["weights"]
    with fitting(found, job.run):
        pupil.model.load_state_dict(weights)
    for name, mean in pupil.average.items():
        mean.copy_(weights[name])


def _captions(job: Job, name: str, limit: int, tell: Tell) -> Captions:
    """The first captions of a split, all with limit = 0, beside their images' features."""
    split, tokenizer, length = job.split(name), job.parts.tokenizer, job.recipe.model.length
    texts = None
    if any("texts" in getattr(mode, "needs", ()) for mode in job.parts.network.conditioning):
        texts = text_features(job.parts.encoder, flat(split, limit), cache_dir(), tell)
    features = job.features(name, tell)
    views = job.views(name, tell) if name == "train" else None
    return Captions.of(split, features, tokenizer, length, limit, job.device, texts, views)


def _warn_of_cuts(job: Job, data: Captions) -> None:
    """Some captions may be longer than the model's."""
    texts, length = flat(job.split("train"), job.recipe.train.limit), job.recipe.model.length
    full = [texts[i] for i in data.mask[:, -1].nonzero().flatten().tolist()]
    encoded = job.parts.tokenizer.encode(full, 1 + max(map(len, full), default=0))
    sizes = encoded[1].sum(1).tolist()
    if cut := sum(size > length for size in sizes):
        log.warning(
            f"{cut:,} of {len(texts):,} training captions are cut: they have up to {max(sizes)} "
            f"tokens with their end, and model.length = {length}"
        )


def _follow(
    events: Iterator[Event],
    job: Job,
    pupil: Learner,
    first: int,
    seconds: float,
    stop: Stop,
    tell: Tell,
) -> None:
    """Write down what training says, from step `first` on; `seconds` have been spent before.

    Of several processes the first one writes and speaks; all stop at the same step.
    """
    plan = job.recipe.train
    meter = Meter.of(job.parts, plan, job.device)
    said = {"loss": "", "validation_loss": ""}
    for event in events:
        stepped = event.name == "step" and event.step < plan.steps
        halt = ranks.agreed(stop.number) if stepped else 0
        if ranks.rank() == 0:
            if event.name == "checkpoint" or halt:
                speed = meter.facts(event.step - first)
                _save(job, pupil, event.step, seconds + meter.seconds, speed)
            if not halt:
                _record(job.run, event)
        if halt:
            ranks.agreed(0)  # until all is saved
            raise Interrupted(str(job.run.path), halt, event.step)
        if event.name in said:
            said[event.name] = f"{event.name.replace('_loss', '')} {event.value:.3f}, "
        if event.name == "step":
            pace = meter.read(event.step - first)
            tell("training", event.step, plan.steps, "".join(said.values()) + pace)


def _save(job: Job, pupil: Learner, step: int, seconds: float, speed: dict[str, float]) -> None:
    state = {
        "threads": torch.get_num_threads(),
        "processes": ranks.count(),
        "vocabulary": vocabulary(job.run),
        "seconds": round(seconds, 3),
        "speed": speed,
    }
    checkpoint.save(job.run.checkpoints, step, snapshot(pupil), state, job.recipe.train.keep)


def _record(run: RunDir, event: Event) -> None:
    if event.name not in ("step", "checkpoint"):
        run.append(METRICS, {"step": event.step, "name": event.name, "value": event.value})
    _tell_plugins(run, event)


def _tell_plugins(run: RunDir, event: Event) -> None:
    for failure in plugins.load().tell(event, run.path):
        log.warning("%s", failure)


def _warn_of_threads(before: int) -> None:
    now = torch.get_num_threads()
    if now != before:
        log.warning(
            f"this run was begun with {before} threads and goes on with {now}: its numbers will "
            f"differ in the last digits from an undisturbed run's (--threads {before} keeps them)"
        )


# ------------------------------------------------------------------------------------ evaluation


@dataclass(frozen=True)
class Outcome:
    """A split, captioned and scored."""

    answers: Answers
    scores: list[Score]
    step: int  # of the weights
    seconds: float  # of sampling alone
    about: str  # what was captioned, and how
    said: list[Said]
    how: str = SINGLE  # where the captions come from
    beside: dict[str, list[Score]] = field(default_factory=dict)  # of single samples and oracle


def evaluate_run(job: Job, tell: Tell = silent, step: int | None = None) -> Outcome:
    """Caption the recipe's evaluation split, and score the captions.

    With the newest weights, or with those of an earlier step. Raises RunError, CdlmError.
    """
    step, plan = job.load_weights(step), job.recipe.evaluate
    table = job.features(plan.split, tell)
    began = time.monotonic()
    said = caption_features(job, table[: plan.limit or None], job.recipe.seed, plan.batch, tell)
    seconds = time.monotonic() - began
    answers = answers_of(job, said)
    how = _how(job)
    about = (
        f"{plan.split} split of {job.recipe.one('dataset').use}, "
        f"{_way(job.recipe)}{_together(job)}, "
        f"weights of step {step}{'' if how == SINGLE else ', ' + how}"
    )
    judges = metrics(job.recipe)
    beside = {
        name: evaluate(judges, replace(answers, captions=texts))
        for name, texts in _other_choices(judges, answers, said).items()
    }
    scores = evaluate(judges, answers, RESAMPLES)
    return Outcome(answers, scores, step, seconds, about, said, how, beside)


def answers_of(job: Job, said: list[Said]) -> Answers:
    """What is said of the first images of the evaluation split, beside what is known of them."""
    split, rows = job.split(job.recipe.evaluate.split), slice(len(said))

    def by(encoder: Encoder) -> Tensor:
        encoder.to(job.device)
        return features(encoder, split, cache_dir())[rows]

    return Answers(
        image_ids=split.ids[rows],
        captions=[it.caption for it in said],
        references=split.captions[rows],
        truths=split.truths[rows],
        features=by,
        training=lambda: _trained_on(job),
    )


def _trained_on(job: Job) -> list[str]:
    """The captions that the run's weights have seen, whatever dataset is captioned now.

    They are looked for where the dataset lies now, if it has been moved.
    """
    trained = stored(job.run)
    then, now = (_but_for_its_place(it.one("dataset")) for it in (trained, job.recipe))
    split = job.split("train") if then == now else dataset(trained).split("train")
    return flat(split, trained.train.limit)


def _but_for_its_place(choice: Choice) -> dict[str, Any]:
    return {name: it for name, it in choice.table().items() if name != "root"}


def _way(recipe: Recipe) -> str:
    """What made the captions: "ddim of 20 steps"."""
    choice = recipe.one(recipe.stepped_by)
    steps = choice.parameters.get("steps")
    return f"{choice.use} of {steps} steps" if steps else choice.use


def _together(job: Job) -> str:
    """ " by 3 runs together", or nothing of one."""
    return f" by {1 + len(job.members)} runs together" if job.members else ""


def _how(job: Job) -> str:
    """Where the captions come from: "single sample", or "selected of 10 by mbr (bleu)"."""
    if job.parts.selection.count == 1:
        return SINGLE
    choice = job.recipe.one("selection")
    by = [str(value) for name, value in choice.parameters.items() if name != "count"]
    kind = f" ({', '.join(by)})" if by else ""
    return f"selected of {job.parts.selection.count} by {choice.use}{kind}"


def _other_choices(
    judges: list[Metric], answers: Answers, said: list[Said]
) -> dict[str, list[str]]:
    """What else could have been said of each image, where captions were selected."""
    if all(len(it.candidates) == 1 for it in said):
        return {}
    return {
        SINGLE: [it.candidates[0] for it in said],
        ORACLE: oracle(judges, answers, said),
    }


def caption_features(
    job: Job, table: Tensor, seed: int, batch: int, tell: Tell = silent
) -> list[Said]:
    """What is said of each row of features N C.

    Equal calls give equal captions. A row's noise is drawn after that of the rows before it, so
    that its caption may change with its place among them and with `batch`.
    """
    job.begin_selection(tell)
    rng = Generator(job.device).manual_seed(seed)
    said: list[Said] = []
    for rows in table.split(at_once(job.parts, batch, job.parts.selection.count)):
        said += captions(job.parts, rows.to(job.device), rng)
        tell("captions", len(said), len(table), "")
    return said


def write_down(job: Job, outcome: Outcome) -> Path | None:
    """Samples, gallery and summary into the run's folder; the gallery's path, if there is one."""
    run = job.run
    lines = b"".join(rundir.line(record) for record in records(outcome.answers, outcome.said))
    rundir.write_bytes(run.path / SAMPLES, lines)
    compare.write_draws(run.path / DRAWS, draws(outcome.scores), outcome.answers.image_ids)
    picture = draw_gallery(job, outcome, run.path / "gallery.png")
    run.finish(results.record(job, outcome))
    for score in (it for it in outcome.scores if not it.missing):
        event = Event(step=outcome.step, name=f"score/{score.name}", value=score.value)
        _tell_plugins(run, event)
    return picture


def draw_gallery(job: Job, outcome: Outcome, path: Path) -> Path | None:
    """A contact sheet of images with their captions; None where the images aren't to be had."""
    answers = outcome.answers
    rows = choose(len(answers.captions), SHOWN, job.recipe.seed)
    try:
        images = job.split(job.recipe.evaluate.split).images(rows)
    except CdlmError as error:
        log.warning("no gallery: %s", error)
        return None
    verdicts = marks(metrics(job.recipe), answers)
    gallery(
        images,
        [answers.captions[i] for i in rows],
        [answers.references[i][0] for i in rows],
        [verdicts[i] for i in rows],
        path,
        job.recipe.about or job.recipe.name,
        outcome.about,
    )
    return path
