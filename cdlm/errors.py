"""Errors for people: place, mistake, nearest right answer, what is allowed; exit code 2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from signal import Signals


class CdlmError(Exception):
    """Something that a person can mend. The command line prints it and exits with 2."""


class DataError(CdlmError):
    """Data that is missing, unreadable or of the wrong form."""


class Unavailable(CdlmError):
    """Scores that can't be had on this machine, and why not. Tables show "n/a"."""

    def __init__(self, scores: Sequence[str], why: str):
        self.scores, self.why = list(scores), why
        super().__init__(f"{', '.join(self.scores)}: not available: {why}")


class RunError(CdlmError):
    """A run directory that can't be written, read or resumed."""


class Interrupted(Exception):
    """Training was asked to stop, and its checkpoint is written. `code` is 128 + the signal."""

    def __init__(self, run: str, number: int, step: int):
        self.code = 128 + number
        super().__init__(f"stopped by {Signals(number).name} at step {step}; all is saved in {run}")


class PluginError(CdlmError):
    """A plugin that does not do what plugins do."""


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong in a recipe, as a person reads it."""

    place: str  # "recipes/mine.toml, schedule.offset" or "--set train.steps"
    what: str  # 'expected a whole number, got "many"'
    hint: str = ""  # 'did you mean "offset"?', 'allowed: linear, cosine'

    def __str__(self) -> str:
        return f"{self.place}: {self.what}" + (f"\n    {self.hint}" if self.hint else "")


class RecipeError(CdlmError):
    """All the mistakes of a recipe, together."""

    def __init__(self, mistakes: Sequence[Mistake]):
        self.mistakes = list(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


def nearest(word: str, allowed: Iterable[str]) -> str:
    """'did you mean "cosine"? ' where something is close, then what is allowed."""
    names = sorted(allowed)
    close = get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    guess = f'did you mean "{close[0]}"? ' if close else ""
    return f"{guess}allowed: {', '.join(names) or 'nothing'}"
