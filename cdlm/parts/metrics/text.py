"""Captions by themselves: right word by word, different, new, repeating, long."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cdlm.errors import CdlmError, Unavailable
from cdlm.parts.metrics.common import mean, pairs, ratio, require_captions
from cdlm.parts.metrics.tokens import joined
from cdlm.records import Answers, Tally

Words = list[str]
Gram = tuple[str, ...]
NOVEL = 4  # words of an n-gram that is looked for in the training captions


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """Share of captions that equal one of their references, word by word.

    Case and punctuation don't count: both sides are compared as coco-caption's tokens.
    Units: exact_match, 0 to 1; higher is better; an empty caption scores 0.
    Raises DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Whether each caption is one of its references."""
        hits = [caption != "" and caption in references for caption, references in pairs(answers)]
        return mean({"exact_match": hits})

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption: another wording may be as right."""


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """How different the captions of a split are from each other.

    distinct_n: different n-grams / n-grams, over all captions (Li et al. 2016).   vocabulary:
    different words.   unique_captions: different captions / captions.   self_bleu_4: mean over
    captions of the sentence BLEU-4 against all the others, 0.1 hits where there are none (Zhu et
    al. 2018, Texygen, with nltk's method1).
    Units: distinct_1, distinct_2, unique_captions and self_bleu_4 from 0 to 1, vocabulary in words;
    higher is more diverse, but for self_bleu_4. All of them change with the number of captions:
    compare equal numbers. There is no interval: a resample repeats captions.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        require_captions(answers)
        said = joined(answers.captions)
        rows = [text.split() for text in said]
        return {
            "distinct_1": _distinct(rows, 1),
            "distinct_2": _distinct(rows, 2),
            "vocabulary": float(len({word for row in rows for word in row})),
            "unique_captions": len(set(said)) / len(said),
            "self_bleu_4": _self_bleu(rows),
        }

    def tally(self, answers: Answers) -> None:
        """A caption counts by what the others say."""

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


@dataclass(frozen=True, kw_only=True)
class Novelty:
    """How much the captions say that no training caption says.

    novel_captions: share of captions that are no training caption, word by word.   novel_4grams:
    share of their sequences of four words that are in no training caption.
    Units: 0 to 1; higher is newer, which is not better by itself: nonsense is new.
    Raises Unavailable where the training captions are not known.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Whether each caption is new, and how many of its n-grams are."""
        require_captions(answers)
        known, said = joined(_training(answers)), joined(answers.captions)
        texts = set(known)
        seen = {gram for text in known for gram in _grams(text.split(), NOVEL)}
        grams = [_grams(text.split(), NOVEL) for text in said]
        new = [sum(gram not in seen for gram in row) for row in grams]
        return ratio(
            {
                "novel_captions": ([text not in texts for text in said], [1] * len(said)),
                f"novel_{NOVEL}grams": (new, [len(row) for row in grams]),
            }
        )

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """How often captions say again what they have just said.

    repeated_bigrams: share of pairs of words that the same caption has said before.
    doubled_words: share of captions in which a word follows itself ("a a dog").
    Units: 0 to 1; lower is better; people's captions are near 0.
    Source: rep-n of Welleck et al. 2020, with n = 2, within each caption.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Each caption's repeated pairs, and whether a word is doubled."""
        require_captions(answers)
        rows = [_grams(text.split(), 2) for text in joined(answers.captions)]
        again = [len(row) - len(set(row)) for row in rows]
        doubled = [any(one == two for one, two in row) for row in rows]
        return ratio(
            {
                "repeated_bigrams": (again, [len(row) for row in rows]),
                "doubled_words": (doubled, [1] * len(rows)),
            }
        )

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


@dataclass(frozen=True, kw_only=True)
class CaptionLength:
    """How long captions are, beside their references.

    words: mean number of words.   reference_words: the same of the references.   empty_captions:
    share of captions without a word. Punctuation is not counted.
    Units: words, words, 0 to 1; none is better by itself, but n-gram metrics pay for a length that
    is not that of the references.   Raises DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Words of each caption, and of its references."""
        rows = pairs(answers)
        ones = [1] * len(rows)
        truth = [sum(len(text.split()) for text in references) for _, references in rows]
        return ratio(
            {
                "words": ([len(text.split()) for text, _ in rows], ones),
                "reference_words": (truth, [len(references) for _, references in rows]),
                "empty_captions": ([not text for text, _ in rows], ones),
            }
        )

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


# --------------------------------------------------------------------------------------- n-grams


def _training(answers: Answers) -> Sequence[str]:
    """The training captions. Raises Unavailable where they can't be had."""
    why = "the training captions are not known here"
    try:
        if answers.training:
            return answers.training()
    except CdlmError as error:  # a dataset that is not on this machine
        why = str(error).partition("\n")[0]
    raise Unavailable(["novel_captions", f"novel_{NOVEL}grams"], why)


def _grams(words: Words, n: int) -> list[Gram]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _distinct(rows: Sequence[Words], n: int) -> float:
    grams = [gram for row in rows for gram in _grams(row, n)]
    return len(set(grams)) / max(len(grams), 1)


def _self_bleu(rows: Sequence[Words]) -> float:
    """The mean of each caption's BLEU-4 against all the others; 0 where there are none."""
    counts = [Counter(gram for n in range(1, 5) for gram in _grams(row, n)) for row in rows]
    most: dict[Gram, list[int]] = defaultdict(lambda: [0, 0])  # the two highest counts
    for found in counts:
        for gram, count in found.items():
            most[gram] = sorted([*most[gram], count])[1:]
    lengths = Counter(map(len, rows))
    scores = (_against_others(*it, most, lengths) for it in zip(rows, counts, strict=True))
    return math.fsum(scores) / len(rows)


def _against_others(
    words: Words, counts: Counter[Gram], most: dict[Gram, list[int]], lengths: Counter[int]
) -> float:
    """Sentence BLEU-4 of one of the captions that `most` and `lengths` count, its own left out."""
    hits = [0.0] * 4
    for gram, count in counts.items():
        second, first = most[gram]
        hits[len(gram) - 1] += min(count, second if count == first else first)
    others = lengths - Counter([len(words)])
    if not hits[0] or not others:
        return 0.0
    tries = [max(len(words) - n, 1) for n in range(4)]
    closest = min(others, key=lambda it: (abs(it - len(words)), it))
    shares = math.fsum(math.log((hit or 0.1) / of) for hit, of in zip(hits, tries, strict=True))
    return min(1.0, math.exp(1 - closest / len(words))) * math.exp(shares / 4)
