"""Captions against references: scores, the table that shows them, samples to read."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cdlm.errors import PluginError
from cdlm.parts.metrics import tokenize
from cdlm.parts.selections import sentence_bleu
from cdlm.protocols import Metric
from cdlm.records import Answers, Said

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_REFERENCES = 2  # of each image in a sample table; more would hide the captions

SINGLE = "single sample"
ORACLE = "oracle"
SELECTED = "selected"

LABELS = {f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)} | {
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D (0 to 10)",
}


@dataclass(frozen=True)
class Score:
    """One number that a metric gave, and over how many images."""

    name: str
    value: float
    n: int


def evaluate(metrics: Sequence[Metric], answers: Answers) -> list[Score]:
    """Every score of every metric, in the metrics' order.

    Raises DataError where the answers can't be scored, PluginError where two metrics use one name.
    """
    scores: list[Score] = []
    for metric in metrics:
        for name, value in metric(answers).items():
            if any(score.name == name for score in scores):
                raise PluginError(
                    f'metric {type(metric).__name__}: gives a score named "{name}", but a metric '
                    "before it gives one too; list each metric once, or rename the score"
                )
            scores.append(Score(name, float(value), len(answers.captions)))
    return scores


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
    names = {score.name for score in scores}
    families = {"corpus BLEU": "bleu_4", "ROUGE-L": "rouge_l", "CIDEr-D": "cider_d"}
    coco = ", ".join(family for family, name in families.items() if name in names)
    protocol = [f"{coco} as coco-caption scores them"] if coco else []
    unfair = [f"{ORACLE}: chosen by the references, not a fair score"] if how != SINGLE else []
    return "; ".join([*protocol, "cdlm's tokenizer", how, *unfair])


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
    caption = Text(signature(scores, how), style="dim", justify="left")
    drawn = Table(
        title=Text(title), caption=caption, title_justify="left", box=box.SIMPLE_HEAD, min_width=48
    )
    drawn.add_column("metric", ratio=1)
    for name in (*columns, "N"):
        drawn.add_column(name, justify="right")
    for i, score in enumerate(scores):
        values = [f"{column[i].value:.4f}" for column in columns.values()]
        drawn.add_row(Text(label(score.name)), *values, f"{score.n:,}")
    return drawn


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
