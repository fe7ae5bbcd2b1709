"""Rounding to words."""

from __future__ import annotations

from functools import partial

import torch
from torch.testing import assert_close

from cdlm.kernels import nearest_word
from cdlm.parts.rounding import Clamp, Free, Soft
from cdlm.testing.examples import DIMS, Codes, rng

EMBEDDING = Codes().requires_grad_(False)
NEAREST = partial(nearest_word, table=EMBEDDING.table())
X = torch.randn(3, DIMS.length, DIMS.width, generator=rng())


def test_free_gives_back_what_it_was_given() -> None:
    assert Free()(X, 0.5, EMBEDDING, NEAREST) is X


def test_clamp_gives_the_nearest_word_and_nothing_else() -> None:
    table, out = EMBEDDING.table(), Clamp()(X, 0.5, EMBEDDING, NEAREST)
    gaps = torch.cdist(X.flatten(0, 1), table)
    assert torch.equal(out.flatten(0, 1), table[gaps.argmin(1)])


def test_clamping_twice_is_clamping_once() -> None:
    once = Clamp()(X, 0.5, EMBEDDING, NEAREST)
    assert torch.equal(Clamp()(once, 0.5, EMBEDDING, NEAREST), once)


def test_clamp_holds_back_until_its_time() -> None:
    late = Clamp(below=0.3)
    assert late(X, 0.31, EMBEDDING, NEAREST) is X
    assert not torch.equal(late(X, 0.3, EMBEDDING, NEAREST), X)


def test_soft_is_the_mean_of_the_words_and_clamps_where_it_is_sure() -> None:
    assert_close(Soft()(0 * X, 0.5, EMBEDDING, NEAREST)[0, 0], EMBEDDING.table().mean(0))
    words = EMBEDDING.table()[None]
    assert_close(Soft()(100 * words, 0.5, EMBEDDING, NEAREST), words)
