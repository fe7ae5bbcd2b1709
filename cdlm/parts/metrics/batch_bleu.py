"""BLEU as a mean over batches, as CLIP-Diffusion-LM computed it."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from cdlm.parts.metrics.common import require_references
from cdlm.records import Answers
from cdlm.values import Positive


@dataclass(frozen=True, kw_only=True)
class BatchBleu:
    """BLEU-4 as CLIP-Diffusion-LM computed it; only for standing beside its figures.

    Mean over batches of the corpus BLEU of each, in the order of the split; a last batch that is
    not full is left out, and one without a common 4-gram scores 0. Both sides are in lower case
    between [CLS] and [SEP], which count as words, and are split at white space alone: the captions
    have their punctuation stuck to the word before ("dog."), the references as they stand in the
    file ("dog ."). Captions go on with [PAD] to one beyond the longest of the batch, `length` at
    most. It is neither corpus BLEU (`bleu`: no marks, no punctuation, all images at once) nor a
    mean over images, and its batches change with the order.
    Units: batch_bleu_4, 0 to 1; higher is better.
    Source: the released code of Xu 2022 (CLIP-Diffusion-LM), with torchmetrics' BLEUScore. There
    [PAD] fills up word pieces; here a rare word is one piece. There an image counts once for each
    of its captions in the split, here once.
    Raises DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    batch: Positive = 8  # images in a batch
    length: Positive = 16  # pieces of a caption, marks and padding included

    def __call__(self, answers: Answers) -> dict[str, float]:
        require_references(answers)
        count = len(answers.captions)
        full = count - count % self.batch or count  # fewer than a batch are one
        scores = []
        for start in range(0, full, self.batch):
            rows = slice(start, start + self.batch)
            said = _padded(answers.captions[rows], self.length)
            truth = [
                [f"[CLS] {text.lower()} [SEP]".split() for text in texts]
                for texts in answers.references[rows]
            ]
            scores.append(_bleu_4(said, truth))
        return {"batch_bleu_4": sum(scores) / len(scores)}

    def tally(self, answers: Answers) -> None:
        """A caption counts by the batch that it stands in."""

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


_PIECE = re.compile(r"[^\W_]+|[^\w\s]|_")  # as BERT splits words from signs
_LOOSE = re.compile(r" (?=[.?!,]|n't|'(?:m|s|ve|re)\b)")  # what its tokenizer joins again


def _padded(captions: list[str], length: int) -> list[list[str]]:
    """The words of each caption between its marks, and the padding that is left behind them.

    Padding that all captions of the batch share goes, but for one, as equal columns did there.
    """
    pieces = [len(_PIECE.findall(caption)) + 2 for caption in captions]
    width = min(length, max(pieces) + 1)
    return [
        ["[CLS]", *_LOOSE.sub("", caption.lower()).split(), "[SEP]", *["[PAD]"] * (width - used)]
        for caption, used in zip(captions, pieces, strict=True)
    ]


def _bleu_4(said: list[list[str]], truth: list[list[list[str]]]) -> float:
    """Corpus BLEU-4 of words, not smoothed; of references equally near in length the first."""
    right, all_, length, near = [0] * 4, [0] * 4, 0, 0
    for words, references in zip(said, truth, strict=True):
        length += len(words)
        near += len(min(references, key=lambda it: abs(len(it) - len(words))))
        for n in range(4):
            found = _grams(words, n + 1)
            known: Counter[tuple[str, ...]] = Counter()
            for reference in references:
                known |= _grams(reference, n + 1)
            right[n] += (found & known).total()
            all_[n] += found.total()
    if not all(right):
        return 0.0
    precision = math.prod(r / a for r, a in zip(right, all_, strict=True)) ** (1 / 4)
    return precision * min(1.0, math.exp(1 - near / length))


def _grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))
