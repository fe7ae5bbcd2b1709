"""The dataset `shapes`, and the metric that checks a caption against the scene itself."""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Generator, Tensor

from cdlm.errors import DataError, nearest
from cdlm.parts.datasets.shapes import drawing, scenes
from cdlm.parts.datasets.shapes.language import is_true, say, wordings
from cdlm.parts.datasets.shapes.scenes import Codes, Scene, arrange, sample_codes
from cdlm.parts.metrics.common import mean
from cdlm.records import Answers, Tally
from cdlm.values import Positive

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Scenes that cdlm draws: one to three coloured shapes, their order, and what is behind them.

    Two sizes, nine colours, eight shapes, six backgrounds, left to right or top to bottom: 864
    contents of one thing, 247,104 of two and 35 million of three. A content belongs to one split
    only (6 % to val, 6 % to test), so no scene of val or test was ever seen in training. Every
    scene has up to `captions` different wordings, of at most 24 words. The same at every call.
    Harder: three things, and captions in free order ("b to the right of a" for "a left of b").
    """

    provides: ClassVar[set[str]] = {"images", "scenes"}

    train: Positive = 20_000  # scenes of the training split
    held_out: Positive = 1_000  # scenes of val, and of test
    things: Literal[1, 2, 3] = 2  # at most this many in a scene
    captions: Positive = 5  # wordings of each scene
    order: Literal["reading", "free"] = "reading"  # in which things are named; free is harder
    seed: int = 0

    def split(self, name: str) -> ShapesSplit:
        """Raises DataError for a name other than train, val and test."""
        if name not in SPLITS:
            raise DataError(f'shapes has no split "{name}"\n    {nearest(name, SPLITS)}')
        rng = Generator().manual_seed((3 * self.seed + SPLITS.index(name)) % 2**63)
        mix = torch.tensor([1.0, 6.0, 6.0][: self.things])
        codes = sample_codes(self.train if name == "train" else self.held_out, name, mix, rng)
        return ShapesSplit(name, codes, arrange(codes, rng), self)


class ShapesSplit:
    """Scenes of one split; pictures are drawn when asked for."""

    def __init__(self, name: str, codes: Codes, places: Tensor, dataset: Shapes):
        self._codes, self._places = codes, places
        self.truths: list[Any] = codes.scenes()
        self.ids = [f"{name}-{i:06d}" for i in range(len(self.truths))]
        draw = random.Random(f"{dataset.seed} {name}")
        self.weights = [1.0] * len(self.ids)
        self.pictured = [True] * len(self.ids)
        self.captions = [_captions(scene, dataset, draw) for scene in self.truths]
        self.fingerprint = _fingerprint(dataset, name)

    def images(self, indices: Sequence[int]) -> list[Image.Image]:
        """The scenes at these positions, 96 x 96 RGB."""
        rows = torch.as_tensor(indices, dtype=torch.long)  # no indices have no type
        pictures = drawing.draw(self._codes[rows], self._places[rows]).permute(0, 2, 3, 1)
        return [Image.fromarray(picture) for picture in pictures.numpy()]


def _captions(scene: Scene, dataset: Shapes, draw: random.Random) -> list[str]:
    ways = wordings(len(scene.things), scene.axis, dataset.order == "free")
    return [say(scene, way) for way in draw.sample(ways, min(dataset.captions, len(ways)))]


def _fingerprint(dataset: Shapes, name: str) -> str:
    """Changes with the parameters, and with the code that draws."""
    code = "".join(inspect.getsource(module) for module in (scenes, drawing))
    return hashlib.sha256(f"{dataset} {name} {code}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class TrueCaption:
    """Share of captions that are true of the drawn scene and complete, whatever the wording.

    A caption counts if it is one of the known ways to say a scene, names every thing with its size,
    colour and shape, has their order right, and names no other background than the scene's.
    Units: 0 to 1.   Source: the scene itself; references are not looked at.
    """

    needs: ClassVar[set[str]] = {"scenes"}

    def __call__(self, answers: Answers) -> dict[str, float]:
        return self.tally(answers).total()

    def tally(self, answers: Answers) -> Tally:
        """Each caption's verdict."""
        return mean({"true_caption": self.marks(answers)})

    def marks(self, answers: Answers) -> list[bool]:
        """Each caption's own verdict."""
        pairs = zip(answers.captions, answers.truths, strict=True)
        return [is_true(caption, scene) for caption, scene in pairs]
