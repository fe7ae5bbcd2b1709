"""Flickr8k as people have it on disk: the original archives, or Kaggle's.

    original   Flickr8k.token.txt            name.jpg#0<TAB>caption
               Flickr_8k.trainImages.txt     one name per line; also devImages, testImages
               Flicker8k_Dataset/            the photos (the archive spells it so)
    kaggle     captions.txt                  image,caption
               Images/                       the photos; no split files

Captions and splits are read without touching the photos, so that ready features need none of them.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cdlm.errors import DataError, nearest
from cdlm.parts.datasets import photos

if TYPE_CHECKING:
    from PIL.Image import Image

Drop = tuple[str, str]  # (what was left out, why)
Layout = Literal["original", "kaggle"]

CAPTION_FILES: dict[Layout, str] = {"original": "Flickr8k.token.txt", "kaggle": "captions.txt"}
SPLIT_FILES = {name: f"Flickr_8k.{word}Images.txt" for name, word in
               (("train", "train"), ("val", "dev"), ("test", "test"))}  # fmt: skip
TEXT_FOLDERS = (".", "Flickr8k_text")
PHOTO_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
KNOWN_QUIRK = "2258277193_586949ec62.jpg.1"  # in the original caption file; there is no such photo
ROW = re.compile(r"(?P<image>[^\t]+)#(?P<number>\d+)\t(?P<text>.*)", re.DOTALL)
BREAKS = re.compile("[\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")  # where str.splitlines would cut
SKIP = "to leave out what is bad and count it: --set dataset.on_bad=skip"
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
    Errors: DataError with file and line for whatever is missing or of the wrong form; with
    `on_bad = "skip"` bad captions and photos are left out and listed in `dropped` of the split
    (every photo of the split is then read once, where there is a folder of photos). An image in
    two splits is always an error.
    Source: Hodosh, Young & Hockenmaier 2013.
    """

    provides: ClassVar[set[str]] = {"images"}

    root: str  # folder of the data set; "~" is expanded, the rest is seen from the current folder
    layout: Literal["auto", "original", "kaggle"] = "auto"  # auto: by the caption file
    splits: Literal["official", "hashed"] = "official"  # hashed: not comparable with others
    split_files: str = ""  # folder of the Flickr_8k.*Images.txt files, where they aren't in root
    on_bad: Literal["error", "skip"] = "error"  # skip: leave out, and count

    def __post_init__(self) -> None:
        if self.split_files and self.splits == "hashed":
            raise DataError(
                f'dataset.split_files: "{self.split_files}" has no effect with splits = "hashed"; '
                "leave one of the two out"
            )

    def split(self, name: str) -> PhotoSplit:
        """The split called `train`, `val` or `test`; photos are touched only to skip bad ones."""
        if name not in SPLIT_FILES:
            raise DataError(f'Flickr8k has no split "{name}"\n    {nearest(name, SPLIT_FILES)}')
        captions, dropped = self._captions
        wanted, repeated = self._hashed(name) if self.splits == "hashed" else self._official(name)
        kept, without = _with_captions(wanted, captions)
        self._refuse(without, f"images of the {name} split are without captions")
        split = PhotoSplit(
            ids=kept,
            captions=[captions[image] for image in kept],
            folder=self._photo_folder(),
            dropped=[*dropped, *repeated, *without],
        )
        return _not_empty(split.readable() if self.on_bad == "skip" else split, name)

    @cached_property
    def _root(self) -> Path:
        root = Path(self.root).expanduser()
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "no such folder"
            raise _missing(root, what, photos.near(root) if not root.exists() else "")
        return root

    @cached_property
    def _caption_file(self) -> tuple[Layout, Path]:
        layouts: list[Layout] = ["original", "kaggle"] if self.layout == "auto" else [self.layout]
        for layout in layouts:
            for path in (self._root / folder / CAPTION_FILES[layout] for folder in TEXT_FOLDERS):
                if path.is_file():
                    return layout, path
        names = " or ".join(f"{CAPTION_FILES[layout]} ({layout} layout)" for layout in layouts)
        raise _missing(self._root, f"the captions are missing: {names}", self._elsewhere(layouts))

    @cached_property
    def _captions(self) -> tuple[dict[str, list[str]], list[Drop]]:
        layout, path = self._caption_file
        read = _original_rows if layout == "original" else _kaggle_rows
        captions, quirks, bad = _collect(read(path), path)
        self._refuse(bad, f"bad lines; expected {_expected(layout)}")
        return captions, quirks + bad

    def _elsewhere(self, layouts: Iterable[Layout]) -> str:
        """A hint where the data lies one folder deeper than root says."""
        names = [CAPTION_FILES[layout] for layout in layouts]
        deeper = [path.parent for name in names for path in sorted(self._root.glob(f"*/{name}"))]
        return f'it is in "{deeper[0]}": --set dataset.root={deeper[0]}' if deeper else ""

    def _official(self, name: str) -> tuple[list[str], list[Drop]]:
        """The names in the file of the split, and the lines that repeat one."""
        files = self._split_paths()
        if name not in files:
            raise self._no_split_file(name)
        members = {split: _read_names(path) for split, path in files.items()}
        _must_be_apart({split: names for split, (names, _) in members.items()}, files)
        self._refuse(members[name][1], f"lines of {files[name].name} repeat a name")
        return members[name]

    def _split_paths(self) -> dict[str, Path]:
        folders = [Path(self.split_files).expanduser()] if self.split_files else [
            self._root / folder for folder in TEXT_FOLDERS
        ]  # fmt: skip
        paths = ((name, f / file) for name, file in SPLIT_FILES.items() for f in folders)
        return {name: path for name, path in paths if path.is_file()}

    def _no_split_file(self, name: str) -> DataError:
        where = Path(self.split_files).expanduser() if self.split_files else self._root
        return _missing(
            where,
            f'{SPLIT_FILES[name]} is missing: it lists the images of the split "{name}"',
            "it comes with Flickr8k_text.zip, not with Kaggle's archive; where it lies elsewhere:\n"
            "      --set dataset.split_files=FOLDER\n"
            "    and to do without the official splits: --set dataset.splits=hashed",
        )

    def _hashed(self, name: str) -> tuple[list[str], list[Drop]]:
        captions, _ = self._captions
        return [image for image in sorted(captions) if _hash_split(image) == name], []

    def _photo_folder(self) -> Path:
        folders = [self._root / name for name in PHOTO_FOLDERS]
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    def _refuse(self, bad: list[Drop], what: str) -> None:
        if bad and self.on_bad == "error":
            raise DataError("\n    ".join([f"Flickr8k: {len(bad):,} {what}", *_listed(bad), SKIP]))


