"""The reverse data flow: from noise to captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from cdlm.errors import CdlmError
from cdlm.kernels.nearest import nearest_token
from cdlm.network import answer
from cdlm.records import Condition, Estimate, Said, State

if TYPE_CHECKING:
    from cdlm.compose import Parts


@torch.no_grad()
def sample(
    parts: Parts, condition: Condition, mask: Tensor, steps: int, rng: Generator
) -> Iterator[State]:
    """Every state from the first noise on to t = 0. Shapes: mask B L, states B L E."""
    barred = forbidden(parts, rng.device)
    before: Tensor | None = None  # the last estimate as the network made it: so it has practised

    def denoise(x: Tensor, t: float) -> Estimate:
        nonlocal before
        times = x.new_full((len(x),), t)
        before = answer(parts, x, times, condition, mask, before).x0_hat
        x0_hat = parts.rounding(before, t, parts.embedding)
        if barred is not None:
            x0_hat = to_allowed(x0_hat, barred, parts.embedding.table())
        return Estimate(x0_hat=x0_hat, spread=parts.variance(x0_hat, x, times))

    noise = torch.randn(*mask.shape, parts.dims.width, generator=rng, device=rng.device)
    state = State(x=noise, t=1.0)
    yield state
    for t, s in parts.grid(steps, parts.schedule):
        state = parts.sampler.step(replace(state, t=t), s, denoise, parts.schedule, rng)
        yield state


@torch.no_grad()
def candidates(
    parts: Parts, features: Tensor, rng: Generator, count: int = 1, steps: int | None = None
) -> list[list[str]]:
    """So many captions for each image. Shapes: features B N C, on the device of `rng`."""
    rows = features.repeat_interleave(count, 0)
    keep = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    condition = Condition(features=rows, keep=keep)
    mask = to_possible(parts, parts.length.draw(condition, rng))
    *_, last = sample(parts, condition, mask, steps or parts.sampler.steps, rng)
    said = parts.tokenizer.decode(words(parts, last, mask))
    return [said[i : i + count] for i in range(0, len(said), count)]


@torch.no_grad()
def captions(
    parts: Parts, features: Tensor, rng: Generator, steps: int | None = None
) -> list[Said]:
    """Each image's candidates, and which of them was selected. Shapes: features B N C."""
    found = candidates(parts, features, rng, parts.selection.count, steps)
    chosen = parts.selection(found, features, parts.encoder)
    return [Said(texts, i) for texts, i in zip(found, chosen, strict=True)]


def words(parts: Parts, state: State, mask: Tensor) -> Tensor:
    """The nearest allowed word at every position, padding outside the mask. -> ids B L.

    Raises CdlmError where sampling ran away: numbers that are not finite are near no word.
    """
    x = state.x if state.x0_hat is None else state.x0_hat
    if not bool(x[mask].isfinite().all()):
        raise CdlmError(
            "sampling ended in numbers that are not finite; no caption can be read from them\n"
            '    try --set rounding.use=clamp, another sampler, or a target that says x0: "x0", "v"'
        )
    barred = forbidden(parts, x.device)
    if barred is not None:
        x = to_allowed(x, barred, parts.embedding.table())
    ids = nearest_token(x.flatten(0, 1), parts.embedding.table()).view(mask.shape)
    return ids.masked_fill(~mask, parts.tokenizer.pad)


def forbidden(parts: Parts, device: torch.device) -> Tensor | None:
    """The words that the constraints bar from each place, L V; None where nothing is barred.

    Raises CdlmError where they leave no word for a place.
    """
    if not parts.constraint:
        return None
    rules = [rule.allowed(parts.tokenizer, parts.dims.length) for rule in parts.constraint]
    allowed = torch.stack(rules).all(0)
    if not bool(allowed.any(1).all()):
        place = int(allowed.any(1).int().argmin())
        among = [
            str(it)
            for it, rule in zip(parts.constraint, rules, strict=True)
            if not rule[place].all()
        ]
        raise CdlmError(
            f"constraint: no word is left for place {place + 1} of the caption\n"
            f"    loosen one of these: {', '.join(among)}"
        )
    return ~allowed.to(device)


def to_possible(parts: Parts, mask: Tensor) -> Tensor:
    """Lengths drawn anew where the constraints let no caption end: the nearest that can end.

    A mask that uses every position stays: there a caption ends at its own end token. Where no
    length can end, every position is used. Shapes: B L -> B L.
    """
    barred = forbidden(parts, mask.device)
    if barred is None:
        return mask
    allowed, end = ~barred, parts.tokenizer.end
    goes_on = allowed.clone()
    goes_on[:, [end, parts.tokenizer.pad]] = False
    reached = goes_on.any(1).int().cumprod(0)  # whether all places up to here can have a word
    can_end = allowed[:, end] & torch.cat([reached.new_ones(1), reached[:-1]]).bool()
    ends = can_end.nonzero().flatten()
    if not len(ends):
        return torch.ones_like(mask)
    drawn = mask.sum(1) - 1
    nearest = ends[(drawn[:, None] - ends).abs().argmin(1)]
    places = torch.arange(mask.shape[1], device=mask.device)
    return mask.all(1, keepdim=True) | (places <= nearest[:, None])


def to_allowed(x0_hat: Tensor, barred: Tensor, table: Tensor) -> Tensor:
    """Where the nearest word is barred, the nearest that is not; where one is left, that one.

    Shapes: x0_hat B L E, barred L V, table V E -> B L E.
    """
    ids = nearest_token(x0_hat.flatten(0, 1), table).view(x0_hat.shape[:2])
    certain = (~barred).sum(1) == 1
    moves = barred[torch.arange(len(barred), device=ids.device), ids] | certain
    rows, places = moves.nonzero(as_tuple=True)
    distance = torch.cdist(x0_hat[rows, places], table.to(x0_hat))
    nearest = distance.masked_fill(barred[places], torch.inf).argmin(1)
    moved = x0_hat.clone()
    moved[rows, places] = table[nearest].to(x0_hat)
    return moved
