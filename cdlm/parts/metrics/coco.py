"""Captions against references, exactly as coco-caption scores them.

The protocol: Penn Treebank tokens in lower case without punctuation, corpus BLEU with the closest
reference length, METEOR 1.5, ROUGE-L with beta 1.2, CIDEr-D with document frequencies from the
evaluated images, SPICE. Counts come from pycocoevalcap's own scorers and programs. All are
fractions from 0 to 1, but CIDEr-D, from 0 to 10.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np

from cdlm.errors import Unavailable
from cdlm.parts.metrics import java
from cdlm.parts.metrics.common import mean, pairs
from cdlm.records import Answers, Tally

ORDERS = 4  # BLEU-1 to BLEU-4


@dataclass(frozen=True, kw_only=True)
class Bleu:
    """Share of n-grams that occur in a reference, geometric mean over n, times brevity.

    BLEU-N = min(1, exp(1 - r/c)) (p_1 ... p_N)^(1/N), with counts summed over the corpus before
    dividing; a word counts at most as often as in one reference; c is the length of the captions,
    r that of the closest references. It is not the mean of the BLEU of single captions.
    Units: bleu_1 ... bleu_4, 0 to 1; higher is better. Papers print 100 times this.
    Source: Papineni et al. 2002, as scored by coco-caption. Raises DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Hits and tries for each n, the caption's length, and that of its closest reference."""
        from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

        rows = []
        for caption, references in pairs(answers):
            found = cook_test(caption, cook_refs(references, n=ORDERS), eff="closest", n=ORDERS)
            lengths = found["testlen"], found["reflen"]
            rows.append([*found["correct"], *found["guess"], *lengths])
        return Tally(np.array(rows, dtype=np.float64), _bleu)

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


@dataclass(frozen=True, kw_only=True)
class RougeL:
    """Longest common subsequence with the references, as an F-score, averaged over images.

    F = (1 + b^2) P R / (R + b^2 P), b = 1.2; P and R are the best over the references, each apart.
    Units: rouge_l, 0 to 1; higher is better; an empty caption scores 0.
    Source: Lin 2004, as scored by coco-caption. Raises DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Each caption's score."""
        from pycocoevalcap.rouge.rouge import Rouge

        score = Rouge().calc_score
        # The scorer takes an empty caption for one empty word, which an empty reference matches.
        scores = [score([c], references) if c else 0.0 for c, references in pairs(answers)]
        return mean({"rouge_l": scores})

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


@dataclass(frozen=True, kw_only=True)
class CiderD:
    """Likeness of n-grams to the references, rare ones counting more, averaged over images.

    10 times the mean over n = 1..4 and over references of the cosine of tf-idf vectors, clipped,
    times exp(-(difference in length)^2 / 2 sigma^2), sigma = 6; idf = ln(images / images whose
    references have the n-gram), over the evaluated images: it means little for a few, and is 0
    for one.
    Units: cider_d, 0 to 10; higher is better. A caption equal to its image's only reference
    scores 10. Papers print 100 times this ("CIDEr 114" is 1.14).
    Source: Vedantam et al. 2015, as scored by coco-caption. Raises DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Each caption's score; document frequencies are those of all the images."""
        from pycocoevalcap.cider.cider_scorer import CiderScorer

        scorer, rows = CiderScorer(n=4, sigma=6.0), pairs(answers)
        for row in rows:
            scorer += row
        if not any(any(references) for _, references in rows):  # the scorer has no answer to this
            return mean({"cider_d": [0.0] * len(rows)})
        _, scores = scorer.compute_score()
        return mean({"cider_d": scores})

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


@dataclass(frozen=True, kw_only=True)
class Meteor:
    """Words aligned with a reference, by form, stem, synonym and paraphrase, in few pieces.

    (1 - penalty) P R / (alpha P + (1 - alpha) R), penalty = gamma (chunks / matches)^beta, with
    alpha 0.85, beta 0.2, gamma 0.6. P and R are the shares of words that match, function words
    counting a quarter and other words three; matches by form count 1, stem and paraphrase 0.6,
    synonym 0.8. Each caption against its best reference, counts summed over the corpus.
    Units: meteor, 0 to 1; higher is better. Papers print 100 times this.
    Source: Denkowski & Lavie 2014, METEOR 1.5 for English; its own program counts.
    Raises Unavailable without Java, DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """The program's 23 counts of each caption against its best reference."""
        rows = pairs(answers)
        if why := java.lacking(METEOR):
            raise Unavailable(["meteor"], why)
        try:
            counts = [_meteor_counts(caption, tuple(references)) for caption, references in rows]
        except java.JavaFailed as error:
            raise Unavailable(["meteor"], f"the program failed: {error}") from error
        return Tally(_without_perfect_chunks(np.array(counts, dtype=np.float64)), _meteor)

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


