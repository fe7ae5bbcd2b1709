"""Likeness of captions by hand, and who is chosen by it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pycocoevalcap.cider.cider_scorer import CiderScorer
from torch import Tensor

from cdlm.errors import CdlmError
from cdlm.parts.selections import Consensus, First, Mbr, Similarity, cider, sentence_bleu

MAT = ["the", "cat", "is", "on", "the", "mat"]
NOTHING: Any = None  # for what a selection does not look at


def mbr(texts: list[str], **options: Any) -> str:
    (chosen,) = Mbr(count=len(texts), **options)([texts], NOTHING, NOTHING)
    return texts[chosen]


# ------------------------------------------------------------------------------------------- bleu


def test_a_caption_is_like_itself() -> None:
    assert sentence_bleu(MAT, [MAT]) == pytest.approx(1)
    assert sentence_bleu(["dog"], [["dog"]]) == pytest.approx(1)


def test_words_count_as_often_as_the_reference_has_them() -> None:
    """Papineni's "the" seven times over: 2 hits of 7, and one more of each for longer n-grams."""
    wanted = (2 / 7 * 1 / 7 * 1 / 6 * 1 / 5) ** 0.25
    assert sentence_bleu(["the"] * 7, [MAT]) == pytest.approx(wanted)


def test_short_captions_pay_for_their_brevity() -> None:
    assert sentence_bleu(["the", "cat"], [MAT]) == pytest.approx(math.exp(1 - 6 / 2))
    near = ["the", "dog"]  # its length is the nearest, though it has fewer of the words
    assert sentence_bleu(["the", "cat"], [MAT, near]) == pytest.approx(1)


def test_no_common_word_is_no_likeness() -> None:
    assert sentence_bleu(["dog"], [MAT]) == sentence_bleu([], [MAT]) == sentence_bleu(MAT, []) == 0


# ------------------------------------------------------------------------------------------ cider


def test_a_caption_of_four_words_scores_ten_for_itself() -> None:
    assert cider(MAT, MAT) == pytest.approx(10)
    assert cider(["a", "dog"], ["a", "dog"]) == pytest.approx(5)  # it has no 3-grams and 4-grams


def test_cosines_are_clipped_and_lengths_compared() -> None:
    assert cider(["a", "dog"], ["a", "cat"]) == pytest.approx(10 * 0.5 / 4)
    wanted = 10 * math.exp(-(2**2) / 72) * (1 * 1) / (3 * 1) / 4
    assert cider(["dog"] * 3, ["dog"]) == pytest.approx(wanted)


def test_where_all_n_grams_are_equally_rare_it_is_coco_captions_cider() -> None:
    """No two references share a word, so that every n-gram has the same idf."""
    draw = random.Random(1)
    scorer = CiderScorer(n=4, sigma=6.0)
    mine = []
    for image in range(30):
        words = [f"{letter}{image}" for letter in "abcde"]
        said, truth = (draw.choices(words, k=draw.randint(1, 9)) for _ in range(2))
        scorer += (" ".join(said), [" ".join(truth)])
        mine.append(cider(said, truth))
    assert mine == pytest.approx(list(scorer.compute_score()[1]), abs=1e-9)


def test_no_words_score_nothing() -> None:
    assert cider([], MAT) == cider(MAT, []) == cider(["dog"], MAT) == 0


# ---------------------------------------------------------------------------- minimum Bayes risk


@pytest.mark.parametrize("by", ["bleu", "cider"])
def test_the_candidate_in_the_midst_is_chosen(by: str) -> None:
    texts = ["a red car", "a dog runs on grass", "a dog runs on sand", "a dog runs on the grass"]
    assert mbr(texts, by=by) == "a dog runs on grass"


@pytest.mark.parametrize("by", ["bleu", "cider"])
def test_what_is_said_twice_beats_what_is_said_once(by: str) -> None:
    assert mbr(["one cat", "two dogs", "one cat"], by=by) == "one cat"


def test_one_candidate_is_itself_and_two_that_share_nothing_follow_the_alphabet() -> None:
    assert mbr(["a dog"]) == "a dog"
    assert mbr(["zebra", "ant"]) == mbr(["ant", "zebra"]) == "zebra"


