"""Views in paler colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from PIL import ImageEnhance
from PIL.Image import Image

from cdlm.values import Positive


@dataclass(frozen=True, kw_only=True)
class Component:
    """The photo with less of its colours: what it shows is the same in the rain and at dusk.

    Each view keeps a share of the colours that is even between 0 (grey) and 1.
    """

    count: Positive = 2  # views of each photo, besides itself

    def identity(self) -> dict[str, Any]:
        """Its place in the cache of features: all that changes the views."""
        return {"views": "paler", "version": 1, "count": self.count}

    def __call__(self, image: Image, rng: Random) -> Sequence[Image]:
        """RGB, as large as the photo."""
        return [ImageEnhance.Color(image).enhance(rng.random()) for _ in range(self.count)]
