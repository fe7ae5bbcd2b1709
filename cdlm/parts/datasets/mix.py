"""Several datasets as one, without photos of one's test in another's training."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cdlm.errors import DataError
from cdlm.parts.datasets import photos
from cdlm.protocols import Dataset, Split
from cdlm.values import AnyDataset

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
NUMBERED = re.compile(
    r"(COCO_(train|val|test)\d{4}_)?(?P<photo>\d{4,})(_[0-9a-f]{4,})?\.jpe?g", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Several datasets together: each split is theirs, one after the other.

    In training a caption of the i-th comes weights[i] times as often as one of weight 1. A photo
    that one of them trains on and another validates or tests on is a leak: refused, or with
    `on_leak = "drop"` left out of training. Photos are compared by name; of Flickr's by the number
    before the "_", for Flickr30k holds most of Flickr8k as 1000268201.jpg for
    1000268201_693b08cb0e.jpg; of COCO's by number too, for Karpathy's COCO_val2014_000000000042.jpg
    is 000000000042.jpg of 2017. A photo that two of them have in a split is taken from the first,
    so that it does not count twice.
    Errors: DataError for leaks, and for a split that none of them has.
    """

    provides: ClassVar[set[str]] = {"images"}

    of: list[AnyDataset]
    weights: list[float] | None = None  # one for each dataset; all 1, unless given
    on_leak: Literal["refuse", "drop"] = "refuse"  # of photos that others validate or test on

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("of: expected at least one dataset")
        if self.weights and (len(self.weights) != len(self.of) or min(self.weights) <= 0):
            raise ValueError(
                f"weights: expected {len(self.of)} numbers above 0, one for each dataset, "
                f"got {self.weights}"
            )

    def split(self, name: str) -> MixedSplit:
        """The split called `train`, `val` or `test` of all that have it."""
        found = [_split(dataset, name) for dataset in self.of]
        if not any(found):
            raise DataError(f'mix: none of its datasets has a split "{name}"')
        held = self._held if name == "train" else [set[str]()] * len(self.of)
        weights = self.weights or [1.0] * len(self.of)
        places: list[tuple[Split, int, float]] = []
        seen: set[str] = set()
        for part, weight, others in zip(found, weights, held, strict=True):
            if part:
                names = [photo(image) for image in part.ids]
                rows = [i for i, it in enumerate(names) if it not in others and it not in seen]
                places += [(part, row, weight * part.weights[row]) for row in rows]
                seen.update(names[row] for row in rows)
        return MixedSplit(places)

    @cached_property
    def _held(self) -> list[set[str]]:
        """For each dataset, the photos of its training that others validate or test on.

        Errors: DataError where there are any, unless they are to be dropped. Warns of splits that
        are not to be had, for their photos can't be looked for.
        """
        tested = [
            {photo(image) for name in ("val", "test") for image in _ids(dataset, name)}
            for dataset in self.of
        ]
        leaks = [
            {photo(image) for image in _ids(dataset, "train")}
            & set[str]().union(*(seen for j, seen in enumerate(tested) if j != i))
            for i, dataset in enumerate(self.of)
        ]
        if any(leaks) and self.on_leak == "refuse":
            raise DataError(_leaking(self.of, leaks))
        return leaks


class MixedSplit:
    """Rows of other splits."""

    def __init__(self, places: list[tuple[Split, int, float]]):
        self._places = places
        self.ids = [part.ids[row] for part, row, _ in places]
        self.captions = [part.captions[row] for part, row, _ in places]
        self.truths: list[Any] = [part.truths[row] for part, row, _ in places]
        self.weights = [weight for _, _, weight in places]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over those of the parts and the rows taken."""
        parts = {id(part): part for part, _, _ in self._places}
        digest = hashlib.sha256()
        for part in parts.values():
            rows = [row for it, row, _ in self._places if it is part]
            digest.update(f"{part.fingerprint} {rows}\n".encode())
        return digest.hexdigest()

    def images(self, indices: Sequence[int]) -> list[Image]:
        """The images at these positions, RGB. Raises DataError naming an unreadable file."""
        found = (self._places[index] for index in indices)
        return [part.images([row])[0] for part, row, _ in found]


def photo(image: str) -> str:
    """What two datasets would both call this photo: Flickr's or COCO's number, or else the name."""
    name = image.rsplit("/", 1)[-1]
    match = NUMBERED.fullmatch(name)
    return match["photo"] if match else name


def _split(dataset: Dataset, name: str) -> Split | None:
    """None where it has no such split; a training split must be there."""
    try:
        return dataset.split(name)
    except DataError:
        if name == "train" or name not in SPLITS:
            raise
        return None


def _ids(dataset: Dataset, name: str) -> list[str]:
    found = _split(dataset, name)
    if found is None:
        kind = type(dataset).__name__.lower()
        log.warning("mix: %s has no %s split to look for leaks of", kind, name)
    return found.ids if found else []


def _leaking(datasets: Sequence[Dataset], leaks: Sequence[set[str]]) -> str:
    lines = ["mix: photos of the training split that another dataset validates or tests on"]
    for dataset, found in zip(datasets, leaks, strict=True):
        if found:
            some = photos.some(sorted(found))
            name = type(dataset).__name__.lower()
            lines.append(f"{name} trains on {len(found):,} of them: {some}")
    return "\n    ".join([*lines, "to train without them: --set dataset.on_leak=drop"])
