"""The training captions, whole in memory; batch k is a function of (seed, k) and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Generator, Tensor

from cdlm.protocols import Split, Tokenizer
from cdlm.records import Batch


@dataclass(frozen=True)
class Captions:
    """Every caption of a split beside the row of its image's feature."""

    ids: Tensor  # captions L
    mask: Tensor  # captions L
    owner: Tensor  # captions: the row of features
    features: Tensor  # images N C
    image_ids: Sequence[str]

    @classmethod
    def of(
        cls, split: Split, features: Tensor, tokenizer: Tokenizer, length: int, device: str
    ) -> Captions:
        """All captions of a split, encoded, on a device."""
        flat = [text for texts in split.captions for text in texts]
        counts = torch.tensor([len(texts) for texts in split.captions])
        ids, mask = tokenizer.encode(flat, length)
        owner = torch.arange(len(counts)).repeat_interleave(counts)
        return cls(
            ids.to(device), mask.to(device), owner.to(device), features.to(device), split.ids
        )

    def batch(self, k: int, size: int, seed: int) -> Batch:
        """The k-th batch of an endless row of epochs, each a permutation of all captions."""
        rows = _rows(k * size, size, len(self.ids), seed).to(self.ids.device)
        owner = self.owner[rows]
        return Batch(ids=self.ids[rows], mask=self.mask[rows], features=self.features[owner])


def _rows(start: int, size: int, total: int, seed: int) -> Tensor:
    rows: list[Tensor] = []
    while size > 0:
        epoch, offset = divmod(start, total)
        piece = _order(total, seed, epoch)[offset : offset + size]
        rows.append(piece)
        start, size = start + len(piece), size - len(piece)
    return torch.cat(rows)


@lru_cache(maxsize=2)
def _order(total: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(total, generator=Generator().manual_seed(mixed(seed, epoch)))


def mixed(seed: int, index: int) -> int:
    """A seed of its own for every (seed, index)."""
    return (seed * 1_000_003 + index) % 2**63
