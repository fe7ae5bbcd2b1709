"""From noise to text. One family,

    x_s = alpha_s x0_hat + sqrt(sigma_s^2 - fresh^2) eps_hat + fresh z,

whose members differ in how much of the noise is drawn afresh. `eps_hat` is the noise that x_t and
x0_hat imply. Source: Song et al. 2021 (DDIM), eq. 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cdlm.protocols import Denoise, Schedule
from cdlm.records import State
from cdlm.values import Fraction, Positive


def leap(
    state: State, s: float, denoise: Denoise, schedule: Schedule, rng: Generator, eta: float
) -> State:
    """One step of the family; `fresh` is eta times the standard deviation of the DDPM posterior."""
    x, t = state.x, state.t
    x0_hat = denoise(x, t).x0_hat
    here, there = schedule(x.new_tensor(t)), schedule(x.new_tensor(s))
    eps_hat = (x - here.alpha * x0_hat) / here.sigma
    posterior = (there.sigma / here.sigma) ** 2 * (1 - (here.alpha / there.alpha) ** 2)
    fresh = eta * posterior.clamp(min=0).sqrt()
    kept = (there.sigma.square() - fresh.square()).clamp(min=0).sqrt()
    mean = there.alpha * x0_hat + kept * eps_hat
    return State(x=mean + fresh * _noise_like(x, rng) if eta else mean, t=s, x0_hat=x0_hat)


def _noise_like(x: Tensor, rng: Generator) -> Tensor:
    return torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)


@dataclass(frozen=True, kw_only=True)
class Ddim:
    """Step by step along the noise that the estimate implies; eta adds fresh noise.

    fresh = eta sqrt(sigma_s^2 / sigma_t^2 (1 - alpha_t^2 / alpha_s^2)).
    Shapes: B L E.   Source: Song et al. 2021 (DDIM), eq. 12 and 16.
    """

    order: ClassVar[int] = 1

    steps: Positive = 20  # sampling steps, unless a call asks for another number
    eta: Fraction = 0.0  # 0 is deterministic given the first noise, 1 is DDPM

    def step(
        self, state: State, s: float, denoise: Denoise, schedule: Schedule, rng: Generator
    ) -> State:
        return leap(state, s, denoise, schedule, rng, self.eta)


@dataclass(frozen=True, kw_only=True)
class Ddpm:
    """A draw from the posterior q(x_s | x_t, x0_hat) at every step.

    The family at eta = 1: variance sigma_s^2 / sigma_t^2 (1 - alpha_t^2 / alpha_s^2).
    Shapes: B L E.   Source: Ho et al. 2020, eq. 6 and 7, for any s < t.
    """

    order: ClassVar[int] = 1

    steps: Positive = 100  # sampling steps, unless a call asks for another number

    def step(
        self, state: State, s: float, denoise: Denoise, schedule: Schedule, rng: Generator
    ) -> State:
        return leap(state, s, denoise, schedule, rng, eta=1.0)
