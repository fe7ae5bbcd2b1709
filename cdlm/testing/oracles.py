"""Ideal denoisers in closed form: what a sampler does with them can be checked against theory.

Each is a `Denoise`, (x B L E, t) -> the estimate E[x0 | x_t = x], for a schedule that preserves
variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdlm.protocols import Denoise, Sampler, Schedule
from cdlm.records import Estimate, State
from cdlm.testing.examples import quarter_circle, rng


def gaussian(schedule: Schedule, std: float = 1.0) -> Denoise:
    """For x0 ~ N(0, std^2 I): E[x0 | x_t] = alpha std^2 x_t / (alpha^2 std^2 + sigma^2).

    At std 1 every x_t is N(0, I) too. Without fresh noise, x_s follows x_t's share of its spread:
    x_s / x_t = sqrt(alpha_s^2 std^2 + sigma_s^2) / sqrt(alpha_t^2 std^2 + sigma_t^2).
    """

    def denoise(x: Tensor, t: float) -> Estimate:
        level, data = schedule(x.new_tensor(t)), std**2
        share = level.alpha * data / (level.alpha.square() * data + level.sigma.square())
        return Estimate(x0_hat=share * x)

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
