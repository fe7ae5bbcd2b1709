"""COCO captions as people have them on disk.

official   annotations/captions_train2017.json and _val2017 (or 2014), photos in train2017/,
           val2017/, or the same below images/
karpathy   dataset_coco.json, photos in train2014/ and val2014/, or the same below images/
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from cdlm.errors import DataError, nearest
from cdlm.parts.datasets import karpathy
from cdlm.parts.datasets.captioned import PhotoSplit, folder_of, missing, not_empty, parsed

SPLITS = ("train", "val", "test")
KARPATHY_FILE = "dataset_coco.json"
SOURCES = """where to get COCO:
      photos and captions: https://cocodataset.org/#download
      Karpathy's splits: https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip
    then say where it is: --set dataset.root=FOLDER"""


@dataclass(frozen=True, kw_only=True)
class Coco:
    """Photos of everyday scenes, each with about five captions by people.

    Splits: official train and val of a year (the official test has no captions); or, with
    `splits = "karpathy"`, the 113,287 (train and restval), 5,000 and 5,000 images that papers
    report on. Images without captions are left out.
    Errors: DataError for whatever is missing or of the wrong form.
    Source: Lin et al. 2014; Chen et al. 2015; splits Karpathy & Fei-Fei 2015.
    """

    provides: ClassVar[set[str]] = {"images"}

    root: str  # folder of the data set; "~" is expanded, the rest is seen from the current folder
    splits: Literal["official", "karpathy"] = "official"
    year: Literal["2017", "2014"] = "2017"  # of the official files

    def split(self, name: str) -> PhotoSplit:
        """The split called `train`, `val` or, of Karpathy's, `test`."""
        if name not in SPLITS:
            raise DataError(f'COCO has no split "{name}"\n    {nearest(name, SPLITS)}')
        karpathys = self.splits == "karpathy"
        entries = self._karpathy(name) if karpathys else self._official(name)
        entries = [it for it in entries if it.captions]
        split = PhotoSplit(
            ids=[it.image for it in entries],
            captions=[it.captions for it in entries],
            folder=self._photos,
            expected=Path(entries[0].below).parts[0] if entries else "",
            sources=SOURCES,
            below={it.image: it.below for it in entries},
        )
        return not_empty(split, "COCO", name)

    @cached_property
    def _root(self) -> Path:
        return folder_of(self.root, SOURCES)

    @property
    def _photos(self) -> Path:
        inside = self._root / "images"
        return inside if inside.is_dir() else self._root

    def _karpathy(self, name: str) -> list[karpathy.Entry]:
        folders = (self._root, self._root / "annotations")
        for path in (folder / KARPATHY_FILE for folder in folders):
            if path.is_file():
                return [it for it in karpathy.read(path) if it.split == name]
        raise missing(self._root, f"{KARPATHY_FILE} is missing", sources=SOURCES)

    def _official(self, name: str) -> list[karpathy.Entry]:
        if name == "test":
            raise DataError(
                "COCO: the official test split has no captions\n"
                '    allowed: train and val, or --set dataset.splits="karpathy"'
            )
        path = self._root / "annotations" / f"captions_{name}{self.year}.json"
        if not path.is_file():
            raise missing(path.parent, f"{path.name} is missing", _instead(path), SOURCES)
        expected = "COCO's JSON of captions, with images and annotations"
        return parsed(path, lambda found: _entries(found, name, self.year), expected)


def _entries(found: dict[str, Any], split: str, year: str) -> list[karpathy.Entry]:
    captions: dict[int, list[str]] = {}
    for note in found["annotations"]:
        if text := " ".join(note["caption"].split()):
            captions.setdefault(note["image_id"], []).append(text)
    return [
        karpathy.Entry(
            image["file_name"],
            f"{split}{year}/{image['file_name']}",
            split,
            captions.get(image["id"], []),
        )
        for image in found["images"]
    ]


def _instead(path: Path) -> str:
    """The files of captions that are there."""
    there = sorted(it.name for it in path.parent.glob("captions_*.json"))
    return f"there is: {', '.join(there)}" if there else ""
