"""The training captions, whole on the device; batch k is a function of (seed, k), nothing else."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Generator, Tensor

from cdlm.protocols import Split, Tokenizer
from cdlm.records import Batch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captions:
    """Every caption of a split beside the row of its image's feature."""

    ids: Tensor  # captions L
    mask: Tensor  # captions L
    owner: Tensor  # captions: the row of features; any, where there is no photo
    features: Tensor  # photos N C; in main memory where the device is too small
    views: Tensor | None = None  # photos K N C: of other views of them; where they fit, as features
    weights: tuple[float, ...] = ()  # captions: how often each comes, against the others; or equal
    texts: Tensor | None = None  # captions 1 C, where a part needs the captions' own features
    pictured: Tensor | None = None  # captions, bool: which have a photo; None: all
    image: Tensor | None = None  # captions: the row of references
    references: tuple[list[str], ...] = ()  # images, photo or not: their captions

    @classmethod
    def of(
        cls,
        split: Split,
        features: Tensor,
        tokenizer: Tokenizer,
        length: int,
        limit: int,
        device: str,
        texts: Tensor | None = None,
        views: Tensor | None = None,
    ) -> Captions:
        """The captions of a split, the first `limit` unless that is 0, encoded, on a device."""
        counts = torch.tensor([len(captions) for captions in split.captions])
        image = torch.arange(len(counts)).repeat_interleave(counts)[: limit or None]
        pictured = torch.tensor(split.pictured)
        ids, mask = tokenizer.encode(flat(split, limit), length)
        weights = [split.weights[i] for i in image.tolist()]
        return cls(
            ids.to(device),
            mask.to(device),
            (pictured.cumsum(0) - 1).clamp(min=0)[image].to(device),
            resident(features, device),
            None if views is None else resident(views, device),
            () if len(set(weights)) == 1 else tuple(weights),
            None if texts is None else texts[: limit or None].to(device),
            None if all(split.pictured) else pictured[image].to(device),
            image,
            _references(split, limit),
        )

    def batch(self, k: int, size: int, seed: int) -> Batch:
        """The k-th batch of an endless row of epochs.

        An epoch is a permutation of all captions, or, where they have weights, as many drawn so
        that each comes as often as its weight says, up to one. Of a photo that has other views each
        caption sees one, or the photo itself, all as often.
        """
        drawn = self._rows(k * size, size, seed)
        known = [] if self.image is None else self.image[drawn].tolist()
        rows = drawn.to(self.ids.device)
        owner = self.owner[rows]
        return Batch(
            ids=self.ids[rows],
            mask=self.mask[rows],
            features=self._seen(owner, mixed(mixed(seed, k), 1)),
            text=None if self.texts is None else self.texts[rows],
            pictured=None if self.pictured is None else self.pictured[rows],
            references=[self.references[i] for i in known],
        )

    def _seen(self, owner: Tensor, seed: int) -> Tensor:
        """The features of these photos, or of views of them, B N C."""
        found = _taken(self.features, owner)
        if self.views is None:
            return found
        looks = 1 + self.views.shape[1]
        look = torch.randint(looks, owner.shape, generator=Generator().manual_seed(seed))
        other = look.to(owner.device) > 0
        rows = owner[other] * (looks - 1) + look.to(owner.device)[other] - 1
        found[other] = _taken(self.views.flatten(0, 1), rows)
        return found

    def _rows(self, start: int, size: int, seed: int) -> Tensor:
        rows: list[Tensor] = []
        while size > 0:
            epoch, offset = divmod(start, len(self.ids))
            piece = _order(len(self.ids), self.weights, seed, epoch)[offset : offset + size]
            rows.append(piece)
            start, size = start + len(piece), size - len(piece)
        return torch.cat(rows)


def _taken(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table, wherever it is, on the device where they are asked for."""
    return table[rows.to(table.device)].to(rows.device)


def _references(split: Split, limit: int) -> tuple[list[str], ...]:
    """The captions of each image, as far as they are among the first `limit`; 0: all."""
    left = limit or len(flat(split))
    kept = list[list[str]]()
    for texts in split.captions:
        kept.append(texts[:left])
        left -= len(kept[-1])
    return tuple(kept)


def flat(split: Split, limit: int = 0) -> list[str]:
    """All captions of a split in a row; the first `limit` unless that is 0."""
    return [text for texts in split.captions for text in texts][: limit or None]


def resident(table: Tensor, device: str) -> Tensor:
    """The table on the device, unless it would take more than half of a GPU's free memory."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if table.nbytes > free / 2:
            log.warning(
                f"the images' features take {table.nbytes / 1e9:.1f} GB, and {device} has "
                f"{free / 1e9:.1f} GB free: they stay in main memory, which makes steps slower"
            )
            return table
    return table.to(device)


@lru_cache(maxsize=2)
def _order(total: int, weights: tuple[float, ...], seed: int, epoch: int) -> Tensor:
    rng = Generator().manual_seed(mixed(seed, epoch))
    order = torch.randperm(total, generator=rng)
    return _drawn(torch.tensor(weights, dtype=torch.float64), rng)[order] if weights else order


def _drawn(weights: Tensor, rng: Generator) -> Tensor:
    """As many positions as weights, each about weight / mean times (systematic resampling)."""
    total = len(weights)
    ends = weights.cumsum(0) * (total / weights.sum())
    marks = torch.arange(total) + torch.rand((), generator=rng, dtype=torch.float64)
    return torch.searchsorted(ends, marks, right=True).clamp(max=total - 1)


def mixed(seed: int, index: int) -> int:
    """A seed of its own for every (seed, index)."""
    return (seed * 1_000_003 + index) % 2**63
