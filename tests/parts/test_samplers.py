"""The samplers against theory: posterior, order of convergence, and few points."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cdlm.parts.grids import Uniform
from cdlm.parts.samplers import Ddim, Ddpm, DpmSolver, Heun, Refeed, Renoise
from cdlm.parts.schedules import Cosine, Linear, Sqrt
from cdlm.protocols import Sampler, Schedule
from cdlm.records import Estimate, State
from cdlm.testing import laws
from cdlm.testing.examples import quarter_circle, rng
from cdlm.testing.oracles import constant, drawn, gaussian, points

SHAPE = (64, 3, 4)


def normal(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=rng(seed), dtype=torch.float64)


def posterior(
    schedule: Schedule, x0: Tensor, x_t: Tensor, t: float, s: float
) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_s | x_t, x0): Ho et al. 2020, eq. 7, for any s < t, A = alpha^2."""
    a_t, a_s = (schedule(torch.tensor(v, dtype=torch.float64)).alpha.square() for v in (t, s))
    of_x0 = a_s.sqrt() * (1 - a_t / a_s) / (1 - a_t)
    of_x_t = (a_t / a_s).sqrt() * (1 - a_s) / (1 - a_t)
    return of_x0 * x0 + of_x_t * x_t, (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), quarter_circle])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.999), (0.5, 0.45), (0.3, 0.01), (0.9, 0.1)])
def test_ddpm_draws_from_the_posterior(schedule: Schedule, t: float, s: float) -> None:
    x0, x_t = normal(1), normal(2)
    after = Ddpm().step(State(x=x_t, t=t), s, constant(x0), schedule, rng(3))
    mean, variance = posterior(schedule, x0, x_t, t, s)
    assert_close(after.x, mean + variance.sqrt() * normal(3), rtol=1e-6, atol=1e-6)


def test_ddim_with_all_noise_fresh_is_ddpm() -> None:
    oracle = gaussian(quarter_circle)
    for t, s in Uniform(td=0.0)(20, quarter_circle):
        one, two = (
            sampler.step(State(x=normal(0), t=t), s, oracle, quarter_circle, rng(4)).x
            for sampler in (Ddim(eta=1.0), Ddpm())
        )
        assert torch.equal(one, two)


def test_ddim_is_deterministic_given_the_first_noise() -> None:
    oracle, state = gaussian(quarter_circle), State(x=normal(0), t=0.6)
    one, two = (Ddim().step(state, 0.4, oracle, quarter_circle, rng(seed)).x for seed in (1, 2))
    assert torch.equal(one, two)
    fresh = [Ddim(eta=0.5).step(state, 0.4, oracle, quarter_circle, rng(s)).x for s in (1, 2)]
    assert not torch.equal(*fresh)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_with_the_true_x0_every_step_keeps_the_marginal(eta: float) -> None:
    """x_s = alpha_s x0 + sigma_s noise, whatever share of the noise is fresh."""
    t, s, size = 0.7, 0.4, (200_000, 1, 1)
    x0 = torch.full(size, 2.0, dtype=torch.float64)
    eps = torch.randn(size, generator=rng(1), dtype=torch.float64)
    here, there = (quarter_circle(torch.tensor(v, dtype=torch.float64)) for v in (t, s))
    state = State(x=here.alpha * x0 + here.sigma * eps, t=t)
    x = Ddim(eta=eta).step(state, s, constant(x0), quarter_circle, rng(2)).x
    assert_close(x.mean(), 2 * there.alpha, rtol=0, atol=0.01)  # 5 standard errors
    assert_close(x.std(), there.sigma, rtol=0.01, atol=0)


def test_ddim_is_of_first_order() -> None:
    """For N(0, I) on the quarter circle the exact path stands still, and DDIM multiplies by
    cos(pi / 2n) at each of n steps: an error of 1 - cos^n(pi / 2n), about pi^2 / 8n."""
    start = torch.randn(SHAPE, generator=rng(), dtype=torch.float64)
    errors = []
    for n in (10, 20, 40, 80):
        end = drawn(Ddim(), gaussian(quarter_circle), n, SHAPE)
        assert_close(end, math.cos(math.pi / 2 / n) ** n * start, rtol=1e-9, atol=1e-9)
        errors.append(float((end - start).abs().max()))
    assert all(1.9 < rough / fine < 2.1 for rough, fine in pairwise(errors))


SHARES = torch.tensor([0.30, 0.25, 0.20, 0.10, 0.10, 0.05])


def met(sampler: Sampler, steps: int = 200) -> Tensor:
    """How often 2,000 samples end at each of six codes, under their ideal denoiser."""
    places = 3 * torch.nn.functional.one_hot(torch.arange(6)).double()
    x = drawn(sampler, points(quarter_circle, places, SHARES), steps, (1, 2000, 6))[0]
    return torch.cdist(x, places).argmin(1).bincount(minlength=6)


def test_the_last_step_has_no_noise_left() -> None:
    """At s = 0 the posterior has no variance where sigma(0) = 0: any two generators agree."""
    state = State(x=normal(0), t=0.05)
    ends = [Ddpm().step(state, 0.0, constant(normal(1)), Cosine(), rng(s)).x for s in (1, 2)]
    assert_close(*ends, rtol=0, atol=1e-9)


def test_renoise_and_refeed_seek_modes() -> None:
    """Fresh noise each step favours the frequent; feeding the estimate back ends at one code."""
    counts = met(Renoise(), steps=50)
    assert counts[0] > 1.1 * 2000 * SHARES[0] and counts[5] < 0.8 * 2000 * SHARES[5]
    assert int(met(Refeed()).max()) > 1900


