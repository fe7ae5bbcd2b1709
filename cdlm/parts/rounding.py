"""What is done to the estimate of x0 before the sampler uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cdlm.protocols import Embedding
from cdlm.values import Fraction


@dataclass(frozen=True, kw_only=True)
class Free:
    """The estimate is used as it is.

    Shapes: B L E.
    """

    def __call__(
        self, x0_hat: Tensor, t: float, embedding: Embedding, nearest: Callable[[Tensor], Tensor]
    ) -> Tensor:
        return x0_hat


@dataclass(frozen=True, kw_only=True)
class Clamp:
    """Every estimated vector becomes its nearest word.

    x0_hat -> e_v,  v = argmin ||x0_hat - e_v||.   Shapes: B L E.
    Source: Li et al. 2022 (Diffusion-LM), section 4.3, the clamping trick.
    """

    below: Fraction = 1.0  # only at times up to this; 1: at every step

    def __call__(
        self, x0_hat: Tensor, t: float, embedding: Embedding, nearest: Callable[[Tensor], Tensor]
    ) -> Tensor:
        return x0_hat if t > self.below else nearest(x0_hat)


@dataclass(frozen=True, kw_only=True)
class Soft:
    """Every estimated vector becomes the mean of the words, weighted by its scores for them.

    x0_hat -> sum_v softmax(embedding.logits(x0_hat))_v e_v.   Shapes: B L E.
    With a network that was trained by the `rounding` loss alone this is the expected x0.
    Source: Dieleman et al. 2022 (CDCD), section 3.1, score interpolation.
    """

    below: Fraction = 1.0  # only at times up to this; 1: at every step

    def __call__(
        self, x0_hat: Tensor, t: float, embedding: Embedding, nearest: Callable[[Tensor], Tensor]
    ) -> Tensor:
        if t > self.below:
            return x0_hat
        return embedding.logits(x0_hat).softmax(-1) @ embedding.table()
