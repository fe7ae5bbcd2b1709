"""Which positions a caption occupies."""

from __future__ import annotations

from dataclasses import replace

import torch

from cdlm.parts.lengths import Generated, Histogram
from cdlm.records import Condition
from cdlm.testing.examples import DIMS, LENGTHS, batch, rng


def condition(count: int) -> Condition:
    features = torch.zeros(count, DIMS.image_tokens, DIMS.image_width)
    return Condition(features=features, keep=torch.ones(count, dtype=torch.bool))


def test_generated_uses_every_position() -> None:
    part = Generated(dims=DIMS)
    assert bool(part.mask(batch()).all()) and bool(part.draw(condition(2), rng()).all())


def test_histogram_masks_padding() -> None:
    part, given = Histogram(dims=DIMS), batch()
    assert torch.equal(part.mask(given), given.mask)


def test_histogram_draws_lengths_as_often_as_training_had_them() -> None:
    """Captions of 6, 3 and 1 positions, a third each; 3,000 draws are within 5 standard errors."""
    part = Histogram(dims=DIMS)
    part.mask(batch())
    drawn = part.draw(condition(3000), rng()).sum(1)
    counts = drawn.bincount(minlength=DIMS.length + 1)
    assert {n for n, count in enumerate(counts.tolist()) if count} == set(LENGTHS)
    assert float((counts[list(LENGTHS)] / 3000 - 1 / 3).abs().max()) < 0.045


def test_histogram_adds_up_batches_and_travels_with_the_weights() -> None:
    part = Histogram(dims=DIMS)
    part.mask(batch())
    short = replace(batch(), mask=torch.arange(DIMS.length) < torch.ones(3, 1))
    part.mask(short)
    assert part.counts.tolist() == [4, 0, 1, 0, 0, 1]
    other = Histogram(dims=DIMS)
    other.load_state_dict(part.state_dict())
    assert torch.equal(other.counts, part.counts)
