"""Captions against references: scores, the table that shows them, samples to read."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cdlm.errors import PluginError, Unavailable
from cdlm.parts.metrics import tokenize
from cdlm.parts.metrics.tokens import engine
from cdlm.parts.selections import sentence_bleu
from cdlm.protocols import Metric
from cdlm.records import Answers, Said, Tally

if TYPE_CHECKING:
    from rich.table import Table

RESAMPLES = 1000  # of the images, for intervals
OUTSIDE = 2.5, 97.5  # percentiles that bound an interval
SHOWN_REFERENCES = 2  # of each image in a sample table; more would hide the captions

SINGLE = "single sample"
ORACLE = "oracle"
SELECTED = "selected"

FAMILIES = {  # those of coco-caption, and a score of each
    "corpus BLEU": "bleu_4",
    "METEOR": "meteor",
    "ROUGE-L": "rouge_l",
    "CIDEr-D": "cider_d",
    "SPICE": "spice",
}
LABELS = {f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)} | {
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D (0 to 10)",
    "spice": "SPICE",
    "clip_score": "CLIPScore",
    "ref_clip_score": "RefCLIPScore",
    "self_bleu_4": "self-BLEU-4",
}


@dataclass(frozen=True)
class Score:
    """One number that a metric gave, and over how many images."""

    name: str
    value: float  # nan where it can't be had
    n: int
    interval: tuple[float, float] | None = None  # 95 %, where it was asked for and has one
    missing: str = ""  # why it can't be had


def evaluate(metrics: Sequence[Metric], answers: Answers, resamples: int = 0) -> list[Score]:
    """Every score of every metric, in the metrics' order.

    resamples: how often the images are drawn anew, with replacement, for intervals; 0: none. The
    draws are the same at every call and for every metric, and hold the sums of what each image
    adds (`Metric.tally`), so that nothing is scored twice.
    Raises DataError where the answers can't be scored, PluginError where two metrics use one name.
    """
    scores: list[Score] = []
    for metric in metrics:
        for score in _scores(metric, answers, resamples):
            if any(other.name == score.name for other in scores):
                raise PluginError(
                    f'metric {type(metric).__name__}: gives a score named "{score.name}", but a '
                    "metric before it gives one too; list each metric once, or rename the score"
                )
            scores.append(score)
    return scores


def _scores(metric: Metric, answers: Answers, resamples: int) -> list[Score]:
    n = len(answers.captions)
    try:
        tally = metric.tally(answers)
        found = metric(answers) if tally is None else tally.total()
    except Unavailable as error:
        return [Score(name, math.nan, n, missing=error.why) for name in error.scores]
    bounds = intervals(tally, resamples) if tally and resamples else {}
    return [Score(name, float(value), n, bounds.get(name)) for name, value in found.items()]


def intervals(tally: Tally, resamples: int) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each score: percentiles over draws of as many images as there are.

    Source: Efron 1979 (percentile bootstrap); for BLEU, Koehn 2004.
    """
    values = tally.score(_draws(len(tally.rows), resamples) @ tally.rows)
    bounds = {name: np.percentile(value, OUTSIDE) for name, value in values.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


@lru_cache(maxsize=2)
def _draws(images: int, resamples: int) -> np.ndarray:
    """How often each image is in each draw: resamples x images."""
    rng = np.random.default_rng(0)
    rows = (
        np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(resamples)
    )
    return np.fromiter(rows, dtype=(np.float32, images), count=resamples)


def available(scores: Sequence[Score]) -> dict[str, float]:
    """The values of the scores that could be had, by name."""
    return {score.name: score.value for score in scores if not score.missing}


def oracle(metrics: Sequence[Metric], answers: Answers, said: Sequence[Said]) -> list[str]:
    """Of each image the candidate that is best by the answers, which no captioner can look at.

    Best is who is right by the first metric that gives verdicts; among equals, or where there is
    no such metric, who is nearest to the references by sentence BLEU-4. Equals: the first.
    """
    turns = zip(*(it.candidates for it in said), strict=True)  # all first ones, all second ones
    right = [marks(metrics, replace(answers, captions=list(texts))) for texts in turns]
    best = []
    for row, it in enumerate(said):
        truth = [tokenize(text) for text in answers.references[row]]
        near = [sentence_bleu(tokenize(text), truth) for text in it.candidates]
        worth = [(bool(right[i][row]), near[i]) for i in range(len(near))]
        best.append(it.candidates[worth.index(max(worth))])
    return best


def marks(metrics: Sequence[Metric], answers: Answers) -> list[bool | None]:
    """Each caption's own verdict, from the first metric that gives verdicts."""
    for metric in metrics:
        if (found := metric.marks(answers)) is not None:
            return list(found)
    return [None] * len(answers.captions)


def label(metric: str) -> str:
    """A score's name as people write it."""
    return LABELS.get(metric, metric.replace("_", " "))


def signature(scores: Sequence[Score], how: str = SINGLE) -> str:
    """How the scores were made, in one line, so that they can be compared with others'.

    how: where the captions come from, such as "selected of 10 by mbr".
    """
    names = available(scores)
    coco = ", ".join(family for family, name in FAMILIES.items() if name in names)
    protocol = [f"{coco} as coco-caption scores them"] if coco else []
    unfair = (
        [f"{ORACLE}: chosen by the references, not a fair score"]
        if how.startswith(SELECTED)
        else []
    )
    sure = [f"95 %: {RESAMPLES:,} resamples of the images"] if _any_interval(scores) else []
    return "; ".join([*protocol, engine(), how, *unfair, *sure])


def _any_interval(scores: Sequence[Score]) -> bool:
    return any(score.interval for score in scores)


def table(
    scores: Sequence[Score],
    title: str,
    how: str = SINGLE,
    beside: Mapping[str, Sequence[Score]] | None = None,
) -> Table:
    """Metric, value and N, one row each, above the signature; for a terminal or a file.

    beside: where captions were selected, the scores of the single samples and of the oracle.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = _columns(scores, beside or {})
    beneath = "\n".join([signature(scores, how), *_lacking(scores)])
    caption = Text(beneath, style="dim", justify="left")
    drawn = Table(
        title=Text(title), caption=caption, title_justify="left", box=box.SIMPLE_HEAD, min_width=48
    )
    drawn.add_column("metric", ratio=1)
    sure = ["95 %"] if _any_interval(scores) else []
    for name in (*columns, *sure, "N"):
        drawn.add_column(name, justify="right")
    for i, score in enumerate(scores):
        values = [_number(column[i].value) for column in columns.values()]
        bounds = [_between(score.interval)] if sure else []
        drawn.add_row(Text(label(score.name)), *values, *bounds, f"{score.n:,}")
    return drawn


def _lacking(scores: Sequence[Score]) -> list[str]:
    """For each reason, the scores that can't be had."""
    reasons = dict.fromkeys(it.missing for it in scores if it.missing)
    names = {why: [label(it.name) for it in scores if it.missing == why] for why in reasons}
    return [f"n/a: {', '.join(names[why])}: {why}" for why in reasons]


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.4f}"


