"""Your own photos: a folder with a captions.jsonl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from cdlm.errors import DataError, nearest
from cdlm.parts.datasets.captioned import (
    PhotoSplit,
    folder_of,
    hash_split,
    lines,
    missing,
    not_empty,
)

SPLITS = ("train", "val", "test")
EXPECTED = '{"image": "dog.jpg", "captions": ["a dog runs"], "split": "train"}'


@dataclass(frozen=True)
class Line:
    """One line of captions.jsonl."""

    image: str
    captions: list[str]
    split: str | None


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder of photos with captions.jsonl: one line of JSON for each photo.

    {"image": path below the folder, "captions": [...], "split": "train", "val" or "test"}; a single
    "caption" will do. Where no line has a split, 6/8, 1/8 and 1/8 of the photos are train, val and
    test, by a hash of the path: the same at every call.
    Errors: DataError with the line's number for whatever is of the wrong form.
    """

    provides: ClassVar[set[str]] = {"images"}

    root: str  # the folder; "~" is expanded, the rest is seen from the current folder
    file: str = "captions.jsonl"  # below root

    def split(self, name: str) -> PhotoSplit:
        """The split called `train`, `val` or `test`; photos are not touched."""
        if name not in SPLITS:
            raise DataError(f'there is no split "{name}"\n    {nearest(name, SPLITS)}')
        mine = [it for it in self._lines if (it.split or hash_split(it.image)) == name]
        split = PhotoSplit(
            ids=[it.image for it in mine],
            captions=[it.captions for it in mine],
            folder=folder_of(self.root),
            expected="",
        )
        return not_empty(split, self.file, name)

    @cached_property
    def _lines(self) -> list[Line]:
        path = folder_of(self.root) / self.file
        if not path.is_file():
            raise missing(path, "no such file", f"each of its lines: {EXPECTED}")
        found: dict[str, Line] = {}
        for number, text in lines(path):
            line = _read(text, f"{path}:{number}")
            if line.image in found:
                raise DataError(f"{path}:{number}: {line.image} stands in the file already")
            found[line.image] = line
        if len({line.split is None for line in found.values()}) > 1:
            lacking = next(it.image for it in found.values() if it.split is None)
            raise DataError(
                f"{path}: some lines have a split and others have none, such as {lacking}\n"
                "    give every line one, or none"
            )
        return list(found.values())


def _read(text: str | UnicodeDecodeError, place: str) -> Line:
    if isinstance(text, UnicodeDecodeError):
        raise DataError(f"{place}: not UTF-8: {text.reason} at byte {text.start}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}\n    expected {EXPECTED}") from error
    image, texts, split = _parts(found)
    if not isinstance(image, str) or not image or not texts or split not in (None, *SPLITS):
        raise DataError(f"{place}: {text[:80]}\n    expected {EXPECTED}")
    if Path(image).is_absolute() or ".." in Path(image).parts:
        raise DataError(f"{place}: {image}: a photo's path is below the folder")
    return Line(image, texts, split)


def _parts(found: Any) -> tuple[Any, list[str], Any]:
    """Image, captions on one line each, and split; no captions where they are of the wrong form."""
    if not isinstance(found, dict):
        return None, [], None
    texts = found.get("captions", found.get("caption"))
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(it, str) and it.strip() for it in texts):
        return None, [], None
    return found.get("image"), [" ".join(it.split()) for it in texts], found.get("split")
