"""Flickr30k as people have it on disk.

captions   results_20130124.token or flickr30k.token.txt    name.jpg#0<TAB>caption
           results.csv (Kaggle)                             image_name| comment_number| comment
splits     dataset_flickr30k.json (Karpathy), or flickr30k.trainImages.txt, .valImages.txt,
           .testImages.txt, or train.txt, val.txt, test.txt: one name per line
photos     flickr30k-images/, flickr30k_images/ or Images/
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from cdlm.errors import DataError, nearest
from cdlm.parts.datasets import karpathy
from cdlm.parts.datasets.captioned import (
    Drop,
    PhotoSplit,
    by_caption,
    collect,
    folder_of,
    hash_split,
    missing,
    must_be_apart,
    not_empty,
    numbered_rows,
    read_names,
    refuse,
    token_rows,
    with_captions,
)

TOKEN_FILES = ("results_20130124.token", "flickr30k.token.txt")
KAGGLE_FILE = "results.csv"
KARPATHY_FILE = "dataset_flickr30k.json"
LISTS = ("flickr30k.{}Images.txt", "{}.txt")
SPLITS = ("train", "val", "test")
PHOTO_FOLDERS = ("flickr30k-images", "flickr30k_images", "Images", "images")
SOURCES = """where to get Flickr30k:
      by the request form of the University of Illinois, or
      Kaggle: https://www.kaggle.com/datasets/hsankesara/flickr-image-dataset
      Karpathy's splits: https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip
    then say where it is: --set dataset.root=FOLDER"""


@dataclass(frozen=True, kw_only=True)
class Flickr30k:
    """31,000 photos of people and animals, each with five captions by people; most of Flickr8k.

    Splits, by the first that is there: Karpathy's (29,000, 1,014 and 1,000 images), lists of names,
    or with `splits = "hashed"` 6/8, 1/8 and 1/8 by a hash of the name. Beside Flickr8k use `mix`,
    which looks for photos of one's test split in the other's training. `by = "caption"` is for
    replays alone, and wrong: as of Flickr8k.
    Errors: DataError with file and line for whatever is missing or of the wrong form; with
    `on_bad = "skip"` that is left out, and listed in `dropped` of the split.
    Source: Young et al. 2014; splits Karpathy & Fei-Fei 2015.
    """

    provides: ClassVar[set[str]] = {"images"}

    root: str  # folder of the data set; "~" is expanded, the rest is seen from the current folder
    splits: Literal["published", "hashed"] = "published"  # hashed: not comparable with others
    by: Literal["image", "caption"] = "image"  # what belongs to one split only; caption: a mistake
    on_bad: Literal["error", "skip"] = "error"  # skip: leave out, and count

    def split(self, name: str) -> PhotoSplit:
        """The split called `train`, `val` or `test`."""
        if name not in SPLITS:
            raise DataError(f'Flickr30k has no split "{name}"\n    {nearest(name, SPLITS)}')
        captions, dropped = self._captions
        wanted = self._members[name]
        if self.by == "caption" and name != "test":
            train, held = self._members["train"], self._members["val"]
            wanted, captions = by_caption(name, train, held, captions)
        kept, without = with_captions(wanted, captions)
        what = f"images of the {name} split are without captions"
        refuse("Flickr30k", without, what, self.on_bad)
        folders = [self._root / folder for folder in PHOTO_FOLDERS]
        split = PhotoSplit(
            ids=kept,
            captions=[captions[image] for image in kept],
            folder=next((folder for folder in folders if folder.is_dir()), folders[0]),
            expected=", ".join(PHOTO_FOLDERS[:3]),
            sources=SOURCES,
            dropped=[*dropped, *without],
        )
        return not_empty(split.readable() if self.on_bad == "skip" else split, "Flickr30k", name)

    @cached_property
    def _root(self) -> Path:
        return folder_of(self.root, SOURCES)

    @cached_property
    def _captions(self) -> tuple[dict[str, list[str]], list[Drop]]:
        for name in (*TOKEN_FILES, KAGGLE_FILE):
            path = self._root / name
            if path.is_file():
                rows = numbered_rows(path) if name == KAGGLE_FILE else token_rows(path)
                captions, _, bad = collect(rows, path)
                refuse("Flickr30k", bad, f"bad lines of {name}", self.on_bad)
                return captions, bad
        if (self._root / KARPATHY_FILE).is_file():
            return {it.image: it.captions for it in self._karpathy}, []
        names = ", ".join((*TOKEN_FILES, KAGGLE_FILE))
        raise missing(self._root, f"the captions are missing: {names}", sources=SOURCES)

    @cached_property
    def _karpathy(self) -> list[karpathy.Entry]:
        return karpathy.read(self._root / KARPATHY_FILE)

    @cached_property
    def _members(self) -> dict[str, list[str]]:
        """The images of each split."""
        if self.splits == "hashed":
            names = sorted(self._captions[0])
            return {split: [it for it in names if hash_split(it) == split] for split in SPLITS}
        if (self._root / KARPATHY_FILE).is_file():
            entries = self._karpathy
            return {split: [it.image for it in entries if it.split == split] for split in SPLITS}
        for pattern in LISTS:
            files = {split: self._root / pattern.format(split) for split in SPLITS}
            if all(path.is_file() for path in files.values()):
                members = {split: read_names(path)[0] for split, path in files.items()}
                members = {s: [_with_suffix(it) for it in them] for s, them in members.items()}
                must_be_apart(members, files)
                return members
        lists = LISTS[0].format("train")
        raise missing(
            self._root,
            f"the splits are missing: {KARPATHY_FILE}, or {lists} and its like",
            "to do without published splits: --set dataset.splits=hashed",
            SOURCES,
        )


def _with_suffix(name: str) -> str:
    """Some lists of splits leave out ".jpg"."""
    return name if "." in name else f"{name}.jpg"