def test_renoise_halves_the_variance_of_a_gaussian() -> None:
    """u, the variance of x0_hat, settles where u = c^2 (alpha^2 u + sigma^2), c = alpha v /
    (alpha^2 v + sigma^2): at alpha^2 v^2 / (2 alpha^2 v + sigma^2), which ends at v / 2."""
    for std in (0.5, 2.0):
        x = drawn(Renoise(), gaussian(quarter_circle, std, 3.0), 500, (50, 10, 10))
        assert_close(x.var() / std**2, x.new_tensor(0.5), rtol=0, atol=0.04)  # 4 standard errors
        assert_close(x.mean(), x.new_tensor(3.0), rtol=0, atol=0.08)


def test_the_order_that_is_declared_is_the_one_that_is_tested() -> None:
    """DDIM arrives, and may not say that it never does; order 0 is no way around a law."""

    class Modest(Ddim):
        order = 0  # type: ignore[misc]

    for law in ("recovers_a_gaussian", "recovers_points"):
        with pytest.raises(AssertionError, match="order 0 never arrives at the data"):
            laws("sampler")[law](Modest())


def test_dpm_solver_ends_with_a_step_of_order_one_where_sigma_never_vanishes() -> None:
    """With sigma(0) = 0.1 lambda leaps on the last step: a straight line would overshoot."""
    before = (normal(1), Sqrt()(torch.tensor(0.2, dtype=torch.float64)).alpha.log())
    state = State(x=normal(0), t=0.1, carry=before)
    ends = [
        sampler.step(state, 0.0, constant(normal(2)), Sqrt(), rng()).x
        for sampler in (DpmSolver(), Ddim())
    ]
    assert_close(*ends)


def test_renoise_keeps_the_estimate_alone() -> None:
    state, x0 = State(x=normal(0), t=0.6), normal(1)
    after = Renoise().step(state, 0.4, constant(x0), quarter_circle, rng(2))
    there = quarter_circle(torch.tensor(0.4, dtype=torch.float64))
    assert_close(after.x, there.alpha * x0 + there.sigma * normal(2))


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_ddpm_draws_with_the_spread_that_it_is_told(spread: float) -> None:
    """log variance = (1 - spread) log posterior + spread log forward."""
    t, s, x0 = 0.7, 0.5, normal(1)
    state = State(x=normal(2), t=t)
    one, two = (
        Ddpm()
        .step(state, s, lambda x, t, v=v: Estimate(x0_hat=x0, spread=v), quarter_circle, rng(3))
        .x
        for v in (spread, torch.full(SHAPE, spread, dtype=torch.float64))
    )
    assert torch.equal(one, two), "a number and a tensor of it differ"
    here, there = (quarter_circle(torch.tensor(v, dtype=torch.float64)) for v in (t, s))
    mean, posterior_variance = posterior(quarter_circle, x0, state.x, t, s)
    forward = 1 - (here.alpha / there.alpha).square()
    variance = posterior_variance ** (1 - spread) * forward**spread
    assert_close(one, mean + variance.sqrt() * normal(3), rtol=1e-6, atol=1e-6)


def test_dpm_solver_of_order_one_is_ddim() -> None:
    oracle = gaussian(quarter_circle, 0.7)
    for steps in (1, 3, 20):
        assert_close(
            drawn(DpmSolver(order=1), oracle, steps, SHAPE), drawn(Ddim(), oracle, steps, SHAPE)
        )


def test_dpm_solver_follows_an_estimate_that_is_straight_in_log_snr() -> None:
    """x0_hat = a + b lambda: the exact path is known, by integrating e^lambda (a + b lambda)."""

    def straight(x: Tensor, t: float) -> Estimate:
        return Estimate(x0_hat=torch.full_like(x, 2.0 - 0.5 * ratio(t)))

    def ratio(t: float) -> float:
        level = quarter_circle(torch.tensor(t, dtype=torch.float64))
        return float((level.alpha / level.sigma).log())

    times = (0.9, 0.8, 0.6)
    state = State(x=normal(0), t=times[0])
    for s in times[1:]:
        state = DpmSolver().step(state, s, straight, quarter_circle, rng())
    # of the second step alone: x_s / sigma_s = x_t / sigma_t + integral of e^l (2 - l / 2)
    first = DpmSolver().step(State(x=normal(0), t=0.9), 0.8, straight, quarter_circle, rng())
    low, high = ratio(0.8), ratio(0.6)
    here, there = (quarter_circle(torch.tensor(v, dtype=torch.float64)) for v in (0.8, 0.6))
    inner = math.exp(high) * (2.5 - high / 2) - math.exp(low) * (2.5 - low / 2)
    exact = there.sigma * (first.x / here.sigma + inner)
    plain = Ddim().step(State(x=first.x, t=0.8), 0.6, straight, quarter_circle, rng()).x
    assert float((state.x - exact).abs().max()) < 0.25 * float((plain - exact).abs().max())


def test_heun_asks_twice_but_at_the_end_once() -> None:
    asked: list[float] = []

    def denoise(x: Tensor, t: float) -> Estimate:
        asked.append(t)
        return Estimate(x0_hat=0 * x)

    state = Heun().step(State(x=normal(0), t=0.5), 0.25, denoise, quarter_circle, rng())
    Heun().step(state, 0.0, denoise, quarter_circle, rng())
    assert asked == [0.5, 0.25, 0.25]
