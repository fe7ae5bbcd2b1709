"""One linear map as the denoiser."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from cdlm.records import Dims, Stream


class Linear(nn.Module):
    """The same linear map at every position; no position hears of another.

    h_l <- W h_l + b. What it restores can be read off a word's own noisy vector, and a time and an
    image that were added to it (`time_add`, `feature_add`): a floor for every other denoiser. Extra
    tokens tell it nothing.
    Shapes: B M H -> B M H.   Source: the identity trial of the lab notes that cdlm grew from.
    """

    reads: ClassVar[set[str]] = set()

    def __init__(self, *, dims: Dims):
        super().__init__()
        self.map = nn.Linear(dims.hidden, dims.hidden)

    def forward(self, stream: Stream) -> Tensor:
        return self.map(stream.h)
