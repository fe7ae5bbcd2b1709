"""The Gaussian process: embedded captions into noise, and noise into captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor

from cdlm.errors import CdlmError
from cdlm.graph import Replayed
from cdlm.kernels import Remember, WordTable, nearest_token, nearest_word, prepare_table
from cdlm.kernels.nearest import vectors
from cdlm.network import answer, withhold
from cdlm.protocols import Denoise, Schedule
from cdlm.records import Batch, Condition, Estimate, Guess, Noised, Once, State
from cdlm.sample import forbidden
from cdlm.values import Count

if TYPE_CHECKING:
    from cdlm.compose import Parts

MANY = 4096  # words from which on remembering is quicker than a scan of them all


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Words are vectors; noise is mixed into them, and the network restores them.

    x_t = alpha(t) x0 + sigma(t) eps. Training teaches the network `target` at the noise levels of
    `timesteps`; sampling begins with noise and goes along `grid` with `sampler`.
    Shapes: states B L E.   Source: Ho et al. 2020, eq. 4; on words Li et al. 2022 (Diffusion-LM).
    Raises CdlmError where sampling ends in numbers that are not finite.
    """

    provides: ClassVar[set[str]] = {"times"}
    without: ClassVar[set[str]] = set()
    afterwards: ClassVar[set[str]] = {"remember", "graph", "patience"}

    remember: bool = True  # on a CPU: rounding goes by what the steps before have shown
    graph: bool = False  # on a GPU: the network's call is captured once as a CUDA graph
    patience: Count = 0  # end after so many steps in which no estimate changed; 0: never early

    def loss(self, parts: Parts, batch: Batch, rng: Generator) -> dict[str, Tensor]:
        mask = parts.length.mask(batch)
        condition = withhold(batch, parts.guidance.drop, rng)
        x0 = parts.embedding(batch.ids)
        t, weight = parts.timesteps(len(x0), rng)
        noised = corrupt(x0, parts.noise(x0, rng), t, parts.schedule)
        guess = _guess(parts, batch, condition, noised, mask, rng)
        terms = {name: loss.weight * loss(guess) for name, loss in parts.loss.items()}
        parts.timesteps.observe(t, torch.stack(list(terms.values())).sum(0).detach())
        return {name: (weight * term).mean() for name, term in terms.items()}

    def sample(
        self, parts: Parts, condition: Condition, mask: Tensor, steps: int | None, rng: Generator
    ) -> Iterator[State]:
        denoise = self._denoiser(parts, replace(condition, once=Once({})), mask)
        noise = torch.randn(*mask.shape, parts.dims.width, generator=rng, device=rng.device)
        state = State(x=noise, t=1.0)
        yield state
        same = 0
        for t, s in parts.grid(steps or parts.sampler.steps, parts.schedule):
            before = state.x0_hat
            state = parts.sampler.step(replace(state, t=t), s, denoise, parts.schedule, rng)
            same = same + 1 if self.patience and _equal(before, state.x0_hat) else 0
            if self.patience and same >= self.patience:
                state = replace(state, t=0.0)
            yield state
            if state.t == 0:
                return

    def words(self, parts: Parts, state: State, mask: Tensor) -> Tensor:
        """The nearest allowed word at every position, padding outside the mask."""
        x = state.x if state.x0_hat is None else state.x0_hat
        if not bool(x[mask].isfinite().all()):
            raise CdlmError(
                "sampling ended in numbers that are not finite; no caption can be read from them\n"
                "    try --set rounding.use=clamp, another sampler, or a target that says x0: "
                '"x0", "v"'
            )
        barred, table = forbidden(parts, x.device), parts.embedding.table()
        if barred is not None:
            x = to_allowed(x, barred, prepare_table(table))
        return nearest_token(x, table).masked_fill(~mask, parts.tokenizer.pad)

    def _denoiser(self, parts: Parts, condition: Condition, mask: Tensor) -> Denoise:
        """Network, guidance, decoding, rounding and constraints in one, for one sampling."""
        barred = forbidden(parts, mask.device)
        table = prepare_table(parts.embedding.table())
        nearest = self._nearest(table)
        if self.graph and mask.is_cuda:
            parts = replace(parts, network=Replayed(parts.network))  # type: ignore[arg-type]
        # The last estimate as the network made it: with that it has practised.
        before: Tensor | None = None

        def denoise(x: Tensor, t: float) -> Estimate:
            nonlocal before
            times = x.new_full((len(x),), t)
            before = answer(parts, x, times, condition, mask, before).x0_hat
            x0_hat = parts.rounding(before, t, parts.embedding, nearest)
            if barred is not None:
                x0_hat = to_allowed(x0_hat, barred, table)
            return Estimate(x0_hat=x0_hat, spread=parts.variance(x0_hat, x, times))

        return denoise

    def _nearest(self, table: WordTable) -> Callable[[Tensor], Tensor]:
        """Every vector's nearest word; one memory for all steps, where remembering pays."""
        if not self.remember or table.words.is_cuda or len(table) < MANY:
            return partial(nearest_word, table=table)
        memory = Remember(table)
        return lambda x: vectors(x, table.words, memory(x))


# ---------------------------------------------------------------------------------- the way there


def corrupt(x0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Noised:
    """x_t = alpha x0 + sigma eps. Shapes: x0, eps B L E, t B."""
    level = schedule(t).over(x0)
    return Noised(x0=x0, eps=eps, x_t=level.alpha * x0 + level.sigma * eps, t=t)


def _guess(
    parts: Parts, batch: Batch, condition: Condition, noised: Noised, mask: Tensor, rng: Generator
) -> Guess:
    """What the network says of these noised captions, beside what it should have said."""

    def think(x_t: Tensor, t: Tensor) -> Tensor:
        return answer(parts, x_t, t, condition, mask).x0_hat

    before = parts.self_conditioning.practise(think, noised, parts.schedule, rng)
    found = answer(parts, noised.x_t, noised.t, condition, mask, before)
    return Guess(
        batch=batch,
        condition=condition,
        noised=noised,
        mask=mask,
        wanted=parts.target.encode(noised, parts.schedule),
        got=found.said,
        x0_hat=found.x0_hat,
        spread=parts.variance(found.x0_hat.detach(), noised.x_t.detach(), noised.t),
        think=think,
        embedding=parts.embedding,
        schedule=parts.schedule,
        guidance=parts.guidance,
        length=parts.length,
    )


# ----------------------------------------------------------------------------------- the way back


def _equal(one: Tensor | None, two: Tensor | None) -> bool:
    return one is not None and two is not None and torch.equal(one, two)


def to_allowed(x0_hat: Tensor, barred: Tensor, table: WordTable) -> Tensor:
    """Where the nearest word is barred, the nearest that is not; where one is left, that one.

    Shapes: x0_hat B L E, barred L V, table V E -> B L E.
    """
    ids = nearest_token(x0_hat, table)
    certain = (~barred).sum(1) == 1
    moves = barred[torch.arange(len(barred), device=ids.device), ids] | certain
    rows, places = moves.nonzero(as_tuple=True)
    distance = torch.cdist(x0_hat[rows, places], table.words.to(x0_hat))
    nearest = distance.masked_fill(barred[places], torch.inf).argmin(1)
    moved = x0_hat.clone()
    moved[rows, places] = table.words[nearest].to(x0_hat)
    return moved
