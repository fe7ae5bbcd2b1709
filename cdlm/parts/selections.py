"""One caption of several candidates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cdlm.errors import CdlmError
from cdlm.parts.cider import CiderD
from cdlm.parts.metrics import tokenize
from cdlm.protocols import Encoder
from cdlm.values import NonNegative, Positive

ORDERS = (1, 2, 3, 4)  # lengths of the n-grams
SIGMA = 6.0  # words: how far two captions' lengths may differ, as in CIDEr-D

Words = list[str]


@dataclass(frozen=True, kw_only=True)
class First:
    """The only candidate: a single sample.

    Shapes: -> B positions, all 0.
    """

    needs: ClassVar[set[str]] = set()
    count: ClassVar[int] = 1

    def __call__(
        self, candidates: list[list[str]], features: Tensor, encoder: Encoder
    ) -> list[int]:
        return [0] * len(candidates)


@dataclass(frozen=True, kw_only=True)
class Mbr:
    """Minimum Bayes risk: the candidate that is most like the others.

    argmax_i mean_{j != i} utility(candidate_i, candidate_j), utility = sentence BLEU-4 or CIDEr-D.
    BLEU counts one more hit and try for each n above 1, or short captions would all score 0.
    CIDEr-D takes every n-gram for equally rare: an image's few candidates don't tell which are, and
    other images must not change its caption. Among equals the text that is last in the alphabet.
    Shapes: -> B positions.   Source: Kumar & Byrne 2004; for text diffusion, Gong et al. 2023
    (DiffuSeq). The smoothed BLEU: Lin & Och 2004.
    """

    needs: ClassVar[set[str]] = set()

    count: Positive = 10  # candidates for each image
    by: Literal["bleu", "cider"] = "bleu"  # what likeness is

    def __call__(
        self, candidates: list[list[str]], features: Tensor, encoder: Encoder
    ) -> list[int]:
        utility: Callable[[Words, Words], float]
        utility = cider if self.by == "cider" else _bleu
        return [_best(texts, _mean_utilities(texts, utility)) for texts in candidates]


class Consensus:
    """The candidate that is most like the others, and like the captions of similar training photos.

    argmax_i mean_{j != i} u(candidate_i, candidate_j) + weight mean_r CIDEr-D(candidate_i, r), u as
    `mbr` has it by = "cider", r the captions of the `nearest` training photos, n-grams as rare as
    in all training captions. Photos are near by the cosine of their features, of a grid the mean,
    less the mean of all training photos. Among equals the text that is last in the alphabet.
    It needs the training photos and captions wherever it is used. A training photo finds itself:
    what is said of the training split in this way is no measure.
    Shapes: features B N C -> B positions.   Source: Devlin et al. 2015 (arXiv 1505.04467), whose
    consensus is of the training captions alone; of the candidates, Kumar & Byrne 2004.
    Raises CdlmError where it was not shown the training photos.
    """

    needs: ClassVar[set[str]] = set()

    def __init__(
        self,
        *,
        count: Positive = 10,  # candidates for each image
        nearest: Positive = 15,  # training photos whose captions count; all, if there are fewer
        weight: NonNegative = 5.0,  # of their captions beside the other candidates
    ):
        self.count, self.nearest, self.weight = count, nearest, weight
        self.score = CiderD([])
        self.captions: list[list[str]] = []
        self.photos = self.middle = torch.empty(0)

    def begin(self, captions: list[list[str]], features: Tensor) -> None:
        """The captions of each training photo, and their features, photos N C."""
        self.score, self.captions = CiderD(captions), captions
        photos = features.float().mean(1)
        self.middle = photos.mean(0)
        self.photos = F.normalize(photos - self.middle, dim=1)

    def __call__(
        self, candidates: list[list[str]], features: Tensor, encoder: Encoder
    ) -> list[int]:
        if not self.captions:
            raise CdlmError("selection consensus: it has not been shown the training photos")
        images = F.normalize(features.float().mean(1).to(self.photos) - self.middle, dim=1)
        many = min(self.nearest, len(self.captions))
        near = (images @ self.photos.T).topk(many, 1).indices.tolist()
        return [self._chosen(texts, rows) for texts, rows in zip(candidates, near, strict=True)]

    def _chosen(self, texts: list[str], rows: list[int]) -> int:
        """The position of the best of these, by the training photos in these rows."""
        references = [text for row in rows for text in self.captions[row]]
        alike = {text: self.score(text, references) for text in set(texts)}
        among = _mean_utilities(texts, cider)
        both = [one + self.weight * alike[text] for one, text in zip(among, texts, strict=True)]
        return _best(texts, both)


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """The candidate whose own feature is nearest to the image's, by the encoder's text tower.

    argmax_i cos(encoder.texts(candidate_i), f), f the first of the image's N tokens, which is its
    pooled feature. With a CLIP encoder this is choosing by CLIP similarity, as is often done; the
    same model then feeds and judges the captions, so don't report its score as a metric beside it.
    Among equals the text that is last in the alphabet.
    Shapes: features B N C -> B positions.   Source: Hessel et al. 2021 (CLIPScore), whose score
    this ranks by.   Raises CdlmError where the encoder has no text tower.
    """

    needs: ClassVar[set[str]] = {"new_texts"}

    count: Positive = 10  # candidates for each image

    def __call__(
        self, candidates: list[list[str]], features: Tensor, encoder: Encoder
    ) -> list[int]:
        different = sorted({text for texts in candidates for text in texts})
        rows = F.normalize(encoder.texts(different)[:, 0].float(), dim=-1)
        places = {text: i for i, text in enumerate(different)}
        images = features[:, 0].to(rows)
        chosen = []
        for texts, image in zip(candidates, images, strict=True):
            near = rows[[places[text] for text in texts]] @ image
            chosen.append(_best(texts, near.tolist()))
        return chosen


def agreement(texts: Sequence[str]) -> list[float]:
    """How far each text says what the others say: its mean sentence BLEU-4 against them, 0 to 1.

    By this `mbr` chooses, with by = "bleu". 0 where there are no others.
    """
    return _mean_utilities(texts, _bleu)


def _bleu(words: Words, other: Words) -> float:
    return sentence_bleu(words, [other])


def _best(texts: Sequence[str], values: Sequence[float]) -> int:
    """The position of the highest value; among equals the text decides, not the place."""
    return max(range(len(texts)), key=lambda i: (values[i], texts[i]))


def _mean_utilities(texts: Sequence[str], utility: Callable[[Words, Words], float]) -> list[float]:
    """Each text's mean utility against the others; 0 where there is no other."""
    words = [tokenize(text) for text in texts]
    known: dict[tuple[str, str], float] = {}
    for i, one in enumerate(texts):
        for j, other in enumerate(texts):
            if (one, other) not in known:
                known[one, other] = utility(words[i], words[j])
    others = max(len(texts) - 1, 1)
    # fsum, so that the order of the candidates does not show in the last digits
    return [
        math.fsum(known[one, other] for j, other in enumerate(texts) if j != i) / others
        for i, one in enumerate(texts)
    ]


