"""Ideal denoisers in closed form: what a sampler does with them can be checked against theory.

Each is a `Denoise`, (x B L E, t) -> the estimate E[x0 | x_t = x], for a schedule that preserves
variance. `step_back` is a step's distribution, for the terms of the variational bound.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Normal

from cdlm.protocols import Denoise, Sampler, Schedule
from cdlm.records import Estimate, Level, State
from cdlm.testing.examples import quarter_circle, rng


def gaussian(schedule: Schedule, std: float = 1.0, mean: float = 0.0) -> Denoise:
    """For x0 ~ N(mean, std^2 I): E[x0 | x_t] = mean + alpha std^2 (x_t - alpha mean) / v_t.

    v_t = alpha^2 std^2 + sigma^2 is the variance of x_t; at std 1 and mean 0 every x_t is N(0, I).
    Without fresh noise x keeps its place in the spread: at mean 0, x_s / x_t = sqrt(v_s / v_t).
    """

    def denoise(x: Tensor, t: float) -> Estimate:
        level, data = schedule(x.new_tensor(t)), std**2
        share = level.alpha * data / (level.alpha.square() * data + level.sigma.square())
        return Estimate(x0_hat=mean + share * (x - level.alpha * mean))

    return denoise


def points(schedule: Schedule, places: Tensor, shares: Tensor | None = None) -> Denoise:
    """For x0 = places[k] with probability shares[k] (equal, unless given), at every position apart.

    E[x0 | x_t] = sum_k p_k e_k,  p = softmax(log share_k - ||x_t - alpha e_k||^2 / 2 sigma^2).
    Shapes: places K E, shares K.
    """
    prior = torch.zeros(len(places)) if shares is None else shares.log()

    def denoise(x: Tensor, t: float) -> Estimate:
        level = schedule(x.new_tensor(t))
        table = places.to(x)
        distance = torch.cdist(x, level.alpha * table.expand(len(x), -1, -1)).square()
        scores = prior.to(x) - distance / (2 * level.sigma.square())
        return Estimate(x0_hat=scores.softmax(-1) @ table)

    return denoise


def constant(x0: Tensor) -> Denoise:
    """For data that is x0 and nothing else."""
    return lambda x, t: Estimate(x0_hat=x0)


def step_back(x0: Tensor, x_t: Tensor, now: Level, then: Level, spread: float = 0.0) -> Normal:
    """q(x_s | x_t, x0) at spread 0, at others p(x_s | x_t) of a network that estimates x0.

    mean = sqrt(S) (1 - A / S) / (1 - A) x0 + sqrt(A / S) (1 - S) / (1 - A) x_t,
    variance = posterior^(1 - spread) (1 - A / S)^spread,  posterior = (1 - S) / (1 - A) (1 - A / S)
    with A = alpha_t^2 and S = alpha_s^2.   Shapes: B L E.
    Source: Ho et al. 2020, eq. 7; Nichol & Dhariwal 2021, eq. 15.
    """
    a_t, a_s = now.alpha.square(), then.alpha.square()
    forward = 1 - a_t / a_s
    mean = (a_s.sqrt() * forward * x0 + (a_t / a_s).sqrt() * (1 - a_s) * x_t) / (1 - a_t)
    variance = ((1 - a_s) / (1 - a_t) * forward) ** (1 - spread) * forward**spread
    return Normal(mean, variance.sqrt().expand_as(mean))


def drawn(
    sampler: Sampler,
    denoise: Denoise,
    steps: int,
    shape: tuple[int, int, int],
    schedule: Schedule = quarter_circle,
    seed: int = 0,
    until: float = 0.0,
) -> Tensor:
    """What the sampler makes of N(0, I) in even steps from 1 to `until`, in float64. B L E."""
    draw = rng(seed)
    state = State(x=torch.randn(shape, generator=draw, dtype=torch.float64), t=1.0)
    for i in range(1, steps + 1):
        s = until + (1 - until) * (1 - i / steps)
        state = sampler.step(state, s, denoise, schedule, draw)
    return state.x
