"""A sampler that calms down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from cdlm.protocols import Denoise, Schedule
from cdlm.records import State
from cdlm.values import Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class Component:
    """DDIM whose fresh noise fades: it explores at much noise and settles near the text.

    x_s = alpha_s x0_hat + sqrt(sigma_s^2 - f^2) eps_hat + f z,
    f = eta t sqrt(sigma_s^2 / sigma_t^2 (1 - alpha_t^2 / alpha_s^2)).   Shapes: B L E.
    Source: Song et al. 2021 (DDIM), eq. 12 and 16, there with eta for eta t.
    """

    order: ClassVar[int] = 1  # the error of N steps falls as 1 / N

    steps: Positive = 20  # sampling steps, unless a call asks for another number
    eta: Fraction = 1.0  # 0 draws nothing

    def step(
        self, state: State, s: float, denoise: Denoise, schedule: Schedule, rng: Generator
    ) -> State:
        """From state.t to s."""
        x0_hat = denoise(state.x, state.t).x0_hat
        here, there = (schedule(state.x.new_tensor(time)) for time in (state.t, s))
        eps_hat = (state.x - here.alpha * x0_hat) / here.sigma
        forward = (1 - (here.alpha / there.alpha).square()).clamp(min=0)
        fresh = self.eta * state.t * there.sigma / here.sigma * forward.sqrt()
        kept = (there.sigma.square() - fresh.square()).clamp(min=0).sqrt()
        z = torch.randn(eps_hat.shape, generator=rng, device=rng.device, dtype=eps_hat.dtype)
        x = there.alpha * x0_hat + kept * eps_hat + fresh * z
        return State(x=x, t=s, x0_hat=x0_hat)