@dataclass(kw_only=True)
class PhotoSplit:
    """Photos in one folder, with captions; the photos are looked at only when asked for."""

    ids: list[str]
    captions: list[list[str]]
    folder: Path
    dropped: list[Drop]  # lines of the caption file, whatever their image; images of this split
    truths: list[Any] = field(init=False)
    weights: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.truths = [None] * len(self.ids)
        self.weights = [1.0] * len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over names, sizes and modification times. Errors: DataError for missing photos."""
        self._must_exist(self.ids)
        digest = hashlib.sha256()
        for name in self.ids:
            stat = (self.folder / name).stat()
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def images(self, indices: Sequence[int]) -> list[Image]:
        """The photos at these positions, RGB. Errors: DataError naming what can't be read."""
        names = [self.ids[index] for index in indices]
        self._must_exist(names)
        return [photos.read(self.folder / name) for name in names]

    def readable(self) -> PhotoSplit:
        """The split without photos that can't be read; whole, where there are no photos at all."""
        if not self.folder.is_dir():
            return self
        faults = {name: _fault(self.folder / name) for name in self.ids}
        good = [i for i, name in enumerate(self.ids) if not faults[name]]
        return PhotoSplit(
            ids=[self.ids[i] for i in good],
            captions=[self.captions[i] for i in good],
            folder=self.folder,
            dropped=[*self.dropped, *((name, why) for name, why in faults.items() if why)],
        )

    def _must_exist(self, names: Sequence[str]) -> None:
        if not self.folder.is_dir():
            places = ", ".join(PHOTO_FOLDERS[:3])
            raise _missing(self.folder.parent, f"the photos are missing: a folder {places}")
        lost = [name for name in names if not (self.folder / name).exists()]
        if lost:
            what = f"{len(lost):,} of {len(names):,} photos are missing: {photos.some(lost)}"
            raise _missing(self.folder, what, SKIP)


# ------------------------------------------------------------------------------- caption files


@dataclass(frozen=True)
class Row:
    """One line of a caption file; `fault` says what is wrong with it, or ""."""

    number: int
    image: str = ""
    text: str = ""
    key: str = ""  # what must not come twice; "" where the layout has none
    fault: str = ""


def _original_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        match = ROW.fullmatch(line) if isinstance(line, str) else None
        if isinstance(line, UnicodeDecodeError):
            yield Row(number, fault=f"is not UTF-8: {line.reason} at byte {line.start}")
        elif match is None:
            lacks = "a number after #" if "\t" in line else "a tab"
            yield Row(number, fault=f"lacks {lacks}: {_quoted(line)}")
        else:
            image, count, text = match["image"], match["number"], match["text"].strip()
            yield Row(number, image, text, key=f"{image}#{count}")


def _kaggle_rows(path: Path) -> Iterator[Row]:
    lines = _lines(path)
    number, header = next(lines, (1, ""))
    if not isinstance(header, str) or not re.fullmatch(r"\s*image\s*,\s*caption\s*", header):
        found = f"found {_quoted(header)}" if isinstance(header, str) else "found no text"
        raise DataError(f'{path}:{number}: the first line should be "image,caption"; {found}')
    for number, line in lines:
        if isinstance(line, UnicodeDecodeError):
            yield Row(number, fault=f"is not UTF-8: {line.reason} at byte {line.start}")
        else:
            yield _kaggle_row(number, line)


