"""CIDEr-D of single captions, with the rarity of n-grams in captions that are given beforehand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from cdlm.parts.metrics import tokenize

ORDERS = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # words: how far two captions' lengths may differ
END = "<end>"

Gram: TypeAlias = tuple[str, ...]
Vector: TypeAlias = list[dict[Gram, float]]
"""tf-idf of n-grams, for each n."""


class CiderD:
    """CIDEr-D, 0 to 10, of captions against references; idf = ln(images / images that have it).

    The images are those given here, such as all of training; the metric takes those that it
    scores. With `end` the end counts as a word, as the field has it where captions are trained on
    the score: else they would learn to break off in the middle.
    Source: Vedantam et al. 2015; the end, in Luo et al. 2018 (arXiv 1803.04376), their code.
    """

    def __init__(self, references: Sequence[Sequence[str]], end: bool = False):
        self.ends = [END] if end else []
        grams = (set().union(*map(self.counts, texts)) for texts in references)
        self.images = Counter(gram for found in grams for gram in found)  # that have it
        self.most = math.log(max(len(references), 1))
        self.known: dict[str, tuple[Vector, list[float]]] = {}

    def __call__(self, caption: str, references: Sequence[str]) -> float:
        """Its mean over the references. 0 where there is none."""
        if not references:
            return 0.0
        said, lengths = self.vector(caption)
        size = len(tokenize(caption))
        total = 0.0
        for text in references:
            if text not in self.known:
                self.known[text] = self.vector(text)
            other, others = self.known[text]
            apart = size - len(tokenize(text))
            near = math.exp(-(apart**2) / (2 * SIGMA**2))
            for n in range(ORDERS):
                if lengths[n] and others[n]:
                    total += near * _clipped(said[n], other[n]) / (lengths[n] * others[n])
        return 10 * total / ORDERS / len(references)

    def vector(self, caption: str) -> tuple[Vector, list[float]]:
        """tf-idf for each n, and how long it is."""
        found: Vector = [{} for _ in range(ORDERS)]
        for gram, count in self.counts(caption).items():
            rarity = self.most - math.log(max(1, self.images[gram]))
            found[len(gram) - 1][gram] = count * rarity
        return found, [math.sqrt(sum(x * x for x in one.values())) for one in found]

    def counts(self, caption: str) -> Counter[Gram]:
        """How often it has each n-gram."""
        words = [*tokenize(caption), *self.ends]
        return Counter(
            tuple(words[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1)
        )


def _clipped(said: dict[Gram, float], other: dict[Gram, float]) -> float:
    return sum(min(x, other[gram]) * other[gram] for gram, x in said.items() if gram in other)
