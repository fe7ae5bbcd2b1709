"""Karpathy's split files: dataset_flickr30k.json, dataset_coco.json."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdlm.errors import DataError
from cdlm.parts.datasets import photos
from cdlm.parts.datasets.captioned import parsed

SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


@dataclass(frozen=True)
class Entry:
    """One image of the file."""

    image: str  # file name
    below: str  # its path below the folder of photos
    split: str  # train, val or test; "restval" counts as train
    captions: list[str]


def read(path: Path) -> list[Entry]:
    """Every image with captions. Errors: DataError for a file of another form, or a name twice."""
    expected = "Karpathy's JSON, images = [{filename, split, sentences}]"
    entries = parsed(path, lambda found: [_entry(it) for it in found["images"]], expected)
    names = Counter(entry.image for entry in entries)
    if twice := [name for name, count in names.items() if count > 1]:
        raise DataError(f"{path}: {len(twice):,} images stand in it twice: {photos.some(twice)}")
    return entries


def _entry(image: dict[str, Any]) -> Entry:
    name = image["filename"]
    folder = image.get("filepath", "")
    texts = [" ".join(sentence["raw"].split()) for sentence in image["sentences"]]
    below = f"{folder}/{name}" if folder else name
    return Entry(name, below, SPLITS[image["split"]], [text for text in texts if text])
