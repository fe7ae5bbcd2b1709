"""Photos from disk, whatever is in the files: read safely, or refused by name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from cdlm.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # none that starts another program
MOST_PIXELS = 100_000_000  # 300 MB as RGB; a larger photo is taken for a decompression bomb
SHOWN = 5  # names in a message before it says "and so on"


def read(path: Path) -> Image:
    """The photo as a person sees it: upright, RGB, 8 bits, transparency over white.

    Errors: DataError naming the file that is missing, empty, truncated, too large, or no image.
    """
    _must_hold_bytes(path)
    from PIL import UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, not about the pixels
            return _decode(path)
    except DataError:
        raise
    except UnidentifiedImageError:
        allowed = f"readable: {', '.join(FORMATS)}"
        raise DataError(f"{path}: {_what_instead(path)}\n    {allowed}") from None
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise DataError(f"{path}: the photo can't be read: {error}") from error


def find(paths: Iterable[str]) -> list[Path]:
    """Photos named one by one, as given, and all photos in the folders named, sorted.

    Errors: one DataError for all that is missing, with near names, and for folders without photos.
    """
    found: list[Path] = []
    wrong: list[str] = []
    for path in (Path(name).expanduser() for name in paths):
        photos = _in_folder(path) if path.is_dir() else [path] if path.exists() else []
        found += photos
        if not photos:
            wrong.append(_why_none(path))
    if wrong or not found:
        raise DataError("\n".join(wrong) or "no photo was named")
    return found


def near(path: Path) -> str:
    """'did you mean "x.jpg"?', from the names beside a path that does not exist, or ""."""
    try:
        beside = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f'no folder "{path.parent}" either'
    close = get_close_matches(path.name, beside, n=1, cutoff=0.7)
    return f'did you mean "{path.with_name(close[0])}"?' if close else ""


def some(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _in_folder(folder: Path) -> list[Path]:
    photos = []
    for inside, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        photos += [
            Path(inside, name)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(photos)


def _why_none(path: Path) -> str:
    if path.is_dir():
        return f"{path}: no photo in this folder\n    looked for: {', '.join(SUFFIXES)}"
    return "\n    ".join(filter(None, [f"{path}: no such file or folder", near(path)]))


def _must_hold_bytes(path: Path) -> None:
    if not path.exists():
        raise DataError("\n    ".join(filter(None, [f"{path}: no such photo", near(path)])))
    if not path.is_file():  # a folder; or a pipe, which would wait for ever
        raise DataError(f"{path}: not a file; expected a photo")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)")


def _must_be_small(image: Image, path: Path) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{path}: {width:,} x {height:,} pixels; at most {MOST_PIXELS:,} are read, "
            "since a small file that claims more may be made to fill the memory"
        )


def _what_instead(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(256).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "this is a web page or XML, not a photo; it was probably saved by a failed download"
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the photo; fetch it with: git lfs pull"
    return "not an image of a kind that is read here"


def _decode(path: Path) -> Image:
    from PIL import Image, ImageOps

    with Image.open(path, formats=FORMATS) as image:
        _must_be_small(image, path)
        image.load()
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image) -> Image:
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose scale is unknown; save it with 8 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _over_white(image.convert("RGBA"))
    return image.convert("RGB")


def _eight_bits(image: Image) -> Image:
    """16-bit grey to 8 bits by scale; Pillow's own conversion would clip everything to white."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("grey values outside 0 to 65535, whose scale is unknown")
    return Image.fromarray((values // 257).astype(np.uint8))


def _over_white(image: Image) -> Image:
    from PIL import Image

    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
