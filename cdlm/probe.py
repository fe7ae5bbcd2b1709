"""What a trained run can restore: one denoising step from every noise level, and the small trials.

Of x_t = alpha x0 + sigma eps, made from true captions, the network's x0_hat is rounded to words
once, and words are counted, without padding and end. Beside it stand the same without the image,
and what the nearest word to x_t / alpha gives: what nobody needs a network for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from cdlm import recipe as recipes
from cdlm import rundir
from cdlm.compose import Parts, make
from cdlm.gaussian import corrupt
from cdlm.job import Job
from cdlm.kernels import nearest_token
from cdlm.network import answer
from cdlm.progress import Tell, silent
from cdlm.protocols import Split
from cdlm.recipe import Recipe
from cdlm.records import Batch, Condition
from cdlm.run import caption_features

if TYPE_CHECKING:
    from rich.table import Table

SHARE = 0.95  # "restores" means this share of words
TINY = 1e-12  # stands for an alpha of 0, which some schedules have at t = 1
WITH, WITHOUT, NEAREST = "with the image", "without the image", "nearest word alone"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Captions learnt by heart: what is sampled for their images."""

    captions: int  # that the run was trained on, of these images
    images: int  # that they belong to
    right: int  # images whose sampled caption is one of theirs

    @property
    def passed(self) -> bool:
        return self.right == self.images


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was found. Every curve has a share of restored words for each time."""

    split: str
    captions: int
    words: int  # that were counted, at each time
    step: int  # of the weights
    levels: int  # T of a run that was trained on T discrete levels; else 0
    times: list[float]  # t, rising
    log_snr: list[float]  # log(alpha^2 / sigma^2) at each time
    curves: dict[str, list[float]]
    trial: Trial | None

    def reach(self, curve: str) -> float:
        """The last time up to which the curve stays at SHARE or above; 0 where it never is."""
        reached = 0.0
        for t, share in zip(self.times, self.curves[curve], strict=True):
            if share < SHARE:
                break
            reached = t
        return reached


def probe(job: Job, points: int, limit: int, tell: Tell = silent) -> Probe:
    """Restore true captions from `points` noise levels, and sample those of a small trial.

    The captions are the first ones of `limit` images of the evaluation split; of a run that was
    trained on `train.limit` captions, those. Raises RunError where the run has no weights.
    """
    step, recipe = job.load_weights(), job.recipe
    small = recipe.train.limit
    name = "train" if small else recipe.evaluate.split
    levels = _levels(recipe)
    times = [i / points for i in range(1, points + 1)]
    if levels:
        times = sorted({max(1, round(t * levels)) / levels for t in times})
    split = job.split(name)
    rows, texts = _chosen(split, small, limit)
    table = job.features(name, tell)
    batch = _batch(job, table[rows], texts)
    curves: dict[str, list[float]] = {it: [] for it in _wanted(job)}
    for i, t in enumerate(times):
        tell("probing", i, len(times), f"t = {t:.2f}")
        for curve, x0_hat in _estimates(job, batch, t, list(curves)):
            curves[curve].append(_share(job.parts, batch, x0_hat))
    tell("probing", len(times), len(times), "")
    level = job.parts.schedule(torch.tensor(times, dtype=torch.float64, device=job.device))
    return Probe(
        split=name,
        captions=len(texts),
        words=int(_counted(job.parts, batch).sum()),
        step=step,
        levels=levels,
        times=times,
        log_snr=(2 * (level.alpha.clamp(min=TINY) / level.sigma).log()).tolist(),
        curves=curves,
        trial=_trial(job, table, rows, tell) if small else None,
    )


def _levels(recipe: Recipe) -> int:
    """T, where schedule or timesteps count in steps."""
    for kind in ("timesteps", "schedule"):
        if steps := recipe.one(kind).parameters.get("steps"):
            return int(steps)
    return 0


def _trained(split: Split, small: int) -> list[tuple[int, str]]:
    """The captions that a small trial was trained on, each with the row of its image."""
    return [(row, text) for row, texts in enumerate(split.captions) for text in texts][:small]


def _chosen(split: Split, small: int, limit: int) -> tuple[list[int], list[str]]:
    """Rows of images and a caption for each: the trained ones, or the first of each image."""
    firsts = [(row, texts[0]) for row, texts in enumerate(split.captions)]
    chosen = _trained(split, small) if small else firsts
    rows, texts = zip(*chosen[: limit or None], strict=True)
    return list(rows), list(texts)


def _batch(job: Job, features: Tensor, texts: list[str]) -> Batch:
    ids, mask = job.parts.tokenizer.encode(texts, job.recipe.model.length)
    on = job.device
    return Batch(ids=ids.to(on), mask=mask.to(on), features=features.to(on))


def _wanted(job: Job) -> list[str]:
    """The curves: without the image only of a network that has learnt to do without.

    What it has learnt, the run's own recipe says; the job's may sample with another guidance.
    """
    trained = recipes.loads(job.run.recipe_text(), place=str(job.run.recipe))
    guidance = make(trained.one("guidance"), dims=job.parts.dims)
    return [WITH, *([WITHOUT] if guidance.drop else []), NEAREST]


def _counted(parts: Parts, batch: Batch) -> Tensor:
    """B L bool: the places of words."""
    return batch.mask & (batch.ids != parts.tokenizer.end) & (batch.ids != parts.tokenizer.pad)


def _share(parts: Parts, batch: Batch, x0_hat: Tensor) -> float:
    """The share of words to which an estimate B L E is nearest."""
    ids = nearest_token(x0_hat, parts.embedding.table())
    return float((ids == batch.ids)[_counted(parts, batch)].float().mean())


@torch.no_grad()
def _estimates(job: Job, batch: Batch, t: float, curves: list[str]) -> Iterator[tuple[str, Tensor]]:
    """For each curve, the x0_hat B L E that it makes of the captions at time t."""
    parts, x0 = job.parts, job.parts.embedding(batch.ids)
    rng = Generator(x0.device).manual_seed(job.recipe.seed)
    eps = torch.randn(x0.shape, generator=rng, device=x0.device)
    noised = corrupt(x0, eps, x0.new_full((len(x0),), t), parts.schedule)
    mask = parts.length.mask(batch)

    def said(keep: bool) -> Tensor:
        kept = torch.full((len(x0),), keep, device=x0.device)
        columns = (noised.x_t, noised.t, batch.features, kept, mask)
        pieces = zip(*(it.split(job.recipe.evaluate.batch) for it in columns), strict=True)
        return torch.cat(
            [
                answer(parts, x_t, times, Condition(features=features, keep=given), seen).x0_hat
                for x_t, times, features, given, seen in pieces
            ]
        )

    makers: dict[str, Callable[[], Tensor]] = {
        WITH: lambda: said(True),
        WITHOUT: lambda: said(False),
        NEAREST: lambda: noised.x_t / parts.schedule(noised.t).over(x0).alpha.clamp(min=TINY),
    }
    for curve in curves:
        yield curve, makers[curve]()


def _trial(job: Job, table: Tensor, rows: list[int], tell: Tell) -> Trial:
    """Whether the images of these rows get captions that the run was trained on for them."""
    images, recipe, tokenizer = sorted(set(rows)), job.recipe, job.parts.tokenizer
    own: dict[int, set[str]] = {row: set() for row in images}
    learnt = [it for it in _trained(job.split("train"), recipe.train.limit) if it[0] in own]
    ids, _ = tokenizer.encode([text for _, text in learnt], recipe.model.length)
    for (row, _), text in zip(learnt, tokenizer.decode(ids), strict=True):
        own[row].add(text)
    said = caption_features(job, table[images], recipe.seed, recipe.evaluate.batch, tell)
    right = sum(it.caption in own[row] for row, it in zip(images, said, strict=True))
    return Trial(captions=len(learnt), images=len(images), right=right)


# ----------------------------------------------------------------------------------------- shown


def verdicts(found: Probe) -> list[str]:
    """What the curves say, in words."""
    said = [f"one step restores {SHARE:.0%} of the words"]
    said += [f"    {name:<18} {till(found, name)}" for name in (WITH, WITHOUT, NEAREST)]
    if found.trial:
        trial = found.trial
        word, plural = "passed" if trial.passed else "failed", "" if trial.captions == 1 else "s"
        said.append(
            f"trial of {trial.captions} caption{plural}: {word}, "
            f"{trial.right} of {trial.images} sampled word for word"
        )
    return said


def till(found: Probe, curve: str) -> str:
    """Up to which noise level a curve restores SHARE of the words."""
    if curve not in found.curves:
        return "not asked: this run was always trained with it"
    t = found.reach(curve)
    if not t:
        return f"not at t = {found.times[0]:.2f}, the least that was asked"
    place = found.times.index(t)
    step = f", step {round(t * found.levels)} of {found.levels}" if found.levels else ""
    return f"up to t = {t:.2f} (log-SNR {found.log_snr[place]:+z.1f}{step})"


def table(found: Probe, title: str) -> Table:
    """A row for each time."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("t", "log-SNR", *found.curves):
        drawn.add_column(name, justify="right")
    for i, t in enumerate(found.times):
        shares = [f"{curve[i]:.3f}" for curve in found.curves.values()]
        drawn.add_row(f"{t:.2f}", f"{found.log_snr[i]:+z.1f}", *shares)
    return drawn


def read(text: str) -> Probe:
    """What `write` wrote into probe.json. Raises ValueError, KeyError, TypeError."""
    facts = json.loads(text)
    del facts["reach"]
    if facts["trial"]:
        del facts["trial"]["passed"]
        facts["trial"] = Trial(**facts["trial"])
    return Probe(**facts)


def write(found: Probe, folder: Path, title: str) -> Path:
    """probe.json and probe.png into this folder; the picture's path. Raises OSError."""
    from cdlm import charts

    folder.mkdir(exist_ok=True)
    facts = asdict(found) | {"reach": {name: found.reach(name) for name in found.curves}}
    if found.trial:
        facts["trial"]["passed"] = found.trial.passed
    text = json.dumps(facts, indent=2, allow_nan=False)
    rundir.write_text(folder / "probe.json", f"{text}\n")
    picture = folder / "probe.png"
    charts.lines(
        picture,
        {name: (found.times, shares) for name, shares in found.curves.items()},
        title=f"{title}: words restored by one step",
        across="t (0: clean text, 1: noise)",
        up="share of words",
        ceiling=1.03,
        note=f"{found.words:,} words of {found.captions:,} captions, {found.split} split, "
        f"weights of step {found.step}",
    )
    return picture
