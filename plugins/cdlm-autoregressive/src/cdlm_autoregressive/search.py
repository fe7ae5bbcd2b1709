"""Beam search, one word at a time; greedy search and drawing are its cases of one beam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Generator, Tensor

Pick: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(log p, words), B candidates each -> which K of them are followed, B K, the best one first."""


@dataclass(frozen=True, kw_only=True)
class Beams:
    """The K captions of each image that are followed."""

    ids: Tensor  # B K L; padding what is not said
    total: Tensor  # B K: log p of what is said
    size: Tensor  # B K: words said, the end counted
    ended: Tensor  # B K, bool

    @classmethod
    def empty(cls, mask: Tensor, count: int, pad: int) -> Beams:
        """Nothing said; only the first beam is alive, or all would say the same. mask B L."""
        shape = (len(mask), count)
        dead = torch.arange(count, device=mask.device) > 0
        return cls(
            ids=torch.full((*shape, mask.shape[1]), pad, device=mask.device),
            total=torch.zeros(shape, device=mask.device).masked_fill(dead, -torch.inf),
            size=torch.zeros(shape, dtype=torch.long, device=mask.device),
            ended=~mask[:, :1].expand(shape),
        )

    def best(self, count: int) -> Tensor:
        """So many captions of each image in turn, B count L; for what is none, the first."""
        there = self.total[:, :count] > -torch.inf
        return self.ids[:, :count].where(there[..., None], self.ids[:, :1]).flatten(0, 1)

    def grown(
        self, shares: Tensor, place: int, last: Tensor, ends: tuple[int, int], pick: Pick
    ) -> tuple[Beams, Tensor]:
        """One word longer, and which beam each goes on. -> K beams, B K.

        A caption that has ended competes as it is, with padding behind it.
        shares: log p of each next word, B K V.   last: whether a caption has no place behind this
        one, B.   ends: the ids of padding and end; either ends a caption.
        """
        pad, v = ends[0], shares.shape[2]
        still = torch.full((v,), -torch.inf, device=shares.device)
        still[pad] = 0
        total = self.total[..., None] + torch.where(self.ended[..., None], still, shares)
        size = (self.size + ~self.ended)[..., None].expand_as(total)
        chosen = pick(total.flatten(1), size.flatten(1))
        parent, word = chosen // v, chosen % v
        ids = self.ids.gather(1, parent[..., None].expand_as(self.ids)).clone()
        ids[..., place] = word
        over = (word == pad) | (word == ends[1]) | last[:, None]
        return Beams(
            ids=ids,
            total=total.flatten(1).gather(1, chosen),
            size=size.flatten(1).gather(1, chosen),
            ended=self.ended.gather(1, parent) | over,
        ), parent


def likeliest(count: int, penalty: float) -> Pick:
    """Picks the largest log p / ((5 + words) / 6)^penalty.   Source: Wu et al. 2016, eq. 14."""

    def pick(total: Tensor, size: Tensor) -> Tensor:
        return (total / ((5 + size) / 6) ** penalty).topk(count, 1).indices

    return pick


def drawn(temperature: float, rng: Generator) -> Pick:
    """Draws one candidate of one beam, from p^(1 / temperature)."""

    def pick(total: Tensor, size: Tensor) -> Tensor:
        return torch.multinomial((total / temperature).softmax(1), 1, generator=rng)

    return pick
