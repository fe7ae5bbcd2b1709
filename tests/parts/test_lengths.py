"""Which positions a caption occupies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdlm.errors import RecipeError
from cdlm.parts.lengths import Generated, Histogram, Predicted
from cdlm.recipe import load
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


def test_predicted_draws_from_its_head_or_takes_the_most_likely() -> None:
    """A head that gives lengths 2 and 5 three chances to one."""
    features = condition(4000)
    ways = {"sample": (0.75, 0.25), "most_likely": (1.0, 0.0), "quantile": (1.0, 0.0)}
    for draw, shares in ways.items():
        part = Predicted(draw=draw, dims=DIMS).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            last = part.head[-1]
            last.weight.zero_()
            last.bias.copy_(torch.tensor([0, 3e-30, 0, 0, 1e-30, 0]).log())
        lengths = part.draw(features, rng()).sum(1)
        found = [float((lengths == size).float().mean()) for size in (2, 5)]
        assert found == pytest.approx(shares, abs=0.03)


def test_a_quantile_does_not_follow_a_spike_at_the_end() -> None:
    for quantile, size in ((0.05, 1), (0.2, 2), (0.5, 3), (0.62, 5), (0.99, 6)):
        part = Predicted(draw="quantile", quantile=quantile, dims=DIMS).eval()
        with torch.no_grad():
            last = part.head[-1]
            last.weight.zero_()
            last.bias.copy_(torch.tensor([0.1, 0.2, 0.25, 0.05, 0.05, 0.35]).log())
        assert set(part.draw(condition(10), rng()).sum(1).tolist()) == {size}


def test_predicted_and_its_loss_are_checked_together() -> None:
    recipe = load(Path(__file__).parents[2] / "recipes" / "extra_token.toml")
    head, loss = 'length={ use = "predicted" }', 'loss=[{ use = "mse" }, { use = "length" }]'
    assert recipe.with_sets([head, loss]).one("length").use == "predicted"
    with pytest.raises(RecipeError, match="predicted needs length_loss, which nothing") as said:
        recipe.with_sets([head])
    assert "what provides length_loss: loss length" in str(said.value)
    with pytest.raises(RecipeError, match="length needs length_head, which nothing") as said:
        recipe.with_sets([loss])
    assert "what provides length_head: length predicted" in str(said.value)


def test_predicted_learns_lengths_that_the_image_tells() -> None:
    """The feature's first number says the length; 200 steps are enough to hear it."""
    torch.manual_seed(0)
    part, size = Predicted(draw="most_likely", dims=DIMS), torch.randint(0, 2, (64,))
    features = torch.randn(64, DIMS.image_tokens, DIMS.image_width) * 0.1
    features[..., 0] += 2.0 * size[:, None] - 1
    given = Condition(features=features, keep=torch.ones(64, dtype=torch.bool))
    optimizer = torch.optim.Adam(part.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(part.logits(given), 2 + 2 * size).backward()
        optimizer.step()
    assert torch.equal(part.draw(given, rng()).sum(1), 3 + 2 * size)