# ---------------------------------------------------------------------------- likeness of captions


def _grams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def sentence_bleu(words: Words, references: Sequence[Words]) -> float:
    """BLEU-4 of one caption, 0 to 1: how much of it the references say too.

    brevity (p_1 ... p_4)^(1/4), p_1 = hits / tries, p_n = (hits + 1) / (tries + 1) for n above 1;
    a hit counts at most as often as in one reference; brevity = min(1, exp(1 - r / c)), with r the
    length of the closest reference. Not additive: corpus BLEU is not its mean.
    Source: Papineni et al. 2002; the added ones, Lin & Och 2004.
    """
    if not words or not references:
        return 0.0
    logs = 0.0
    for n in ORDERS:
        said = _grams(words, n)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= _grams(reference, n)
        hits, tries = (said & most).total(), said.total()
        if n == 1 and not hits:
            return 0.0
        logs += math.log(hits / tries if n == 1 else (hits + 1) / (tries + 1))
    gap = min((abs(len(it) - len(words)), len(it)) for it in references)[1] / len(words)
    return min(1.0, math.exp(1 - gap)) * math.exp(logs / len(ORDERS))


def cider(words: Words, reference: Words) -> float:
    """CIDEr-D of one caption against one reference, 0 to 10, every n-gram equally rare.

    10 exp(-(difference in length)^2 / 2 sigma^2) times the mean over n of the clipped cosine
    sum_g min(a_g, b_g) b_g / (|a| |b|), a and b the counts of n-grams.
    Source: Vedantam et al. 2015, as scored by coco-caption, with idf = 1.
    """
    total = 0.0
    for n in ORDERS:
        one, other = _grams(words, n), _grams(reference, n)
        product = sum(min(one[gram], count) * count for gram, count in other.items())
        if product:
            total += product / (_length(one) * _length(other))
    apart = len(words) - len(reference)
    return 10 * math.exp(-(apart**2) / (2 * SIGMA**2)) * total / len(ORDERS)


def _length(counts: Counter[tuple[str, ...]]) -> float:
    return math.sqrt(sum(count * count for count in counts.values()))
