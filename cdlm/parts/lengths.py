"""Which of the L positions a caption occupies."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from cdlm.records import Batch, Condition, Dims


class Generated(nn.Module):
    """Padding is a word like any other: attended to, scored, and generated after the end.

    Every position is used, in training and in sampling; the sampled end token ends the caption.
    Shapes: -> B L.   Source: Li et al. 2022 (Diffusion-LM).
    """

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
