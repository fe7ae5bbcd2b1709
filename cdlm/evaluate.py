"""Captions against references: scores, the table that shows them, samples to read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdlm.errors import PluginError
from cdlm.protocols import Metric
from cdlm.records import Answers

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_REFERENCES = 2  # of each image in a sample table; more would hide the captions

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


def signature(scores: Sequence[Score]) -> str:
    """How the scores were made, in one line, so that they can be compared with others'."""
    names = {score.name for score in scores}
    families = {"corpus BLEU": "bleu_4", "ROUGE-L": "rouge_l", "CIDEr-D": "cider_d"}
    coco = ", ".join(family for family, name in families.items() if name in names)
    protocol = [f"{coco} as coco-caption scores them"] if coco else []
    return "; ".join([*protocol, "cdlm's tokenizer", "single sample"])


def table(scores: Sequence[Score], title: str) -> Table:
    """Metric, value and N, one row each, above the signature; for a terminal or a file."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    caption = Text(signature(scores), style="dim", justify="left")
    drawn = Table(
        title=Text(title), caption=caption, title_justify="left", box=box.SIMPLE_HEAD, min_width=48
    )
    drawn.add_column("metric", ratio=1)
    drawn.add_column("value", justify="right")
    drawn.add_column("N", justify="right")
    for score in scores:
        label = LABELS.get(score.name, score.name.replace("_", " "))
        drawn.add_row(Text(label), f"{score.value:.4f}", f"{score.n:,}")
    return drawn


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


def records(answers: Answers) -> list[dict[str, Any]]:
    """One record for each image, as samples.jsonl keeps them."""
    rows = zip(answers.image_ids, answers.captions, answers.references, strict=True)
    return [
        {"image_id": image_id, "caption": caption, "references": references}
        for image_id, caption, references in rows
    ]


def plain(text: str) -> str:
    """The text on one line, safe to print and to draw: what is unprintable becomes U+FFFD."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
