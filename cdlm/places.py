"""Where things lie that belong to no run: all runs, the feature cache, and what ships with cdlm."""

from __future__ import annotations

import os
from pathlib import Path

RUNS = "runs"  # the folder of all runs, unless the command line is told otherwise


def cache_dir() -> Path:
    """$CDLM_CACHE, else $XDG_CACHE_HOME/cdlm, else ~/.cache/cdlm; need not exist yet."""
    if chosen := os.environ.get("CDLM_CACHE"):
        return Path(chosen).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification tells programs to ignore a relative path.
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "cdlm"


def assets_dir() -> Path:
    """The files that ship inside the package, such as the encoder of the drawn scenes."""
    return Path(__file__).parent / "assets"


def recipes_dir() -> Path:
    """The recipes that ship with cdlm: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "recipes"


def templates_dir() -> Path:
    """What `cdlm new` writes, before names are filled in."""
    return Path(__file__).parent / "templates"
