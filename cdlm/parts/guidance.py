"""How the predictions with and without the image make one."""

from __future__ import annotations

from torch import Tensor, nn

from cdlm.records import Condition
from cdlm.values import NonNegative, Part, Share


class Plain(nn.Module):
    """The prediction with the image is all there is.

    y = with.   Shapes: B L E.
    """

    def __init__(self, *, drop: Share = 0.0):  # share of captions trained without their image
        super().__init__()
        self.drop = drop

    def both(self, t: Tensor) -> bool:
        return False

    def forward(
        self, with_: Tensor, without: Tensor, t: Tensor, mask: Tensor, condition: Condition
    ) -> Tensor:
        return with_


class Scale(nn.Module):
    """Classifier-free guidance: away from what would be said without the image.

    y = without + scale (with - without).   Shapes: B L E.
    scale 1 is the plain prediction. The other convention in use, w, is scale - 1.
    Source: Ho & Salimans 2021, eq. 6. The image is dropped from a share of the training captions.
    """

    def __init__(
        self,
        *,
        scale: NonNegative = 1.5,  # 1 is none, above 1 follows the image more closely
        drop: Part = 0.1,  # share of captions trained without their image
    ):
        super().__init__()
        self.scale, self.drop = scale, drop

    def both(self, t: Tensor) -> bool:
        """Not while training: there the dropped images are all that it needs."""
        return self.scale != 1 and not self.training

    def forward(
        self, with_: Tensor, without: Tensor, t: Tensor, mask: Tensor, condition: Condition
    ) -> Tensor:
        return with_ if self.training else without + self.scale * (with_ - without)
