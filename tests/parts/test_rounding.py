"""Rounding to words."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from cdlm.parts.rounding import Clamp, Free, Soft
from cdlm.testing.examples import DIMS, Codes, rng

EMBEDDING = Codes().requires_grad_(False)
X = torch.randn(3, DIMS.length, DIMS.width, generator=rng())


def test_free_gives_back_what_it_was_given() -> None:
    assert Free()(X, 0.5, EMBEDDING) is X


def test_clamp_gives_the_nearest_word_and_nothing_else() -> None:
    table, out = EMBEDDING.table(), Clamp()(X, 0.5, EMBEDDING)
    gaps = torch.cdist(X.flatten(0, 1), table)
    assert torch.equal(out.flatten(0, 1), table[gaps.argmin(1)])


def test_clamping_twice_is_clamping_once() -> None:
    once = Clamp()(X, 0.5, EMBEDDING)
    assert torch.equal(Clamp()(once, 0.5, EMBEDDING), once)


def test_clamp_holds_back_until_its_time() -> None:
    late = Clamp(below=0.3)
    assert late(X, 0.31, EMBEDDING) is X
    assert not torch.equal(late(X, 0.3, EMBEDDING), X)


def test_soft_is_the_mean_of_the_words_and_clamps_where_it_is_sure() -> None:
    assert_close(Soft()(0 * X, 0.5, EMBEDDING)[0, 0], EMBEDDING.table().mean(0))
    words = EMBEDDING.table()[None]
    assert_close(Soft()(100 * words, 0.5, EMBEDDING), words)
