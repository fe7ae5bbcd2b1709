"""Guidance that fades."""

from __future__ import annotations

from torch import Tensor, nn

from cdlm.records import Condition
from cdlm.values import NonNegative, Part


class Component(nn.Module):
    """Classifier-free guidance that is full at pure noise and none at clean text.

    y = with + (scale - 1) t (with - without).   Shapes: B L E.
    The image decides what is said while little is settled, and the language how it is said.
    Source: Ho & Salimans 2021, eq. 6, with a scale that falls with t.
    """

    def __init__(
        self,
        *,
        scale: NonNegative = 2.0,  # at t = 1; 1 is none
        drop: Part = 0.1,  # share of captions trained without their image
    ):
        super().__init__()
        self.scale, self.drop = scale, drop

    def both(self, t: Tensor) -> bool:
        """Not while training: there the dropped images are all that it needs."""
        return self.scale != 1 and not self.training and bool((t > 0).any())

    def forward(
        self, with_: Tensor, without: Tensor, t: Tensor, mask: Tensor, condition: Condition
    ) -> Tensor:
        """The guided prediction; in training the one with the image."""
        if self.training:
            return with_
        extra = (self.scale - 1) * t[:, None, None]
        return with_ + extra * (with_ - without)
