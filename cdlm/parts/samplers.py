"""From noise to text. Most are one family,

    x_s = alpha_s x0_hat + sqrt(sigma_s^2 - fresh^2) eps_hat + fresh z,

whose members differ in how much of the noise is drawn afresh: none (ddim), as much as the posterior
has (ddpm), all of it (renoise). `eps_hat` is the noise that x_t and x0_hat imply. Source: Song et
al. 2021 (DDIM), eq. 12. dpm_solver and heun make better use of several estimates.

`order` says how the error of N steps falls, as 1 / N^order, where the estimates are ideal. Order 0
never arrives at the distribution: such a sampler seeks its modes, and its samples vary less. The
laws in `cdlm.testing` hold each sampler to its word, both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from cdlm.protocols import Denoise, Schedule
from cdlm.records import Level, State
from cdlm.values import Fraction, Positive


def _levels(x: Tensor, t: float, s: float, schedule: Schedule) -> tuple[Level, Level]:
    """The levels at t and at s, as scalars beside x."""
    return schedule(x.new_tensor(t)), schedule(x.new_tensor(s))


def _noise_like(x: Tensor, rng: Generator) -> Tensor:
    return torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)


def _posterior(here: Level, there: Level) -> tuple[Tensor, Tensor]:
    """The variances of q(x_s | x_t, x0) and of q(x_t | x_s)."""
    forward = (1 - (here.alpha / there.alpha).square()).clamp(min=0)
    return (there.sigma / here.sigma).square() * forward, forward


def leap(x: Tensor, x0_hat: Tensor, here: Level, there: Level, fresh: Tensor | float) -> Tensor:
    """alpha_s x0_hat + sqrt(sigma_s^2 - fresh^2) eps_hat. Shapes: B L E."""
    eps_hat = (x - here.alpha * x0_hat) / here.sigma
    kept = (there.sigma.square() - fresh**2).clamp(min=0).sqrt()
    return there.alpha * x0_hat + kept * eps_hat


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
        x0_hat = denoise(state.x, state.t).x0_hat
        here, there = _levels(state.x, state.t, s, schedule)
        fresh = self.eta * _posterior(here, there)[0].sqrt()
        x = leap(state.x, x0_hat, here, there, fresh)
        if self.eta:
            x = x + fresh * _noise_like(x, rng)
        return State(x=x, t=s, x0_hat=x0_hat)


@dataclass(frozen=True, kw_only=True)
class Ddpm:
    """A draw from the posterior q(x_s | x_t, x0_hat) at every step, with the recipe's variance.

    mean: the family at fresh^2 = posterior = sigma_s^2 / sigma_t^2 (1 - alpha_t^2 / alpha_s^2);
    variance = posterior^(1 - spread) (1 - alpha_t^2 / alpha_s^2)^spread, with the spread that the
    kind `variance` gives, fixed or learned. The last step draws nothing.
    Shapes: B L E.   Source: Ho et al. 2020, eq. 6 and 7, for any s < t; Nichol & Dhariwal 2021,
    eq. 15.
    """

    order: ClassVar[int] = 1

    steps: Positive = 100  # sampling steps, unless a call asks for another number

    def step(
        self, state: State, s: float, denoise: Denoise, schedule: Schedule, rng: Generator
    ) -> State:
        estimate = denoise(state.x, state.t)
        here, there = _levels(state.x, state.t, s, schedule)
        posterior, forward = _posterior(here, there)
        x = leap(state.x, estimate.x0_hat, here, there, posterior.sqrt())
        if s > 0:
            variance = posterior ** (1 - estimate.spread) * forward**estimate.spread
            x = x + variance.sqrt() * _noise_like(x, rng)
        return State(x=x, t=s, x0_hat=estimate.x0_hat)


@dataclass(frozen=True, kw_only=True)
class Renoise:
    """The estimate with fresh noise, at every step.

    x_s = alpha_s x0_hat + sigma_s z: the family at fresh = sigma_s. It keeps the mean but favours
    the more frequent: of data N(m, v) many steps make N(m, v / 2), since what x_t knew of its x0
    beyond the estimate is thrown away each time. Only where the estimate is sure is that nothing.
    Shapes: B L E.   Source: Wang et al. 2024 (LaDiC), arXiv 2404.10763, in its released code.
    """

    order: ClassVar[int] = 0

    steps: Positive = 20  # sampling steps, unless a call asks for another number

    def step(
        self, state: State, s: float, denoise: Denoise, schedule: Schedule, rng: Generator
    ) -> State:
        x0_hat = denoise(state.x, state.t).x0_hat
        there = schedule(state.x.new_tensor(s))
        x = there.alpha * x0_hat + there.sigma * _noise_like(x0_hat, rng)
        return State(x=x, t=s, x0_hat=x0_hat)


@dataclass(frozen=True, kw_only=True)
class Refeed:
    """The network reads its own estimate again and again, without noise.

    x_s = x0_hat. The network is told the times of the grid all the same, if it is told any. It
    walks to a mode; how often a caption occurs hardly counts.
    Shapes: B L E.   Source: the released code of Xu 2022 (CLIP-Diffusion-LM), with 5 steps.
    """

    order: ClassVar[int] = 0

    steps: Positive = 5  # sampling steps, unless a call asks for another number

    def step(
        self, state: State, s: float, denoise: Denoise, schedule: Schedule, rng: Generator
    ) -> State:
        x0_hat = denoise(state.x, state.t).x0_hat
        return State(x=x0_hat, t=s, x0_hat=x0_hat)


@dataclass(frozen=True, kw_only=True)
class DpmSolver:
    """DPM-Solver++: an exact step for an estimate that goes on in a straight line in log-SNR.

    x_s = sigma_s / sigma_t x_t + (alpha_s - alpha_t sigma_s / sigma_t) D,
    D = x0_hat,  or at order 2 x0_hat + (x0_hat - x0_before) / 2r,
    r = (lambda_t - lambda_before) / (lambda_s - lambda_t),  lambda = log(alpha / sigma).
    Order 1 is DDIM. The first step, and one to s = 0, are of order 1: near s = 0 lambda leaps, and
    so would the straight line.
    Shapes: B L E.   Source: Lu et al. 2022 (DPM-Solver++), arXiv 2211.01095, eq. 9 and algorithm 2
    (2M).
    """

    steps: Positive = 10  # sampling steps, unless a call asks for another number
    order: Literal[1, 2] = 2  # 2 uses the estimate before, too

    def step(
        self, state: State, s: float, denoise: Denoise, schedule: Schedule, rng: Generator
    ) -> State:
        x0_hat = denoise(state.x, state.t).x0_hat
        here, there = _levels(state.x, state.t, s, schedule)
        ratio = (here.alpha / here.sigma).log()
        ahead = x0_hat
        if self.order == 2 and state.carry is not None and s > 0:
            before, ratio_before = state.carry
            r = (ratio - ratio_before) / ((there.alpha / there.sigma).log() - ratio)
            ahead = x0_hat + (x0_hat - before) / (2 * r)
        x = leap(state.x, ahead, here, there, fresh=0.0)
        return State(x=x, t=s, x0_hat=x0_hat, carry=(x0_hat, ratio))


@dataclass(frozen=True, kw_only=True)
class Heun:
    """A DDIM step to try, then the same step again with the mean of the estimates at both ends.

    x' = ddim(x_t, x0_hat),  x_s = ddim(x_t, (x0_hat + x0_hat') / 2): Heun's trapezoid in
    alpha / sigma, in which a constant estimate is followed exactly. Two network calls a step; one
    where s = 0, a time that no network is trained at.
    Shapes: B L E.   Source: Lu et al. 2022 (DPM-Solver++), algorithm 1 with r = 1; the trapezoid as
    in Karras et al. 2022, algorithm 1.
    """

    order: ClassVar[int] = 2

    steps: Positive = 10  # sampling steps, unless a call asks for another number

    def step(
        self, state: State, s: float, denoise: Denoise, schedule: Schedule, rng: Generator
    ) -> State:
        x0_hat = denoise(state.x, state.t).x0_hat
        here, there = _levels(state.x, state.t, s, schedule)
        x = leap(state.x, x0_hat, here, there, fresh=0.0)
        if s > 0:
            x0_hat = (x0_hat + denoise(x, s).x0_hat) / 2
            x = leap(state.x, x0_hat, here, there, fresh=0.0)
        return State(x=x, t=s, x0_hat=x0_hat)
