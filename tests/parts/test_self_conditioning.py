"""What the network is told of its last estimate, in training and in sampling."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from cdlm.network import answer
from cdlm.parts.self_conditioning import Forgetful, Last
from cdlm.sample import sample
from cdlm.testing.examples import DIMS, condition, mask, noised, quarter_circle, rng
from cdlm.testing.whole import captioner

Z = noised(torch.float32)


def test_a_share_of_the_batches_is_told_an_estimate() -> None:
    draw = rng()
    for share in (0.0, 0.3, 1.0):
        part = Last(share=share, dims=DIMS)
        told = [part.practise(lambda x, t: x, Z, quarter_circle, draw) for _ in range(400)]
        found = sum(it is not None for it in told) / 400
        assert abs(found - share) < 0.1
    assert Forgetful().practise(lambda x, t: x, Z, quarter_circle, draw) is None


def test_the_estimate_is_made_from_the_same_text_at_the_same_time() -> None:
    asked: list[tuple[Tensor, Tensor]] = []
    part = Last(share=1.0, dims=DIMS)
    part.practise(lambda x, t: asked.append((x, t)) or x, Z, quarter_circle, rng())  # type: ignore[func-returns-value]
    assert torch.equal(asked[0][0], Z.x_t) and torch.equal(asked[0][1], Z.t)


def test_ahead_makes_it_from_the_same_text_with_more_of_the_same_noise() -> None:
    asked: list[tuple[Tensor, Tensor]] = []
    part = Last(share=1.0, ahead=0.3, dims=DIMS)
    part.practise(lambda x, t: asked.append((x, t)) or x, Z, quarter_circle, rng())  # type: ignore[func-returns-value]
    (x, t) = asked[0]
    assert bool((t >= Z.t).all()) and bool((t <= (Z.t + 0.3).clamp(max=1)).all())
    level = quarter_circle(t).over(Z.x0)
    assert_close(x, level.alpha * Z.x0 + level.sigma * Z.eps)
    assert float((t - Z.t).std()) > 0.03, "every caption has its own"


@torch.no_grad()
def test_sampling_tells_it_the_step_before() -> None:
    """From the second step on: the weights of `recall` change what comes out, not the first."""
    parts = captioner(self_conditioning=Last(dims=DIMS))
    parts.modules().eval()
    states = list(sample(parts, condition(), mask(), 2, rng()))
    parts.self_conditioning.recall.weight.mul_(-3)  # type: ignore[attr-defined]
    others = list(sample(parts, condition(), mask(), 2, rng()))
    assert torch.equal(states[1].x, others[1].x) and not torch.equal(states[2].x, others[2].x)


@torch.no_grad()
def test_no_estimate_is_an_estimate_of_zero() -> None:
    parts = captioner(self_conditioning=Last(dims=DIMS))
    parts.modules().eval()
    x, t = torch.randn(3, DIMS.length, DIMS.width, generator=rng()), torch.tensor([0.2, 0.5, 0.9])
    plain = answer(parts, x, t, condition(), mask()).said
    assert torch.equal(plain, answer(parts, x, t, condition(), mask(), torch.zeros_like(x)).said)