def _between(interval: tuple[float, float] | None) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""


def _columns(
    scores: Sequence[Score], beside: Mapping[str, Sequence[Score]]
) -> dict[str, Sequence[Score]]:
    """The columns of values by name: one, or single, selected and oracle."""
    if not beside:
        return {"value": scores}
    return {SINGLE: beside[SINGLE], SELECTED: scores, ORACLE: beside[ORACLE]}


def sample_table(answers: Answers, n: int, seed: int) -> Table:
    """The captions of n images, drawn by the seed, beside the first references of each."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, leading=1, expand=True)
    drawn.add_column("image", style="dim", ratio=2, overflow="fold")
    drawn.add_column("caption", ratio=4, overflow="fold")
    drawn.add_column("references", style="dim", ratio=5, overflow="fold")
    for i in choose(len(answers.captions), n, seed):
        shown = answers.references[i][:SHOWN_REFERENCES]
        cells = [plain(answers.image_ids[i]), plain(answers.captions[i]) or "(empty)"]
        drawn.add_row(*map(Text, cells), Text("\n".join(map(plain, shown))))
    return drawn


def choose(total: int, n: int, seed: int) -> list[int]:
    """min(n, total) different positions below total, rising; the same for the same seed."""
    return sorted(random.Random(seed).sample(range(total), min(n, total)))


def records(answers: Answers, said: Sequence[Said] = ()) -> list[dict[str, Any]]:
    """One record for each image, as samples.jsonl keeps them; its candidates too, if many."""
    rows = zip(answers.image_ids, answers.captions, answers.references, strict=True)
    plainly: list[dict[str, Any]] = [
        {"image_id": image_id, "caption": caption, "references": references}
        for image_id, caption, references in rows
    ]
    for record, it in zip(plainly, said, strict=False):
        if len(it.candidates) > 1:
            record["candidates"] = it.candidates
    return plainly


def plain(text: str) -> str:
    """The text on one line, safe to print and to draw: what is unprintable becomes U+FFFD."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
