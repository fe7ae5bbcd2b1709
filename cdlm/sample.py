"""The reverse data flow: from noise to captions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from cdlm.kernels.nearest import nearest_token
from cdlm.network import guided
from cdlm.records import Condition, State

if TYPE_CHECKING:
    from cdlm.compose import Parts


@torch.no_grad()
def sample(
    parts: Parts, condition: Condition, mask: Tensor, steps: int, rng: Generator
) -> Iterator[State]:
    """Every state from the first noise on to t = 0. Shapes: mask B L, states B L E."""
    batch = len(condition.features)

    def denoise(x: Tensor, t: float) -> Tensor:
        times = x.new_full((batch,), t)
        said = guided(parts.network, parts.guidance, x, times, condition, mask)
        x0_hat = parts.target.decode(said, x, times, parts.schedule)
        return parts.rounding(x0_hat, t, parts.embedding)

    grid = parts.sampler.grid(steps)
    noise = torch.randn(*mask.shape, parts.dims.width, generator=rng, device=rng.device)
    state = State(x=noise, t=grid[0])
    yield state
    for _, s in pairwise(grid):
        state = parts.sampler.step(state, s, denoise, parts.schedule, rng)
        yield state


@torch.no_grad()
def captions(parts: Parts, features: Tensor, rng: Generator, steps: int | None = None) -> list[str]:
    """A caption for each image. Shapes: features B N C, on the device of `rng`."""
    keep = torch.ones(len(features), dtype=torch.bool, device=features.device)
    condition = Condition(features=features, keep=keep)
    mask = parts.length.draw(condition, rng)
    *_, last = sample(parts, condition, mask, steps or parts.sampler.steps, rng)
    return parts.tokenizer.decode(words(parts, last, mask))


def words(parts: Parts, state: State, mask: Tensor) -> Tensor:
    """The nearest word at every position of a state, padding outside the mask. -> ids B L."""
    x = state.x if state.x0_hat is None else state.x0_hat
    ids = nearest_token(x.flatten(0, 1), parts.embedding.table()).view(mask.shape)
    return ids.masked_fill(~mask, parts.tokenizer.pad)
