"""CIDEr-D of single captions against coco-caption's scorer."""

from __future__ import annotations

import random

import pytest
from pycocoevalcap.cider.cider_scorer import CiderScorer

from cdlm.parts.cider import END, CiderD

WORDS = ["a", "dog", "runs", "on", "the", "red", "ball", "two", "men"]
DRAW = random.Random(0)


def text() -> str:
    return " ".join(DRAW.choice(WORDS) for _ in range(DRAW.randint(1, 9)))


@pytest.mark.parametrize(("end", "last"), [(False, ""), (True, f" {END}")])
def test_it_is_coco_captions_where_these_are_the_references(end: bool, last: str) -> None:
    references = [[text() for _ in range(5)] for _ in range(30)]
    captions = [text() for _ in references]
    scorer = CiderScorer(n=4, sigma=6.0)
    for caption, texts in zip(captions, references, strict=True):
        scorer += (caption + last, [it + last for it in texts])
    _, wanted = scorer.compute_score()
    score = CiderD(references, end)
    found = [score(*pair) for pair in zip(captions, references, strict=True)]
    assert found == pytest.approx(list(wanted))
    assert max(found) > 0.5


def test_a_caption_that_breaks_off_loses_its_end() -> None:
    """Cut by one word it has 5 of 7 words and the end no more; without the end 5 of 6."""
    whole = "two men runs on the ball"
    others = [[whole], ["a dog"], ["red"]]
    with_end, without = (CiderD(others, end) for end in (True, False))
    assert [it(whole, [whole]) for it in (with_end, without)] == pytest.approx([10, 10])
    cut = "two men runs on the"
    assert with_end(cut, [whole]) < without(cut, [whole]) - 0.5


def test_nothing_to_compare_with_is_worth_nothing() -> None:
    assert CiderD([])("a dog", []) == CiderD([["a dog"]])("", ["a dog"]) == 0
