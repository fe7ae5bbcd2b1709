"""Flickr8k as people have it on disk: the original archives, or Kaggle's.

original   Flickr8k.token.txt            name.jpg#0<TAB>caption
           Flickr_8k.trainImages.txt     one name per line; also devImages, testImages
           Flicker8k_Dataset/            the photos (the archive spells it so)
kaggle     captions.txt                  image,caption
           Images/                       the photos; no split files
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from cdlm.errors import DataError, nearest
from cdlm.parts.datasets.captioned import (
    Drop,
    PhotoSplit,
    by_caption,
    collect,
    folder_of,
    hash_split,
    kaggle_rows,
    missing,
    must_be_apart,
    not_empty,
    read_names,
    refuse,
    token_rows,
    with_captions,
)
from cdlm.values import Count

Layout = Literal["original", "kaggle"]

CAPTION_FILES: dict[Layout, str] = {"original": "Flickr8k.token.txt", "kaggle": "captions.txt"}
EXPECTED = {"original": "name.jpg#0<TAB>caption", "kaggle": 'name.jpg,"caption"'}
SPLIT_FILES = {name: f"Flickr_8k.{word}Images.txt" for name, word in
               (("train", "train"), ("val", "dev"), ("test", "test"))}  # fmt: skip
TEXT_FOLDERS = (".", "Flickr8k_text")
PHOTO_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
KNOWN_QUIRK = "2258277193_586949ec62.jpg.1"  # in the original caption file; there is no such photo
SOURCES = """where to get Flickr8k:
      original: Flickr8k_Dataset.zip (photos) and Flickr8k_text.zip (captions and splits), by the
                request form of the University of Illinois, or as mirrored in the releases of
                https://github.com/jbrownlee/Datasets
      Kaggle:   https://www.kaggle.com/datasets/adityajn105/flickr8k (photos and captions)
    then say where it is: --set dataset.root=FOLDER"""


@dataclass(frozen=True, kw_only=True)
class Flickr8k:
    """8,000 photos of people and animals, each with five captions by people.

    Splits: train, val, test = the official 6,000, 1,000 (dev) and 1,000 images; or, with
    `splits = "hashed"`, 6/8, 1/8 and 1/8 of the images by a hash of the name: the same at every
    call, but not the official ones, so that scores do not compare with published ones.
    `held` images of train, its last ones, are kept out of it and are the split `held`: to choose
    when to stop by, so that val is looked at once.
    Errors: DataError with file and line for whatever is missing or of the wrong form; with
    `on_bad = "skip"` bad captions and photos are left out and listed in `dropped` of the split
    (every photo of the split is then read once, where there is a folder of photos). An image in
    two splits is always an error.
    `by = "caption"` is for replays alone, and wrong: train has all photos of train and val, and val
    the last caption of each of its photos, whose others are trained on.
    Source: Hodosh, Young & Hockenmaier 2013.
    """

    provides: ClassVar[set[str]] = {"images"}

    root: str  # folder of the data set; "~" is expanded, the rest is seen from the current folder
    layout: Literal["auto", "original", "kaggle"] = "auto"  # auto: by the caption file
    splits: Literal["official", "hashed"] = "official"  # hashed: not comparable with others
    split_files: str = ""  # folder of the Flickr_8k.*Images.txt files, where they aren't in root
    by: Literal["image", "caption"] = "image"  # what belongs to one split only; caption: a mistake
    held: Count = 0  # images of train that are not trained on: the split "held"
    on_bad: Literal["error", "skip"] = "error"  # skip: leave out, and count

    def __post_init__(self) -> None:
        if self.split_files and self.splits == "hashed":
            raise DataError(
                f'dataset.split_files: "{self.split_files}" has no effect with splits = "hashed"; '
                "leave one of the two out"
            )

    def split(self, name: str) -> PhotoSplit:
        """The split of this name; photos are touched only to skip bad ones."""
        allowed = [*SPLIT_FILES, *(["held"] if self.held else [])]
        if name not in allowed:
            hint = "; set dataset.held to keep some of train apart" if name == "held" else ""
            raise DataError(f'Flickr8k has no split "{name}"\n    {nearest(name, allowed)}{hint}')
        captions, dropped = self._captions
        wanted, repeated = self._members(name)
        if self.by == "caption" and name != "test":
            train, held = (self._members(it)[0] for it in ("train", "val"))
            wanted, captions = by_caption(name, train, held, captions)
        kept, without = with_captions(wanted, captions)
        refuse("Flickr8k", without, f"images of the {name} split are without captions", self.on_bad)
        split = PhotoSplit(
            ids=kept,
            captions=[captions[image] for image in kept],
            folder=self._photo_folder(),
            expected=", ".join(PHOTO_FOLDERS[:3]),
            sources=SOURCES,
            dropped=[*dropped, *repeated, *without],
        )
        return not_empty(split.readable() if self.on_bad == "skip" else split, "Flickr8k", name)

    def _members(self, name: str) -> tuple[list[str], list[Drop]]:
        """The images of a split, and the lines of its file that repeat one."""
        of = "train" if name == "held" else name
        names, repeated = self._hashed(of) if self.splits == "hashed" else self._official(of)
        if of != "train":
            return names, repeated
        if self.held >= len(names):
            raise DataError(f"dataset.held: {self.held:,} of {len(names):,} training images")
        trained = len(names) - self.held
        return (names[:trained], repeated) if name == "train" else (names[trained:], [])

    @cached_property
    def _root(self) -> Path:
        return folder_of(self.root, SOURCES)

    @cached_property
    def _caption_file(self) -> tuple[Layout, Path]:
        layouts: list[Layout] = ["original", "kaggle"] if self.layout == "auto" else [self.layout]
        for layout in layouts:
            for path in (self._root / folder / CAPTION_FILES[layout] for folder in TEXT_FOLDERS):
                if path.is_file():
                    return layout, path
        names = " or ".join(f"{CAPTION_FILES[layout]} ({layout} layout)" for layout in layouts)
        what = f"the captions are missing: {names}"
        raise missing(self._root, what, self._elsewhere(layouts), SOURCES)

    @cached_property
    def _captions(self) -> tuple[dict[str, list[str]], list[Drop]]:
        layout, path = self._caption_file
        read = token_rows if layout == "original" else kaggle_rows
        captions, quirks, bad = collect(read(path), path, KNOWN_QUIRK)
        refuse("Flickr8k", bad, f"bad lines; expected {EXPECTED[layout]}", self.on_bad)
        return captions, quirks + bad

    def _elsewhere(self, layouts: Iterable[Layout]) -> str:
        """A hint where the data lies one folder deeper than root says."""
        names = [CAPTION_FILES[layout] for layout in layouts]
        deeper = [path.parent for name in names for path in sorted(self._root.glob(f"*/{name}"))]
        return f'it is in "{deeper[0]}": --set dataset.root={deeper[0]}' if deeper else ""

    def _official(self, name: str) -> tuple[list[str], list[Drop]]:
        """The names in the file of the split."""
        files = self._split_paths()
        if name not in files:
            raise self._no_split_file(name)
        members = {split: read_names(path) for split, path in files.items()}
        must_be_apart({split: names for split, (names, _) in members.items()}, files)
        what = f"lines of {files[name].name} repeat a name"
        refuse("Flickr8k", members[name][1], what, self.on_bad)
        return members[name]

    def _split_paths(self) -> dict[str, Path]:
        folders = [Path(self.split_files).expanduser()] if self.split_files else [
            self._root / folder for folder in TEXT_FOLDERS
        ]  # fmt: skip
        paths = ((name, f / file) for name, file in SPLIT_FILES.items() for f in folders)
        return {name: path for name, path in paths if path.is_file()}

    def _no_split_file(self, name: str) -> DataError:
        where = Path(self.split_files).expanduser() if self.split_files else self._root
        return missing(
            where,
            f'{SPLIT_FILES[name]} is missing: it lists the images of the split "{name}"',
            "it comes with Flickr8k_text.zip, not with Kaggle's archive; where it lies elsewhere:\n"
            "      --set dataset.split_files=FOLDER\n"
            "    and to do without the official splits: --set dataset.splits=hashed",
            SOURCES,
        )

    def _hashed(self, name: str) -> tuple[list[str], list[Drop]]:
        captions, _ = self._captions
        return [image for image in sorted(captions) if hash_split(image) == name], []

    def _photo_folder(self) -> Path:
        folders = [self._root / name for name in PHOTO_FOLDERS]
        return next((folder for folder in folders if folder.is_dir()), folders[0])
