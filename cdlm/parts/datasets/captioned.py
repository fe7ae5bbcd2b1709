"""Photos with captions on disk: files of captions and of splits, read line by line, and a split.

Captions and splits are read without touching the photos, so that ready features need none of them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cdlm.errors import DataError
from cdlm.parts.datasets import photos

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
Drop = tuple[str, str]  # (what was left out, why)

ROW = re.compile(r"(?P<image>[^\t]+)#(?P<number>\d+)\t(?P<text>.*)", re.DOTALL)
BREAKS = re.compile("[\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")  # where str.splitlines would cut
SKIP = "to leave out what is bad and count it: --set dataset.on_bad=skip"


@dataclass(kw_only=True)
class PhotoSplit:
    """Photos below one folder, with captions; the photos are looked at only when asked for."""

    ids: list[str]
    captions: list[list[str]]
    folder: Path
    expected: str  # how such a folder is called, for a message
    sources: str = ""  # where the data set is to be had, for a message
    below: dict[str, str] = field(default_factory=dict)  # id: path below the folder, if not the id
    dropped: list[Drop] = field(default_factory=list)  # lines of the caption file; images of this
    truths: list[Any] = field(init=False)
    weights: list[float] = field(init=False)
    pictured: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        self.truths = [None] * len(self.ids)
        self.weights = [1.0] * len(self.ids)
        self.pictured = [True] * len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over names, sizes and modification times. Errors: DataError for missing photos."""
        self._must_exist(self.ids)
        digest = hashlib.sha256()
        for name in self.ids:
            stat = self._path(name).stat()
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def images(self, indices: Sequence[int]) -> list[Image]:
        """The photos at these positions, RGB. Errors: DataError naming what can't be read."""
        names = [self.ids[index] for index in indices]
        self._must_exist(names)
        return [photos.read(self._path(name)) for name in names]

    def readable(self) -> PhotoSplit:
        """The split without photos that can't be read; whole, where there are no photos at all."""
        if not self.folder.is_dir():
            return self
        faults = {name: _fault(self._path(name)) for name in self.ids}
        good = [i for i, name in enumerate(self.ids) if not faults[name]]
        return PhotoSplit(
            ids=[self.ids[i] for i in good],
            captions=[self.captions[i] for i in good],
            folder=self.folder,
            expected=self.expected,
            sources=self.sources,
            below=self.below,
            dropped=[*self.dropped, *((name, why) for name, why in faults.items() if why)],
        )

    def _path(self, name: str) -> Path:
        return self.folder / self.below.get(name, name)

    def _must_exist(self, names: Sequence[str]) -> None:
        if not self.folder.is_dir():
            what = f"the photos are missing: a folder {self.expected}"
            raise missing(self.folder.parent, what, sources=self.sources)
        lost = [name for name in names if not self._path(name).exists()]
        if lost:
            what = f"{len(lost):,} of {len(names):,} photos are missing: {photos.some(lost)}"
            raise missing(self.folder, what, SKIP, self.sources)


# ------------------------------------------------------------------------------- caption files


@dataclass(frozen=True)
class Row:
    """One line of a caption file; `fault` says what is wrong with it, or ""."""

    number: int
    image: str = ""
    text: str = ""
    key: str = ""  # what must not come twice; "" where the layout has none
    fault: str = ""


def token_rows(path: Path) -> Iterator[Row]:
    """name.jpg#0<TAB>caption, as the original Flickr archives have it."""
    for number, line in lines(path):
        match = ROW.fullmatch(line) if isinstance(line, str) else None
        if isinstance(line, UnicodeDecodeError):
            yield Row(number, fault=f"is not UTF-8: {line.reason} at byte {line.start}")
        elif match is None:
            lacks = "a number after #" if "\t" in line else "a tab"
            yield Row(number, fault=f"lacks {lacks}: {quoted(line)}")
        else:
            image, count, text = match["image"], match["number"], match["text"].strip()
            yield Row(number, image, text, key=f"{image}#{count}")


def kaggle_rows(path: Path) -> Iterator[Row]:
    """image,caption, as Kaggle has Flickr8k."""
    rows = lines(path)
    number, header = next(rows, (1, ""))
    if not isinstance(header, str) or not re.fullmatch(r"\s*image\s*,\s*caption\s*", header):
        found = f"found {quoted(header)}" if isinstance(header, str) else "found no text"
        raise DataError(f'{path}:{number}: the first line should be "image,caption"; {found}')
    for number, line in rows:
        if isinstance(line, UnicodeDecodeError):
            yield Row(number, fault=f"is not UTF-8: {line.reason} at byte {line.start}")
        else:
            yield _kaggle_row(number, line)


def numbered_rows(path: Path) -> Iterator[Row]:
    """image_name| comment_number| comment, as Kaggle has Flickr30k."""
    rows = lines(path)
    number, header = next(rows, (1, ""))
    if not isinstance(header, str) or not re.fullmatch(r"\s*image_name\s*\|.*\|.*", header):
        found = f"found {quoted(header)}" if isinstance(header, str) else "found no text"
        raise DataError(
            f'{path}:{number}: the first line should be "image_name| comment_number| comment"; '
            f"{found}"
        )
    for number, line in rows:
        if isinstance(line, UnicodeDecodeError):
            yield Row(number, fault=f"is not UTF-8: {line.reason} at byte {line.start}")
            continue
        fields = [word.strip() for word in line.split("|", 2)]
        if len(fields) == 3:
            yield Row(number, fields[0], fields[2], key=f"{fields[0]}#{fields[1]}")
        else:
            yield Row(number, fault=f"has {len(fields)} fields, not 3: {quoted(line)}")


