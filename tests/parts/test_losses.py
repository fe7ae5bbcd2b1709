"""The losses against their formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch.testing import assert_close

from cdlm.parts.losses import L1, Mse, Rounding
from cdlm.records import Guess
from cdlm.testing.examples import DIMS, LENGTHS, guess, saying

Z = guess()


def off_by(amount: float) -> Guess:
    return saying(Z, Z.wanted + amount)


def test_the_truth_costs_nothing() -> None:
    for loss in (Mse(), L1()):
        assert torch.equal(loss(off_by(0.0)), torch.zeros(len(LENGTHS)))


def test_an_error_costs_its_square_or_its_size_however_long_the_caption() -> None:
    assert_close(Mse()(off_by(0.5)), torch.full((3,), 0.25))
    assert_close(L1()(off_by(-0.5)), torch.full((3,), 0.5))


def test_a_caption_is_averaged_over_its_scored_positions() -> None:
    """An error at one of a caption's positions counts one over their number."""
    error = torch.zeros_like(Z.wanted)
    error[:, 0] = 1.0
    assert_close(Mse()(saying(Z, Z.wanted + error)), 1 / torch.tensor(LENGTHS))


def test_rounding_is_cross_entropy() -> None:
    logits = Z.embedding.logits(Z.x0_hat)
    nats = -logits.log_softmax(-1).gather(-1, Z.batch.ids[..., None])[..., 0]
    expected = torch.stack([row[:n].mean() for row, n in zip(nats, LENGTHS, strict=True)])
    assert_close(Rounding()(Z), expected)


def test_rounding_of_no_opinion_is_the_log_of_the_vocabulary() -> None:
    blank = saying(Z, torch.zeros_like(Z.got))
    assert_close(Rounding()(blank), torch.full((3,), math.log(DIMS.vocab)))


def test_rounding_looks_at_x0_and_the_others_at_the_answer() -> None:
    other_x0 = replace(Z, x0_hat=Z.wanted)
    other_answer = replace(Z, got=Z.wanted)
    assert torch.equal(Mse()(other_x0), Mse()(Z)) and torch.equal(L1()(other_x0), L1()(Z))
    assert torch.equal(Rounding()(other_answer), Rounding()(Z))
    assert not torch.equal(Rounding()(other_x0), Rounding()(Z))