def _kaggle_row(number: int, line: str) -> Row:
    try:
        fields = next(csv.reader([line], strict=True))
    except csv.Error as error:  # a quote that is not closed on its line
        return Row(number, fault=f"is not CSV ({error}): {_quoted(line)}")
    if len(fields) != 2:
        return Row(
            number, fault=f'has {len(fields)} fields, not 2 (quote captions with commas: "a, b")'
        )
    return Row(number, fields[0].strip(), fields[1].strip())


def _lines(path: Path) -> Iterator[tuple[int, str | UnicodeDecodeError]]:
    """(number, line) of those that aren't blank, cut at \\n alone. Errors: DataError."""
    data = _text_bytes(path)
    for number, raw in enumerate(data.split(b"\n"), 1):
        raw = raw.removesuffix(b"\r")
        try:
            if raw.strip():
                yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            yield number, error


def _text_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    start = data[:4096].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{path}:1: this is a web page, not a text file; download it again")
    if b"\0" in start:
        raise DataError(
            f"{path}:1: this is a binary file, not UTF-8 text (UTF-16 is not read either)"
        )
    if not start:
        raise DataError(f"{path}: the file is empty")
    return data


def _collect(
    rows: Iterable[Row], path: Path
) -> tuple[dict[str, list[str]], list[Drop], list[Drop]]:
    """Captions by image; lines of the known quirk; bad lines."""
    captions: dict[str, list[str]] = {}
    quirks: list[Drop] = []
    bad: list[Drop] = []
    seen: set[str] = set()
    for row in rows:
        where = f"{path.name}:{row.number}"
        fault = row.fault or _fault_in(row, seen)
        if row.image == KNOWN_QUIRK:
            quirks.append(
                (where, f"{KNOWN_QUIRK} is a known slip of the data set; it has no photo")
            )
        elif fault:
            bad.append((where, fault))
        else:
            captions.setdefault(row.image, []).append(row.text)
            seen.add(row.key)
    return captions, quirks, bad


def _fault_in(row: Row, seen: set[str]) -> str:
    if not row.image or re.search(r"[/\\\0]", row.image):
        return f"{_quoted(row.image)} is not the name of a photo"
    if not row.text:
        return f"the caption of {row.image} is empty"
    if mark := BREAKS.search(row.text):
        return f"the caption of {row.image} holds a line separator (U+{ord(mark[0]):04X})"
    if row.key and row.key in seen:
        return f"{row.key} comes a second time"
    return ""


def _expected(layout: Layout) -> str:
    return "name.jpg#0<TAB>caption" if layout == "original" else 'name.jpg,"caption"'


# --------------------------------------------------------------------------------- split files


def _read_names(path: Path) -> tuple[list[str], list[Drop]]:
    """The names in a split file, each once, and those that come again."""
    names: dict[str, None] = {}
    repeated: list[Drop] = []
    for number, line in _lines(path):
        if not isinstance(line, str) or re.search(r"[/\\\0\t,]", line):
            found = _quoted(line) if isinstance(line, str) else "bytes that are not UTF-8"
            raise DataError(f"{path}:{number}: expected the name of one photo; found {found}")
        name = line.strip()
        if name in names:
            repeated.append((f"{path.name}:{number}", f"{name} comes a second time"))
        names[name] = None
    return list(names), repeated


def _must_be_apart(members: dict[str, list[str]], files: dict[str, Path]) -> None:
    """An image that is both trained and tested on would make every score worthless."""
    home: dict[str, str] = {}
    for split, names in members.items():
        shared = [name for name in names if name in home]
        if shared:
            first = home[shared[0]]
            raise DataError(
                f"{len(shared):,} images are in two splits: {photos.some(shared)}\n"
                f"    {files[first]} ({first}) and {files[split]} ({split}); "
                "remove them from one of the two files"
            )
        home.update(dict.fromkeys(names, split))


def _hash_split(image: str) -> str:
    """train for 6/8 of all names, val and test for 1/8 each."""
    eighth = hashlib.sha256(image.encode()).digest()[0] % 8
    return "val" if eighth == 6 else "test" if eighth == 7 else "train"


def _with_captions(
    wanted: Sequence[str], captions: dict[str, list[str]]
) -> tuple[list[str], list[Drop]]:
    kept = [image for image in wanted if image in captions]
    return kept, [(image, "no caption") for image in wanted if image not in captions]


def _not_empty(split: PhotoSplit, name: str) -> PhotoSplit:
    if split.ids:
        return split
    lines = [f"Flickr8k: nothing is left of the {name} split", *_listed(split.dropped)]
    raise DataError("\n    ".join(lines))


# ------------------------------------------------------------------------------------ messages


def _missing(where: Path, what: str, hint: str = "") -> DataError:
    return DataError("\n    ".join(filter(None, [f"{where}: {what}", hint, SOURCES])))


def _fault(path: Path) -> str:
    try:
        photos.read(path)
    except DataError as error:
        return str(error).splitlines()[0]
    return ""


def _listed(bad: Sequence[Drop]) -> list[str]:
    lines = [f"{what}: {why}" for what, why in bad[: photos.SHOWN]]
    return lines + (["..."] if len(bad) > photos.SHOWN else [])


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
