"""Drawn stripes: a dataset that is there at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

from PIL import Image

from cdlm.errors import DataError
from cdlm.values import Positive

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 200), "black": (0, 0, 0)}
FOLDS = {"train": range(8), "val": range(8, 9), "test": range(9, 10)}  # of the stripe's place


@dataclass(frozen=True, kw_only=True)
class Component:
    """A stripe of one colour on a ground of another, upright or level, at one of ten places.

    12 pairs of colours x 2 ways: 24 images at each place. Eight places are trained on, one is val,
    one test. Units: size in pixels.
    """

    provides: ClassVar[set[str]] = {"images"}

    size: Positive = 64  # of an image's side

    def split(self, name: str) -> Stripes:
        """The stripes at the places of that split."""
        if name not in FOLDS:
            raise DataError(f'there is no split "{name}"; there are: {", ".join(FOLDS)}')
        pairs = [pair for pair in product(COLOURS, COLOURS) if pair[0] != pair[1]]
        drawn = product(pairs, ("upright", "level"), FOLDS[name])
        return Stripes([(*pair, way, place) for pair, way, place in drawn], self.size)


class Stripes:
    """Images that are drawn when they are asked for: (colour, ground, way, place) each."""

    def __init__(self, scenes: list[tuple[str, str, str, int]], size: int):
        self._scenes, self._size = scenes, size
        self.ids = ["-".join(map(str, scene)) for scene in scenes]
        self.captions = [
            [f"a {colour} stripe on {ground}", f"{ground} with an {way} stripe in {colour}"]
            for colour, ground, way, _ in scenes
        ]
        self.truths: list[Any] = [None] * len(scenes)
        self.weights = [1.0] * len(scenes)
        self.pictured = [True] * len(scenes)

    @property
    def fingerprint(self) -> str:
        """Names what is drawn: change it with the drawing, or old features are found again."""
        return f"stripes-1-{self._size}-{self.ids[0]}-{len(self.ids)}"

    def images(self, indices: Sequence[int]) -> list[Image.Image]:
        """Those images, RGB."""
        return [self._draw(*self._scenes[i]) for i in indices]

    def _draw(self, colour: str, ground: str, way: str, place: int) -> Image.Image:
        image = Image.new("RGB", (self._size, self._size), COLOURS[ground])
        start, end = (self._size * (place + k) // 12 for k in (1, 3))
        box = (start, 0, end, self._size) if way == "upright" else (0, start, self._size, end)
        image.paste(COLOURS[colour], box)
        return image
