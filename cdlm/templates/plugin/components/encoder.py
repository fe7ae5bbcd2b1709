"""An encoder without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cdlm.errors import CdlmError
from cdlm.values import Positive


@dataclass(frozen=True, kw_only=True)
class Component:
    """The image in a few large pixels: what any better encoder has to beat.

    feature_n = the mean colour of field n of side x side fields, 0 black to 1 white.
    Shapes: images -> B N C,  N = side^2, C = 3.
    """

    needs: ClassVar[set[str]] = {"images"}
    provides: ClassVar[set[str]] = set()

    side: Positive = 8  # fields along each side

    def identity(self) -> dict[str, Any]:
        """Its place in the cache of features: all that changes what comes out."""
        return {"encoder": "mean colours", "version": 1, "side": self.side}

    def shape(self) -> tuple[int, int]:
        """(N, C)."""
        return self.side**2, 3

    def to(self, device: str) -> None:
        """It works on the CPU, whatever the device."""

    def lookup(self, ids: Sequence[str]) -> Tensor | None:
        """Nothing is ready beforehand."""
        return None

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Each image, averaged down to its fields."""
        size = (self.side, self.side)
        small = [image.resize(size, Image.Resampling.BOX) for image in images]
        fields = [np.asarray(image, dtype=np.float32).reshape(-1, 3) / 255 for image in small]
        return torch.from_numpy(np.stack(fields))

    def texts(self, captions: Sequence[str]) -> Tensor:
        """There is no text encoder."""
        raise CdlmError("this encoder knows images only; for captions take open_clip")
