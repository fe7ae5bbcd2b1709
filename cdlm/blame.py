"""Whose code raised an error: which plugin's component, of which distribution, and where in it.

Nothing is wrapped, so that components cost nothing while they work. What an error's traceback went
through is looked at once it is there.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from cdlm.errors import PluginError
from cdlm.registry import Entry

FRAMES = 3  # of the plugin's own code that are shown, the innermost last
WHOLE = "the whole traceback: the same command after CDLM_TRACEBACK=1"


def blamed(error: BaseException, entries: Iterable[Entry]) -> PluginError | None:
    """The error again, with the plugin's component that raised it; None where it was no plugin's.

    The innermost frame counts that is a plugin's or cdlm's own: a sampler of a plugin is not to
    blame for what a built-in network raises when it is asked.
    """
    plugged = [entry for entry in entries if not entry.built_in]
    helped: Entry | None = None  # whose functions the error came through on its way to a component
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        if entry := _of_object(frame, plugged):
            return entry.broken(_said(error, entry))
        if _package(frame) == "cdlm":
            break
        helped = helped or _of_package(frame, plugged)
    return PluginError(f"{helped.owner}: {_said(error, helped)}") if helped else None


def suspects(entries: Iterable[Entry]) -> list[Entry]:
    """The components of plugins whose code is loaded: they may have given what made others fail."""
    return [it for it in entries if not it.built_in and it.target.partition(":")[0] in sys.modules]


def _of_object(frame: FrameType, plugged: list[Entry]) -> Entry | None:
    """The entry of whose class `self` is, in a frame of a method."""
    owner = type(frame.f_locals.get("self"))
    return next((entry for entry in plugged if _loaded(entry) is owner), None)


def _loaded(entry: Entry) -> Any:
    module, _, name = entry.target.partition(":")
    return getattr(sys.modules.get(module), name, None)


def _of_package(frame: FrameType, plugged: list[Entry]) -> Entry | None:
    """An entry of the package in which the frame's function stands."""
    return next((entry for entry in plugged if _top(entry) == _package(frame)), None)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _top(entry: Entry) -> str:
    return entry.target.partition(":")[0].partition(".")[0]


def _said(error: BaseException, entry: Entry) -> str:
    """What was raised, where in the plugin's own code, and how to see more."""
    said = str(error) or "without a message"
    lines = [f"it raised {type(error).__name__}: {said}", *_places(error, _top(entry)), WHOLE]
    return "\n    ".join(lines)


def _places(error: BaseException, package: str) -> Iterator[str]:
    """The last lines of the package's code that the error went through."""
    walked = traceback.walk_tb(error.__traceback__)
    inside = [(frame.f_code, line) for frame, line in walked if _package(frame) == package]
    for code, line in inside[-FRAMES:]:
        text = traceback.FrameSummary(code.co_filename, line, code.co_name).line
        yield f"{code.co_filename}:{line}, in {code.co_name}: {text}"