def _kaggle_row(number: int, line: str) -> Row:
    try:
        fields = next(csv.reader([line], strict=True))
    except csv.Error as error:  # a quote that is not closed on its line
        return Row(number, fault=f"is not CSV ({error}): {quoted(line)}")
    if len(fields) != 2:
        return Row(
            number, fault=f'has {len(fields)} fields, not 2 (quote captions with commas: "a, b")'
        )
    return Row(number, fields[0].strip(), fields[1].strip())


def lines(path: Path) -> Iterator[tuple[int, str | UnicodeDecodeError]]:
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


def collect(
    rows: Iterable[Row], path: Path, quirk: str = ""
) -> tuple[dict[str, list[str]], list[Drop], list[Drop]]:
    """Captions by image; lines of a known quirk of the data set; bad lines."""
    captions: dict[str, list[str]] = {}
    quirks: list[Drop] = []
    bad: list[Drop] = []
    seen: set[str] = set()
    for row in rows:
        where = f"{path.name}:{row.number}"
        fault = row.fault or _fault_in(row, seen)
        if quirk and row.image == quirk:
            quirks.append((where, f"{quirk} is a known slip of the data set; it has no photo"))
        elif fault:
            bad.append((where, fault))
        else:
            captions.setdefault(row.image, []).append(row.text)
            seen.add(row.key)
    return captions, quirks, bad


def _fault_in(row: Row, seen: set[str]) -> str:
    if not row.image or re.search(r"[/\\\0]", row.image):
        return f"{quoted(row.image)} is not the name of a photo"
    if not row.text:
        return f"the caption of {row.image} is empty"
    if mark := BREAKS.search(row.text):
        return f"the caption of {row.image} holds a line separator (U+{ord(mark[0]):04X})"
    if row.key and row.key in seen:
        return f"{row.key} comes a second time"
    return ""


# --------------------------------------------------------------------------------- split files


def read_names(path: Path) -> tuple[list[str], list[Drop]]:
    """The names in a split file, each once, and those that come again."""
    names: dict[str, None] = {}
    repeated: list[Drop] = []
    for number, line in lines(path):
        if not isinstance(line, str) or re.search(r"[/\\\0\t,]", line):
            found = quoted(line) if isinstance(line, str) else "bytes that are not UTF-8"
            raise DataError(f"{path}:{number}: expected the name of one photo; found {found}")
        name = line.strip()
        if name in names:
            repeated.append((f"{path.name}:{number}", f"{name} comes a second time"))
        names[name] = None
    return list(names), repeated


def must_be_apart(members: dict[str, list[str]], files: dict[str, Path]) -> None:
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


def hash_split(image: str) -> str:
    """train for 6/8 of all names, val and test for 1/8 each."""
    eighth = hashlib.sha256(image.encode()).digest()[0] % 8
    return "val" if eighth == 6 else "test" if eighth == 7 else "train"


def by_caption(
    name: str, train: Sequence[str], held: Sequence[str], captions: dict[str, list[str]]
) -> tuple[list[str], dict[str, list[str]]]:
    """Images of train or val and their captions, where the photos of val are trained on too.

    The last caption of a photo of val is for validation, those before it for training.
    """
    if name == "val":
        return list(held), {it: captions[it][-1:] for it in held if it in captions}
    rest = {it: captions[it][:-1] for it in held if len(captions.get(it, [])) > 1}
    return [*train, *rest], captions | rest


def with_captions(
    wanted: Sequence[str], captions: dict[str, list[str]]
) -> tuple[list[str], list[Drop]]:
    """Those that have captions, and those that have none."""
    kept = [image for image in wanted if image in captions]
    return kept, [(image, "no caption") for image in wanted if image not in captions]


def not_empty(split: PhotoSplit, dataset: str, name: str) -> PhotoSplit:
    """The split. Errors: DataError where nothing is left of it."""
    if split.ids:
        return split
    lines = [f"{dataset}: nothing is left of the {name} split", *listed(split.dropped)]
    raise DataError("\n    ".join(lines))


# ------------------------------------------------------------------------------------ messages


def missing(where: Path, what: str, hint: str = "", sources: str = "") -> DataError:
    """What is not there, how to mend it, and where the data set is to be had."""
    return DataError("\n    ".join(filter(None, [f"{where}: {what}", hint, sources])))


def _fault(path: Path) -> str:
    try:
        photos.read(path)
    except DataError as error:
        return str(error).splitlines()[0]
    return ""


def listed(bad: Sequence[Drop]) -> list[str]:
    """The first few of what is bad, a line each."""
    lines = [f"{what}: {why}" for what, why in bad[: photos.SHOWN]]
    return lines + (["..."] if len(bad) > photos.SHOWN else [])


def quoted(text: str) -> str:
    """A text in quotes, cut where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def parsed(path: Path, parse: Callable[[Any], T], expected: str) -> T:
    """What `parse` makes of a file of JSON. Errors: DataError where it is of another form."""
    try:
        return parse(json.loads(path.read_bytes()))
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: expected {expected}; {type(error).__name__}: {error}") from error


def folder_of(root: str, sources: str = "") -> Path:
    """The folder that the parameter `root` names. Errors: DataError with near names."""
    path = Path(root).expanduser()
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "no such folder"
        raise missing(path, what, "" if path.exists() else photos.near(path), sources)
    return path


def refuse(dataset: str, bad: Sequence[Drop], what: str, on_bad: str) -> None:
    """Raises DataError for what is bad, unless it is to be left out."""
    if bad and on_bad == "error":
        raise DataError("\n    ".join([f"{dataset}: {len(bad):,} {what}", *listed(bad), SKIP]))
