"""Views: how else a training photo may be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from PIL import ImageOps

from cdlm.values import Fraction, Part, Positive

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Alone:
    """The photo itself and no other view of it."""

    @property
    def count(self) -> int:
        """0."""
        return 0

    def identity(self) -> dict[str, Any]:
        """Nothing changes it."""
        return {"views": "none"}

    def __call__(self, image: Image, rng: Random) -> Sequence[Image]:
        """No views."""
        return []


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Cut-outs of the photo, some of them mirrored.

    Each has a share of the photo's width and height that is even between `smallest` and 1, stands
    anywhere in it, keeps its shape, and is mirrored by chance. Captions stay what they are: a
    mirrored photo swaps left and right, and a crop may lose what a caption names at the border.
    Source: Krizhevsky et al. 2012, section 4.1 (crops and mirror images of training photos).
    """

    count: Positive = 3  # views of each photo, besides itself
    smallest: Part = 0.7  # share of the photo's width and height
    mirrored: Fraction = 0.5  # share of the views

    def identity(self) -> dict[str, Any]:
        """All that changes the views."""
        return {"views": "crops", "version": 1, **asdict(self)}

    def __call__(self, image: Image, rng: Random) -> Sequence[Image]:
        """RGB, each of the size of what was cut out."""
        return [self._view(image, rng) for _ in range(self.count)]

    def _view(self, image: Image, rng: Random) -> Image:
        share = rng.uniform(self.smallest, 1)
        width, height = (max(1, round(share * side)) for side in image.size)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        view = image.crop((left, top, left + width, top + height))
        return ImageOps.mirror(view) if rng.random() < self.mirrored else view
