"""The variances of a step back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cdlm.parts.losses import (
    L1,
    Anchor,
    AnchorRounding,
    Huber,
    MinSnr,
    Mse,
    Prior,
    Rounding,
    Vlb,
    step_kl,
)
from cdlm.parts.variances import Fixed, Learned
from cdlm.testing.examples import DIMS, guess, quarter_circle, rng

X0_HAT, X_T = (torch.randn(3, DIMS.length, DIMS.width, generator=rng(i)) for i in (1, 2))
T = torch.tensor([0.2, 0.5, 0.9])


def learned() -> Learned:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Learned(dims=DIMS)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_fixed_says_the_same_everywhere(spread: float) -> None:
    assert_close(Fixed(spread=spread)(X0_HAT, X_T, T), torch.tensor(spread))


def test_learned_begins_half_way() -> None:
    assert torch.equal(learned()(X0_HAT, X_T, T), torch.full_like(X_T, 0.5))


def test_learned_can_tell_estimates_states_and_times_apart() -> None:
    variance = learned()
    torch.nn.init.normal_(variance.mlp[-1].weight, generator=rng())
    before = variance(X0_HAT, X_T, T).detach()
    for other in ((X0_HAT + 1, X_T, T), (X0_HAT, X_T + 1, T), (X0_HAT, X_T, T + 0.05)):
        assert bool((variance(*other) != before).all())


def taught(error: float) -> Tensor:
    """The spread that the bound teaches where x0_hat is off by N(0, error^2), at t = 0.5."""
    variance, draw = learned(), rng()
    optimizer = torch.optim.Adam(variance.parameters(), lr=0.03)
    now, then = (quarter_circle(torch.tensor(t)) for t in (0.5, 0.48))
    t = torch.full((64,), 0.5)
    for _ in range(150):
        x0, eps, off = (torch.randn(64, 2, DIMS.width, generator=draw) for _ in range(3))
        x_t, x0_hat = now.alpha * x0 + now.sigma * eps, x0 + error * off
        spread = variance(x0_hat, x_t, t)
        optimizer.zero_grad()
        step_kl(x0, x0_hat, now, then, spread).mean().backward()
        optimizer.step()
    return spread.detach().mean()


def test_the_bound_teaches_the_best_spread() -> None:
    """It is where p's variance is the posterior's plus the mean square error of its mean.

    log(1 + m^2 / posterior) / log(forward / posterior), m = alpha_s forward / sigma_t^2 error.
    """
    now, then = (quarter_circle(torch.tensor(t)) for t in (0.5, 0.48))
    forward = 1 - (now.alpha / then.alpha).square()
    posterior = (then.sigma / now.sigma).square() * forward
    for error in (0.0, 0.4):
        off = (then.alpha * forward / now.sigma.square() * error).square()
        best = torch.log1p(off / posterior) / (forward / posterior).log()
        assert float(taught(error)) == pytest.approx(float(best), abs=0.06)


def test_the_bound_alone_looks_at_the_spread() -> None:
    """So a learned one needs `vlb`, and says so."""
    assert Learned.needs == Vlb.provides
    one, two = (replace(guess(), spread=torch.tensor(it)) for it in (0.1, 0.9))
    for loss in (Mse(), L1(), Huber(), MinSnr(), Rounding(), Anchor(), AnchorRounding(), Prior()):
        assert torch.equal(loss(one), loss(two))
    assert not torch.equal(Vlb()(one), Vlb()(two))