@dataclass(frozen=True, kw_only=True)
class Spice:
    """Likeness of scene graphs: objects, attributes and relations that the references name too.

    The F-score of the caption's tuples against those of all its references, averaged over images.
    Units: spice, 0 to 1; higher is better. Papers print 100 times this.
    Source: Anderson et al. 2016; its own program. It needs Java 8 and Stanford CoreNLP 3.6.0, which
    pycocoevalcap downloads (384 MB) at the first `pycocoevalcap.spice.spice.Spice()`.
    Raises Unavailable without them, DataError without references.
    """

    needs: ClassVar[set[str]] = set()

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Each caption's score."""
        rows = pairs(answers)
        if why := java.lacking(SPICE, *CORENLP):
            raise Unavailable(["spice"], why)
        try:
            return mean({"spice": _spice_scores(rows)})
        except java.JavaFailed as error:
            raise Unavailable(["spice"], f"the program failed: {error}") from error

    def marks(self, answers: Answers) -> None:
        """It gives no verdict on a single caption."""


# ------------------------------------------------------------------------------- corpus formulas


def _bleu(sums: np.ndarray) -> dict[str, np.ndarray]:
    """BLEU-1 ... 4 of summed counts, with coco-caption's guards against division by zero."""
    hits, tries = sums[..., :ORDERS], sums[..., ORDERS : 2 * ORDERS]
    length, closest = sums[..., -2], sums[..., -1]
    shares = ((hits + 1e-15) / (tries + 1e-9)).cumprod(-1)
    ratio = (length + 1e-15) / (closest + 1e-9)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return {f"bleu_{n}": shares[..., n - 1] ** (1 / n) * brevity for n in range(1, ORDERS + 1)}


ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # of METEOR 1.5 for English
STAGES = np.array([1.0, 0.6, 0.8, 0.6])  # weights of matches by form, stem, synonym, paraphrase


def _meteor(sums: np.ndarray) -> dict[str, np.ndarray]:
    """METEOR of summed counts, in the order in which its program prints them."""
    lengths, function = sums[..., 0:2], sums[..., 2:4]  # of caption and reference
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)  # stage, (content, function) x both
    content_hits, function_hits = stages[..., 0:2], stages[..., 2:4]
    chunks, matched = sums[..., 20], sums[..., 21:23]
    weighted = DELTA * content_hits + (1 - DELTA) * function_hits
    whole = DELTA * (lengths - function) + (1 - DELTA) * function
    shares = _divided((weighted * STAGES[:, None]).sum(-2), whole)
    precision, recall = shares[..., 0], shares[..., 1]
    f_mean = _divided(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    return {"meteor": f_mean * (1 - GAMMA * _divided(chunks, matched.mean(-1)) ** BETA)}


def _without_perfect_chunks(rows: np.ndarray) -> np.ndarray:
    """The counts, no chunk where all of caption and reference match as one: so METEOR sums them."""
    hits = rows[:, 4:20].reshape(-1, 4, 4).sum(1)
    whole = (hits[:, 0:2] + hits[:, 2:4] == rows[:, 0:2]).all(1)
    rows[whole & (rows[:, 20] == 1), 20] = 0
    return rows


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where there is no whole."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), 0.0)


# ------------------------------------------------------------------------------------- programs

METEOR = java.shipped("meteor/meteor-1.5.jar")
METEOR_COUNTS = 23
METEOR_SECONDS = 120.0  # for an answer; the first takes about 8, for a table of paraphrases

SPICE = java.shipped("spice/spice-1.0.jar")
CORENLP = [SPICE.parent / "lib" / f"stanford-corenlp-3.6.0{end}.jar" for end in ("", "-models")]
SPICE_SECONDS = 600.0, 1.0  # to start, and for each image; it needs a small part of this


@lru_cache(maxsize=1 << 16)
def _meteor_counts(caption: str, references: tuple[str, ...]) -> tuple[float, ...]:
    """What the program counts of a caption against its best reference. Raises JavaFailed."""
    program = java.companion("-Xmx2G", "-jar", str(METEOR), "-", "-", "-stdio", "-l", "en", "-norm")
    # "|||" parts the fields of its lines
    texts = (text.replace("|||", "").replace("  ", " ") for text in (*references, caption))
    answer = program.ask(" ||| ".join(("SCORE", *texts)), METEOR_SECONDS)
    try:
        counts = tuple(map(float, answer.split()))
    except ValueError:
        counts = ()
    if len(counts) != METEOR_COUNTS:
        raise java.JavaFailed(f"it answered {answer[:80]!r}")
    return counts


def _spice_scores(rows: Sequence[tuple[str, list[str]]]) -> list[float]:
    """The program's F-score of each caption. Raises JavaFailed."""
    given = [{"image_id": i, "test": c, "refs": refs} for i, (c, refs) in enumerate(rows)]
    start, each = SPICE_SECONDS
    with TemporaryDirectory() as folder:
        asked, told = Path(folder, "asked.json"), Path(folder, "told.json")
        asked.write_text(json.dumps(given))
        options = ["-out", str(told), "-subset", "-silent"]
        command = ["-Xmx8G", "-jar", str(SPICE), str(asked), *options]
        java.output(command, b"", start + each * len(rows))
        found = json.loads(told.read_bytes())
    scores = {it["image_id"]: float(it["scores"]["All"]["f"]) for it in found}
    return [scores[i] for i in range(len(rows))]
