"""The projection that ready features were made with, found again.

Features are often handed on as a file, without the PCA that made them narrow. Where their photos
are at hand too, least squares find it, and with it the encoder can encode any photo.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from cdlm.errors import CdlmError, DataError
from cdlm.parts.datasets.photos import read
from cdlm.parts.encoders.features import Features
from cdlm_litert.encoder import LiteRt
from cdlm_litert.projection import Projection

AT_ONCE = 64


@dataclass
class Squares:
    """Least squares, a batch at a time: y = W x + b."""

    xx: Tensor  # C+1 C+1
    xy: Tensor  # C+1 C'

    @classmethod
    def of(cls, width: int, narrow: int) -> Squares:
        """Nothing seen yet."""
        xx, xy = (torch.zeros(width + 1, n, dtype=torch.float64) for n in (width + 1, narrow))
        return cls(xx, xy)

    def see(self, x: Tensor, y: Tensor) -> None:
        """More rows, n C and n C'."""
        one = torch.cat([x, torch.ones(len(x), 1)], 1).double()
        self.xx += one.mT @ one
        self.xy += one.mT @ y.double()

    def solve(self) -> Projection:
        """The best W and b; of several equally good ones the smallest."""
        best = torch.linalg.lstsq(self.xx, self.xy, driver="gelsd").solution.float()
        return Projection(best[:-1].mT.contiguous(), best[-1].contiguous())


def fit(encoder: LiteRt, ready: Features, photos: Path, names: Sequence[str]) -> Projection:
    """The projection from what the layer says of these photos to their ready features.

    Raises DataError for photos that can't be read, or are too few; CdlmError where tokens differ
    in number.
    """
    (tokens, wide), (asked, narrow) = encoder.shape(), ready.shape()
    if tokens != asked:
        raise CdlmError(f"--grid: {tokens} tokens of an image, and {ready.path} has {asked}")
    if len(names) * tokens <= wide:
        raise DataError(
            f"{photos}: {len(names):,} photos to fit to; a layer of width {wide:,} takes at least "
            f"{wide // tokens + 1:,}, and some more are kept to judge by"
        )
    squares = Squares.of(wide, narrow)
    for x, y in _pairs(encoder, ready, photos, names, "fitting"):
        squares.see(x, y)
    return squares.solve()


def unexplained(encoder: LiteRt, ready: Features, photos: Path, names: Sequence[str]) -> float:
    """Squared error of the encoder's features, as a share of the ready ones' variance."""
    pairs = list(_pairs(encoder, ready, photos, names, "judging"))
    found, wanted = (torch.cat(it) for it in zip(*pairs, strict=True))
    spread = wanted - wanted.mean(0)
    return float((found - wanted).square().sum() / spread.square().sum())


def _pairs(
    encoder: LiteRt, ready: Features, photos: Path, names: Sequence[str], doing: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens n C of some photos, as the encoder and as the file has them."""
    for start in track(range(0, len(names), AT_ONCE), doing, console=Console(stderr=True)):
        some = names[start : start + AT_ONCE]
        images = [read(photos / name) for name in some]
        yield encoder.encode(images).flatten(0, 1), ready.lookup(some).flatten(0, 1)
