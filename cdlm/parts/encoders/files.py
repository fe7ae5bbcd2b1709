"""What encoders ask of files."""

from __future__ import annotations

import hashlib
from difflib import get_close_matches
from pathlib import Path


def sha256(path: Path) -> str:
    """The checksum of a file's content, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def beside(path: Path) -> str:
    """What the writer of a path to a missing file may have meant."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"and no folder {path.parent}"
    close = get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f'did you mean "{path.with_name(close[0])}"?' if close else f"{path.parent} exists"
