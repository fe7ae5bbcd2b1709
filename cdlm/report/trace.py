"""A denoising trace: what a caption says at each step of sampling, and when its words settle.

A word has settled at a step if its place holds the final word from there on.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from cdlm.compose import Parts
from cdlm.job import Job
from cdlm.progress import Tell, silent
from cdlm.records import Condition
from cdlm.sample import sample, to_possible, words


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One caption on its way from noise. Steps count from 0, the noise itself."""

    image_id: str
    said: list[list[str]]  # at each step, the words up to the caption's end
    settled: list[int]  # of each word of the last step, the step at which it settled


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Some captions' traces, and the share of settled words among all captions of their batch."""

    split: str
    step: int  # of the weights
    sampler: str  # or the process, where that is what steps
    captions: int  # of the batch
    times: list[float]  # t after each step; 1 for the noise
    share: list[float]  # of all final words, ends included, that have settled at each step
    traces: list[Trace]


def follow(job: Job, count: int, tell: Tell = silent) -> Traces:
    """Sample the first batch of the evaluation split again, and keep `count` traces.

    It is the batch that `evaluate_run` samples first, from the same noise: where one candidate is
    drawn for each image, the captions are those of samples.jsonl. Raises RunError, CdlmError.
    """
    step, plan, parts = job.load_weights(), job.recipe.evaluate, job.parts
    split, table = job.split(plan.split), job.features(plan.split, tell)
    copies = parts.selection.count
    rows = table[: plan.limit or None][: max(1, plan.batch // copies)].to(job.device)
    times, said = _states(job, rows.repeat_interleave(copies, 0), tell)
    ids = said[:, ::copies]
    settled = settling(ids)
    spoken = up_to_end(ids[-1], parts.tokenizer.end) & (ids[-1] != parts.tokenizer.pad)
    chosen = sorted(random.Random(job.recipe.seed).sample(range(len(rows)), min(count, len(rows))))
    return Traces(
        split=plan.split,
        step=step,
        sampler=job.recipe.one(job.recipe.stepped_by).use,
        captions=len(rows),
        times=times,
        share=[float((settled <= i)[spoken].float().mean()) for i in range(len(times))],
        traces=[_trace(parts, split.ids[row], ids[:, row], settled[row]) for row in chosen],
    )


def read(text: str) -> Traces:
    """The traces that were written as JSON. Raises ValueError, KeyError, TypeError."""
    facts = json.loads(text)
    return Traces(**facts | {"traces": [Trace(**it) for it in facts["traces"]]})


def _states(job: Job, rows: Tensor, tell: Tell) -> tuple[list[float], Tensor]:
    """The times of all states, and the words at each: S, S B L."""
    parts, rng = job.parts, Generator(rows.device).manual_seed(job.recipe.seed)
    steps = job.recipe.one(job.recipe.stepped_by).parameters.get("steps") or parts.dims.length
    keep = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    condition = Condition(features=rows, keep=keep)
    mask = to_possible(parts, parts.length.draw(condition, rng))
    times, said = list[float](), list[Tensor]()
    for state in sample(parts, condition, mask, None, rng):
        tell("tracing", len(said), steps, f"t = {state.t:.2f}")
        times.append(float(state.t))
        said.append(words(parts, state, mask).cpu())
    return times, torch.stack(said)


def settling(ids: Tensor) -> Tensor:
    """The first step from which on a place keeps its final word. Shapes: S B L -> B L."""
    other = ids != ids[-1]
    steps = torch.arange(1, len(ids) + 1).view(-1, 1, 1)
    return (other * steps).amax(0)


def up_to_end(ids: Tensor, end: int) -> Tensor:
    """The places of words and of the first end. Shapes: ... L -> ... L bool."""
    ends = (ids == end).int()
    return ends.cumsum(-1) - ends == 0


def _trace(parts: Parts, image_id: str, ids: Tensor, settled: Tensor) -> Trace:
    """One caption's trace, of its ids S L and the steps L at which they settle."""
    said = [_words(parts, row) for row in ids]
    return Trace(image_id=image_id, said=said, settled=settled[: len(said[-1])].tolist())


def _words(parts: Parts, ids: Tensor) -> list[str]:
    """Each id's text by itself, "" for padding, up to the end and without padding before it."""
    spoken = up_to_end(ids, parts.tokenizer.end) & (ids != parts.tokenizer.end)
    last = (spoken & (ids != parts.tokenizer.pad)).nonzero()
    if not len(last):
        return []
    return [text.strip() for text in parts.tokenizer.decode(ids[: int(last[-1]) + 1, None])]
