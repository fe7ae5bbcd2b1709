"""The terms of the training loss. Each is averaged over the scored positions of a caption."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from cdlm.records import Guess
from cdlm.values import NonNegative


def _over_positions(error: Tensor, mask: Tensor) -> Tensor:
    """B L -> B: the mean over the positions where mask B L is True."""
    return (error * mask).sum(1) / mask.sum(1).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Mse:
    """Mean squared error of what the network says.

    mean over positions and E of (got - wanted)^2.   Shapes: -> B.   Source: Ho et al. 2020, eq. 14.
    """

    weight: NonNegative = 1.0

    def __call__(self, guess: Guess) -> Tensor:
        return _over_positions((guess.got - guess.wanted).square().mean(-1), guess.mask)


@dataclass(frozen=True, kw_only=True)
class L1:
    """Mean absolute error of what the network says.

    mean over positions and E of |got - wanted|.   Shapes: -> B.
    Source: Xu 2022 (CLIP-Diffusion-LM), section 3.3.
    """

    weight: NonNegative = 1.0

    def __call__(self, guess: Guess) -> Tensor:
        return _over_positions((guess.got - guess.wanted).abs().mean(-1), guess.mask)


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Cross-entropy of the true words under the scores of the x0 that the network implies.

    mean over positions of -log softmax(embedding.logits(x0_hat))[word].
    Shapes: -> B.   Units: nats.
    It keeps a learned embedding from collapsing. On the predicted x0 as in Xu 2022
    (CLIP-Diffusion-LM); Diffusion-LM (Li et al. 2022, eq. 2) takes it on the noised truth at t = 0.
    """

    weight: NonNegative = 1.0

    def __call__(self, guess: Guess) -> Tensor:
        logits = guess.embedding.logits(guess.x0_hat)
        nats = F.cross_entropy(logits.flatten(0, 1), guess.batch.ids.flatten(), reduction="none")
        return _over_positions(nats.view_as(guess.mask), guess.mask)