def test_the_two_utilities_are_two() -> None:
    """CIDEr-D counts only what is shared; the added hits of BLEU help where little is."""
    texts = ["a dog runs", "the dog on grass", "dog"]
    assert (mbr(texts, by="bleu"), mbr(texts, by="cider")) == ("a dog runs", "dog")


@pytest.mark.parametrize("by", ["bleu", "cider"])
def test_likeness_is_averaged_over_the_others(by: str) -> None:
    def likeness(one: str, other: str) -> float:
        pair = one.split(), other.split()
        return sentence_bleu(pair[0], [pair[1]]) if by == "bleu" else cider(*pair)

    draw = random.Random(0)
    for _ in range(20):
        texts = [" ".join(draw.choices("abcde", k=draw.randint(2, 7))) for _ in range(5)]
        means = [sum(likeness(it, other) for other in texts) - likeness(it, it) for it in texts]
        assert means[texts.index(mbr(texts, by=by))] == pytest.approx(max(means))


def test_case_and_marks_do_not_count() -> None:
    assert mbr(["A dog .", "one cat", "a dog"]) in ("A dog .", "a dog")


# -------------------------------------------------------------------------------------- consensus

PHOTOS = torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]])[:, None].repeat(1, 2, 1)
SEEN = [["a dog runs"], ["a man on a bench", "a man sits on a bench"], ["two red balls"]]
SAID = ["a dog runs", "a man sits on a bench", "two red balls"]


def consensus(**options: Any) -> Consensus:
    selection = Consensus(count=3, **options)
    selection.begin(SEEN, PHOTOS)
    return selection


def test_what_was_said_of_similar_photos_is_chosen() -> None:
    """Each image is nearest to the training photo in its place."""
    images = PHOTOS + 0.5 * torch.randn(PHOTOS.shape, generator=torch.Generator().manual_seed(0))
    assert consensus(nearest=1)([SAID] * 3, images, NOTHING) == [0, 1, 2]


def test_without_weight_it_is_minimum_bayes_risk() -> None:
    texts = [["a red car", "a dog runs on sand", "a dog runs on grass"], SAID, SAID[::-1]]
    chosen = consensus(weight=0.0)(texts, PHOTOS, NOTHING)
    assert chosen == Mbr(count=3, by="cider")(texts, PHOTOS, NOTHING)


def test_the_two_kinds_of_evidence_are_added() -> None:
    """Two candidates are alike; the third is what the nearest photo's caption says."""
    texts = [["a man in a hat", "a man in a cap", "a dog runs"]]
    assert consensus(nearest=1, weight=0.1)(texts, PHOTOS[:1], NOTHING)[0] in (0, 1)
    assert consensus(nearest=1, weight=5.0)(texts, PHOTOS[:1], NOTHING) == [2]


def test_more_photos_than_there_are_are_all() -> None:
    texts = [SAID]
    every, many = consensus(nearest=3), consensus(nearest=99)
    assert every(texts, PHOTOS[:1], NOTHING) == many(texts, PHOTOS[:1], NOTHING)


def test_it_must_have_been_shown_the_training_photos() -> None:
    with pytest.raises(CdlmError, match="not been shown"):
        Consensus()([SAID], PHOTOS[:1], NOTHING)


# ------------------------------------------------------------------------------------- similarity


class Places:
    """Captions as the points that they name; counts how many it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def texts(self, captions: Sequence[str]) -> Tensor:
        self.asked += len(captions)
        return torch.tensor([[float(it) for it in text.split()] for text in captions])[:, None]


def test_the_candidate_in_the_images_direction_is_chosen() -> None:
    features = torch.tensor([[[3.0, 0.1], [0.0, 9.0]], [[0.0, 1.0], [9.0, 0.0]]])  # pooled first
    candidates = [["0 1", "1 0", "5 5"], ["0 1", "1 0", "5 5"]]
    encoder: Any = Places()
    assert Similarity(count=3)(candidates, features, encoder) == [1, 0]
    assert encoder.asked == 3  # each text once


def test_first_is_one_sample() -> None:
    assert First().count == 1
    assert First()([["a"], ["b"]], NOTHING, NOTHING) == [0, 0]
