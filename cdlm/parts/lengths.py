"""Which of the L positions a caption occupies."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from cdlm.parts.ensemble import pooled
from cdlm.records import Batch, Condition, Dims
from cdlm.values import Part, Positive


class Generated(nn.Module):
    """Padding is a word like any other: attended to, scored, and generated after the end.

    Every position is used, in training and in sampling; the sampled end token ends the caption.
    Shapes: -> B L.   Source: Li et al. 2022 (Diffusion-LM).
    """

    provides: ClassVar[set[str]] = {"generated_end"}

    def __init__(self, *, dims: Dims):
        super().__init__()
        self.length = dims.length

    def mask(self, batch: Batch) -> Tensor:
        return torch.ones_like(batch.mask)

    def draw(self, condition: Condition, rng: Generator) -> Tensor:
        shape = (len(condition.features), self.length)
        return torch.ones(shape, dtype=torch.bool, device=condition.features.device)


class Histogram(nn.Module):
    """Padding is nothing: never attended to, never scored; lengths are drawn as training had them.

    mask = the caption and its end token; p(length) = its share of the training captions so far.
    Shapes: -> B L.   The counts are part of the weights.
    """

    counts: Tensor

    def __init__(self, *, dims: Dims):
        super().__init__()
        self.register_buffer("counts", torch.zeros(dims.length))

    def mask(self, batch: Batch) -> Tensor:
        if self.training:
            lengths = batch.mask.sum(1) - 1
            self.counts += torch.bincount(lengths, minlength=len(self.counts))
        return batch.mask

    def draw(self, condition: Condition, rng: Generator) -> Tensor:
        n = len(condition.features)
        last = torch.multinomial(self.counts, n, replacement=True, generator=rng)
        return torch.arange(len(self.counts), device=last.device) <= last[:, None]


class Predicted(nn.Module):
    """The length is predicted from the image before anything is sampled; padding is nothing.

    p(length) = softmax(MLP(mean_n norm(feature_n))), taught by the loss `length`; a withheld image
    is as a feature of 0. Captions that are cut in training all end at the last place, which is then
    likely; a quantile does not mind.   Shapes: -> B L.
    Source: Zhu et al. 2022 (DDCap), arXiv 2211.11694, its length prediction.
    """

    needs: ClassVar[set[str]] = {"length_loss"}
    provides: ClassVar[set[str]] = {"length_head"}
    afterwards: ClassVar[set[str]] = {"draw", "quantile"}

    def __init__(
        self,
        *,
        draw: Literal["sample", "most_likely", "quantile"] = "sample",  # how a length is taken
        quantile: Part = 0.5,  # of p; 0.5 is the median
        inner: Positive = 128,  # width of the hidden layer
        dims: Dims,
    ):
        super().__init__()
        self.taken, self.quantile = draw, quantile
        self.beside: list[Predicted] = []  # of an ensemble: other heads; the mean of all p counts
        self.norm = nn.LayerNorm(dims.image_width)
        self.head = nn.Sequential(
            nn.Linear(dims.image_width, inner), nn.SiLU(), nn.Linear(inner, dims.length)
        )

    def logits(self, condition: Condition) -> Tensor:
        """A score for each place of the end token. -> B L."""
        if self.beside:
            return pooled([it.scores(condition).log_softmax(1) for it in (self, *self.beside)])
        return self.scores(condition)

    def scores(self, condition: Condition) -> Tensor:
        """What this head says alone. -> B L."""
        features = self.norm(condition.features).mean(1)
        return self.head(features * condition.keep[:, None])

    def mask(self, batch: Batch) -> Tensor:
        return batch.mask

    def draw(self, condition: Condition, rng: Generator) -> Tensor:
        shares = self.logits(condition).softmax(1)
        if self.taken == "sample":
            last = torch.multinomial(shares, 1, generator=rng)
        elif self.taken == "quantile":
            below = (shares.cumsum(1) < self.quantile).sum(1, keepdim=True)
            last = below.clamp(max=shares.shape[1] - 1)
        else:
            last = shares.argmax(1, keepdim=True)
        return torch.arange(shares.shape[1], device=last.device) <= last
