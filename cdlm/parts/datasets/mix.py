"""Several datasets as one, without photos of one's test in another's training."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from cdlm.errors import DataError
from cdlm.parts.datasets import photos
from cdlm.protocols import Dataset, Split
from cdlm.values import AnyDataset

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

TESTED = ("val", "test", "held")  # splits that a dataset is judged on
NUMBERED = re.compile(
    r"(COCO_(train|val|test)\d{4}_)?(?P<photo>\d{4,})(_[0-9a-f]{4,})?\.jpe?g", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Several datasets together: each split is theirs, one after the other.

    In training a caption of the i-th comes weights[i] times as often as one of weight 1. With
    photos[i] = false its captions alone are trained on, as text without an image (which teaches
    what a network says where the image is withheld), and its photos and features are not
    needed; other splits go without it.
    A photo that one of them trains on and another validates or tests on is a leak: refused, or
    with `on_leak = "drop"` left out of training. Photos are compared by name; of Flickr's by
    the number before the "_", for Flickr30k holds most of Flickr8k as 1000268201.jpg for
    1000268201_693b08cb0e.jpg; of COCO's by number too, for Karpathy's
    COCO_val2014_000000000042.jpg is 000000000042.jpg of 2017. A photo that two of them have in
    a split is taken from the first, so that it does not count twice.
    Errors: DataError for leaks, and for a split that none of them has.
    """

    provides: ClassVar[set[str]] = {"images"}

    of: list[AnyDataset]
    weights: list[float] | None = None  # one for each dataset; all 1, unless given
    photos: list[bool] | None = None  # one for each: with its photos, or its captions alone
    on_leak: Literal["refuse", "drop"] = "refuse"  # of photos that others validate or test on

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("of: expected at least one dataset")
        if self.weights and (len(self.weights) != len(self.of) or min(self.weights) <= 0):
            raise ValueError(
                f"weights: expected {len(self.of)} numbers above 0, one for each dataset, "
                f"got {self.weights}"
            )
        if self.photos and (len(self.photos) != len(self.of) or not any(self.photos)):
            raise ValueError(
                f"photos: expected true or false for each of {len(self.of)} datasets, one of them "
                f"true, got {self.photos}"
            )

    def split(self, name: str) -> MixedSplit:
        """The split called `train`, `val` or `test` of all that have it, or another of theirs."""
        found = [_split(it, name) if name == "train" or own else None for it, own in self._owners]
        if not any(found):
            raise DataError(f'mix: none of its datasets has a split "{name}"')
        held = self._held if name == "train" else [set[str]()] * len(self.of)
        weights = self.weights or [1.0] * len(self.of)
        places: list[Place] = []
        seen: set[str] = set()
        for part, weight, others, (_, own) in zip(found, weights, held, self._owners, strict=True):
            if part:
                names = [photo(image) for image in part.ids]
                kept = [i for i, it in enumerate(names) if it not in others and it not in seen]
                places += [
                    Place(part, i, weight * part.weights[i], own and part.pictured[i]) for i in kept
                ]
                seen.update(names[i] for i in kept)
        return MixedSplit(places)

    @property
    def _owners(self) -> list[tuple[Dataset, bool]]:
        """Each dataset, and whether its photos are looked at."""
        return list(zip(self.of, self.photos or [True] * len(self.of), strict=True))

    @cached_property
    def _held(self) -> list[set[str]]:
        """For each dataset, the photos of its training that others validate or test on.

        Errors: DataError where there are any, unless they are to be dropped. Warns of splits that
        are not to be had, for their photos can't be looked for.
        """
        tested = [
            {photo(image) for name in TESTED for image in _ids(dataset, name)} if own else set()
            for dataset, own in self._owners
        ]
        leaks = [
            {photo(image) for image in _ids(dataset, "train")}
            & set[str]().union(*(seen for j, seen in enumerate(tested) if j != i))
            for i, dataset in enumerate(self.of)
        ]
        if any(leaks) and self.on_leak == "refuse":
            raise DataError(_leaking(self.of, leaks))
        return leaks


class Place(NamedTuple):
    """Where an image of a mixture stands: in which split, and at which row."""

    of: Split
    row: int
    weight: float
    pictured: bool


class MixedSplit:
    """Rows of other splits."""

    def __init__(self, places: list[Place]):
        self._places = places
        self.ids = [it.of.ids[it.row] for it in places]
        self.captions = [it.of.captions[it.row] for it in places]
        self.truths: list[Any] = [it.of.truths[it.row] for it in places]
        self.weights = [it.weight for it in places]
        self.pictured = [it.pictured for it in places]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over those of the parts whose photos are looked at, and the rows taken."""
        parts = {id(it.of): it.of for it in self._places if it.pictured}
        digest = hashlib.sha256()
        for part in parts.values():
            rows = [it.row for it in self._places if it.of is part]
            digest.update(f"{part.fingerprint} {rows}\n".encode())
        return digest.hexdigest()

    def images(self, indices: Sequence[int]) -> list[Image]:
        """The images at these positions, RGB. Raises DataError naming an unreadable file."""
        found = (self._places[index] for index in indices)
        return [it.of.images([it.row])[0] for it in found]


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
        if name == "train":
            raise
        return None


def _ids(dataset: Dataset, name: str) -> list[str]:
    found = _split(dataset, name)
    if found is None and name != "held":  # which hardly any dataset has
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
