"""Ideal denoisers in closed form: what a sampler does with them can be checked against theory.

Each is a `Denoise`, (x B L E, t) -> E[x0 | x_t = x], for a schedule that preserves variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cdlm.protocols import Denoise, Sampler, Schedule
from cdlm.records import State
from cdlm.testing.examples import quarter_circle, rng


def gaussian(schedule: Schedule) -> Denoise:
    """For x0 ~ N(0, I): E[x0 | x_t] = alpha x_t. Every x_t is N(0, I) too."""

    def denoise(x: Tensor, t: float) -> Tensor:
        return schedule(x.new_tensor(t)).alpha * x

    return denoise


def points(schedule: Schedule, places: Tensor, shares: Tensor | None = None) -> Denoise:
    """For x0 = places[k] with probability shares[k] (equal, unless given), at every position apart.

    E[x0 | x_t] = sum_k p_k e_k,  p = softmax(log share_k - ||x_t - alpha e_k||^2 / 2 sigma^2).
    Shapes: places K E, shares K.
    """
    prior = torch.zeros(len(places)) if shares is None else shares.log()

    def denoise(x: Tensor, t: float) -> Tensor:
        level = schedule(x.new_tensor(t))
        table = places.to(x)
        distance = torch.cdist(x, level.alpha * table.expand(len(x), -1, -1)).square()
        scores = prior.to(x) - distance / (2 * level.sigma.square())
        return scores.softmax(-1) @ table

    return denoise


def constant(x0: Tensor) -> Denoise:
    """For data that is x0 and nothing else."""
    return lambda x, t: x0


def drawn(
    sampler: Sampler,
    denoise: Denoise,
    steps: int,
    shape: tuple[int, int, int],
    schedule: Schedule = quarter_circle,
    seed: int = 0,
) -> Tensor:
    """What the sampler makes of N(0, I), in float64. Shape: B L E."""
    grid, draw = sampler.grid(steps), rng(seed)
    state = State(x=torch.randn(shape, generator=draw, dtype=torch.float64), t=grid[0])
    for s in grid[1:]:
        state = sampler.step(state, s, denoise, schedule, draw)
    return state.x
