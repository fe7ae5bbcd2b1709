"""Laws of the way back: rounding and sampler."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.testing import assert_close

from cdlm.protocols import Rounding, Sampler
from cdlm.records import State
from cdlm.testing.examples import DIMS, SOME, B, Codes, quarter_circle, rng
from cdlm.testing.oracles import constant, drawn, gaussian, points

TIMES = (1.0, 0.5, 0.02)

# -------------------------------------------------------------------------------------- rounding


def _estimate() -> Tensor:
    return torch.randn(B, DIMS.length, DIMS.width, generator=rng())


def check_rounding_counts_each_caption_alone(rounding: Rounding) -> None:
    """B L E in and out, of one type; no caption depends on the rest of the batch."""
    x, embedding = _estimate(), Codes()
    for t in TIMES:
        out = rounding(x, t, embedding)
        assert out.shape == x.shape and out.dtype == x.dtype, f"{out.dtype} {tuple(out.shape)}"
        assert_close(rounding(x[SOME], t, embedding), out[SOME], rtol=1e-5, atol=1e-5)


def check_rounding_keeps_words(rounding: Rounding) -> None:
    """Whoever stands on a word stays nearest to that word, at every time."""
    embedding = Codes()
    words = embedding.table()[None].detach()
    for t in TIMES:
        out = rounding(words, t, embedding)
        nearest = torch.cdist(out, words).argmin(-1)[0]
        assert torch.equal(nearest, torch.arange(DIMS.vocab)), "it turns a word into another"


def check_rounding_repeats_and_writes_nothing(rounding: Rounding) -> None:
    """Twice the same, and its inputs stand as before."""
    x, embedding = _estimate(), Codes()
    old, table = x.clone(), embedding.table().clone()
    one, two = (rounding(x, 0.3, embedding) for _ in range(2))
    assert torch.equal(one, two), "two calls differ"
    assert torch.equal(x, old), "it writes into the estimate"
    assert torch.equal(embedding.table(), table), "it writes into the embedding"


# --------------------------------------------------------------------------------------- sampler

CROWD = (256, 4, 8)  # B L E: 8,192 numbers, of which a variance is known to 1.6 %


def check_sampler_walks_from_noise_to_text(sampler: Sampler) -> None:
    """`grid(steps)` has steps + 1 times, from 1 to 0, falling strictly; `steps` is at least 1."""
    assert sampler.steps >= 1, f"steps = {sampler.steps}"
    for steps in (1, 2, 7, 50):
        grid = sampler.grid(steps)
        assert len(grid) == steps + 1, f"{len(grid)} times for {steps} steps"
        assert grid[0] == 1 and grid[-1] == 0, f"from {grid[0]} to {grid[-1]}, not from 1 to 0"
        assert all(t > s for t, s in pairwise(grid)), "times do not fall"


def check_sampler_arrives_at_the_estimate(sampler: Sampler) -> None:
    """Where the estimate of x0 is always the same, that is where it ends; also in one step."""
    x0 = torch.randn(4, 2, 3, generator=rng(1), dtype=torch.float64)
    for steps in (1, 2, 10):
        end = drawn(sampler, constant(x0), steps, (4, 2, 3))
        assert_close(end, x0, rtol=0, atol=1e-6)


def check_sampler_keeps_the_books(sampler: Sampler) -> None:
    """The new state says its time s and its estimate; the old one stands as before."""
    x = torch.randn(4, 2, 3, generator=rng(), dtype=torch.float64)
    before, t = x.clone(), sampler.grid(5)[0]
    after = sampler.step(State(x=x, t=t), 0.7, gaussian(quarter_circle), quarter_circle, rng())
    assert after.t == 0.7, f"asked for s = 0.7, the state says {after.t}"
    assert after.x0_hat is not None, "the state has no x0_hat"
    assert after.x.shape == after.x0_hat.shape == x.shape
    assert torch.equal(x, before), "it writes into the old state"


def check_sampler_repeats(sampler: Sampler) -> None:
    """All its randomness comes from rng: the same one gives the same samples."""
    oracle = gaussian(quarter_circle)
    one = drawn(sampler, oracle, 7, (4, 2, 3), seed=3)
    torch.manual_seed(1)  # would move a sampler that draws from the global generator
    assert torch.equal(one, drawn(sampler, oracle, 7, (4, 2, 3), seed=3)), "two runs differ"


def check_sampler_keeps_mean_and_spread(sampler: Sampler) -> None:
    """With the ideal denoiser of N(0, I), 200 steps give mean 0 and variance 1, to 6 %.

    Samplers that seek modes break this by design: waive it and say so.
    """
    x = drawn(sampler, gaussian(quarter_circle), 200, CROWD)
    assert abs(float(x.mean())) < 0.06, f"mean {float(x.mean()):.3f}, not 0"
    assert abs(float(x.var()) - 1) < 0.06, f"variance {float(x.var()):.3f}, not 1"


def check_sampler_ends_at_words(sampler: Sampler) -> None:
    """With the ideal denoiser of six points, every sample ends at one, and all are met."""
    places = torch.nn.functional.one_hot(torch.arange(6)).double() * 4
    x = drawn(sampler, points(quarter_circle, places), 100, (64, 2, 6))
    distance = torch.cdist(x, places.expand(len(x), -1, -1))
    assert float(distance.min(-1).values.max()) < 0.05, "a sample ends between the points"
    met = distance.argmin(-1).unique()
    assert len(met) == len(places), f"of {len(places)} equal points it ends at {len(met)} only"
