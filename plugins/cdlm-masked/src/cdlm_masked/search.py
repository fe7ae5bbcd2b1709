"""Beam search over captions in which words are hidden: place after place, in any order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Beams:
    """The K captions of each image that are followed, the likeliest first.

    All K of an image have words at the same places, so that their log p are of the same things.
    """

    ids: Tensor  # B K L
    total: Tensor  # B K: log p of the words that are shown, each given those shown before it

    @classmethod
    def of(cls, ids: Tensor, count: int) -> Beams:
        """K times the same captions B L; only the first is alive, or all would say the same."""
        dead = torch.arange(count, device=ids.device) > 0
        total = torch.zeros(len(ids), count, device=ids.device).masked_fill(dead, -torch.inf)
        return cls(ids=ids[:, None].repeat(1, count, 1), total=total)

    def grown(self, shares: Tensor, place: Tensor) -> Beams:
        """The K likeliest with one word more, at `place` B of each image.

        shares: log p of every word there, B K V.
        """
        b, k, v = shares.shape
        total, chosen = (self.total[..., None] + shares).flatten(1).topk(k, 1)
        parent, word = chosen // v, chosen % v
        ids = self.ids.gather(1, parent[..., None].expand_as(self.ids))
        ids = ids.scatter(2, place[:, None, None].expand(b, k, 1), word[..., None])
        return Beams(ids=ids, total=total)
