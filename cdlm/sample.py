"""The reverse data flow: from images to captions, whatever process makes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from cdlm.errors import CdlmError
from cdlm.records import Condition, Said, State

if TYPE_CHECKING:
    from cdlm.compose import Parts


@torch.no_grad()
def sample(
    parts: Parts, condition: Condition, mask: Tensor, steps: int | None, rng: Generator
) -> Iterator[State]:
    """Every state from the first to the one at t = 0; steps None: as many as the recipe says.

    Shapes: mask B L, the positions that captions occupy.
    """
    yield from parts.process.sample(parts, condition, mask, steps, rng)


@torch.no_grad()
def candidates(
    parts: Parts, features: Tensor, rng: Generator, count: int = 1, steps: int | None = None
) -> list[list[str]]:
    """So many captions for each image. Shapes: features B N C, on the device of `rng`.

    Of a process that searches they are the best ones it finds, the best first.
    """
    mask, states = _states(parts, features, rng, count, steps)
    *_, last = states
    said = parts.tokenizer.decode(words(parts, last, mask))
    return [said[i : i + count] for i in range(0, len(said), count)]


@torch.no_grad()
def traces(
    parts: Parts, features: Tensor, rng: Generator, count: int = 1, steps: int | None = None
) -> list[list[list[str]]]:
    """The same captions as `candidates`, each as it reads at every step; the last is the caption.

    -> images, candidates, steps + 1.
    """
    mask, states = _states(parts, features, rng, count, steps)
    said = [parts.tokenizer.decode(words(parts, state, mask)) for state in states]
    walks = [list(walk) for walk in zip(*said, strict=True)]
    return [walks[i : i + count] for i in range(0, len(walks), count)]


def _states(
    parts: Parts, features: Tensor, rng: Generator, count: int, steps: int | None
) -> tuple[Tensor, Iterator[State]]:
    """The mask B L of so many captions for each image, and every state on their way."""
    sought = count > 1 and searches(parts)
    rows = features if sought else features.repeat_interleave(count, 0)
    keep = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    condition = Condition(features=rows, keep=keep)
    mask = to_possible(parts, parts.length.draw(condition, rng))
    if sought:
        states = parts.process.search(parts, condition, mask, count)  # type: ignore[attr-defined]
        return mask.repeat_interleave(count, 0), states
    return mask, sample(parts, condition, mask, steps, rng)


def at_once(parts: Parts, batch: int, count: int) -> int:
    """Images whose `count` candidates are made together, where captions of a batch are."""
    return batch if searches(parts) else max(1, batch // count)


def searches(parts: Parts) -> bool:
    """Whether captions are looked for instead of drawn, so that samples of an image are alike."""
    return bool(getattr(parts.process, "searches", False))


@torch.no_grad()
def captions(
    parts: Parts, features: Tensor, rng: Generator, steps: int | None = None
) -> list[Said]:
    """Each image's candidates, and which of them was selected. Shapes: features B N C."""
    found = candidates(parts, features, rng, parts.selection.count, steps)
    chosen = parts.selection(found, features, parts.encoder)
    return [Said(texts, i) for texts, i in zip(found, chosen, strict=True)]


def words(parts: Parts, state: State, mask: Tensor) -> Tensor:
    """What a state would be read as: a word at every position, padding outside the mask. B L."""
    return parts.process.words(parts, state, mask)


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
