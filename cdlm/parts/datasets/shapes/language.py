"""How scenes are said, and whether a caption is true of a scene: one table of wordings for both.

A wording is a sentence with slots: {0}, {1}, {2} for the things in their order along the axis, {b}
for the background. Captions fill a wording; a caption is understood when it matches one.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import product

import torch
from torch import Tensor

from cdlm.parts.datasets.shapes.scenes import (
    AXES,
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    Codes,
    Scene,
    Thing,
)

BEHIND = ("", " on a {b} background")
AHEAD = {"across": ("to the left of", "left of"), "down": ("above", "over")}
AFTER = {"across": ("to the right of", "right of"), "down": ("below", "under")}
ENDS = {"across": ("left", "right"), "down": ("top", "bottom")}


@cache
def wordings(count: int, axis: str | None, free: bool = True) -> tuple[str, ...]:
    """The ways to say a scene of `count` things along `axis`.

    All of them, or (not `free`) those that name the things in reading order: left to right, top to
    bottom.
    """
    if axis is None:
        bodies = ["{0}", "there is {0}"]
    elif count == 2:
        bodies = [f"{{0}} {is_}{to} {{1}}" for is_, to in product(("", "is "), AHEAD[axis])]
        if free:
            bodies += [f"{{1}} {is_}{to} {{0}}" for is_, to in product(("", "is "), AFTER[axis])]
    else:
        first, last = ENDS[axis]
        bodies = [f"{{0}} , {{1}} and {{2}} from {first} to {last}"]
        if free:
            bodies += [f"{{2}} , {{1}} and {{0}} from {last} to {first}"]
            bodies += [f"{{1}} between {{0}} at the {first} and {{2}} at the {last}"]
    return tuple(body + behind for body, behind in product(bodies, BEHIND))


def say(scene: Scene, wording: str) -> str:
    """The scene in these words."""
    things = [f"a {' '.join(thing)}" for thing in scene.things]
    return wording.format(*things, b=scene.background)


@cache
def _patterns() -> list[tuple[re.Pattern[str], str | None]]:
    """Every wording as a pattern with named groups s0 c0 h0 ... b, and its axis."""
    kinds = [(1, None), *product((2, 3), AXES)]
    return [(_pattern(w), axis) for count, axis in kinds for w in wordings(count, axis)]


def _pattern(wording: str) -> re.Pattern[str]:
    things = [
        rf"a (?P<s{i}>{'|'.join(SIZES)}) (?P<c{i}>{'|'.join(COLOURS)}) (?P<h{i}>{'|'.join(SHAPES)})"
        for i in range(3)
    ]
    return re.compile(wording.format(*things, b=f"(?P<b>{'|'.join(BACKGROUNDS)})"))


def understand(caption: str) -> Scene | None:
    """The scene that a caption describes, or None; its background is "" where none is named."""
    words = " ".join(caption.lower().split())
    for pattern, axis in _patterns():
        if match := pattern.fullmatch(words):
            said = match.groupdict()
            count = sum(f"s{i}" in said for i in range(3))
            things = tuple(Thing(said[f"s{i}"], said[f"c{i}"], said[f"h{i}"]) for i in range(count))
            return Scene(things, axis, said.get("b", ""))
    return None


def is_true(caption: str, scene: Scene) -> bool:
    """Whether a caption names every thing of the scene, and all that it says is so."""
    claim = understand(caption)
    if claim is None or claim.background not in ("", scene.background):
        return False
    return claim.things == scene.things and claim.axis == scene.axis


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can have, sorted."""
    kinds = [(1, None), *product((2, 3), AXES)]
    fixed = {w for n, axis in kinds for text in wordings(n, axis) for w in text.split()}
    words = {w for w in fixed if not w.startswith("{")}
    return tuple(sorted(words | {"a", *SIZES, *COLOURS, *SHAPES, *BACKGROUNDS}))


def word_ids(codes: Codes, choice: Tensor, length: int) -> Tensor:
    """Captions that name the background, as numbers of words, without a loop over scenes.

    choice B (any whole numbers) picks the wordings. 0 pads, then the vocabulary from 1 on, and the
    highest number, len(vocabulary) + 1, ends a caption. Shape: B length.
    """
    out = torch.zeros(len(choice), length, dtype=torch.long, device=choice.device)
    for count, axis in ((1, None), *product((2, 3), AXES)):
        said = codes.counts == count
        rows = (said & (codes.axis == AXES.index(axis)) if axis else said).nonzero()[:, 0]
        table = _slots(count, axis, length).to(choice.device)
        slots = table[choice[rows] % len(table)]
        facts = torch.cat([codes.background[rows, None], codes.things[rows].flatten(1)], dim=1)
        facts = facts + torch.tensor(_first_ids(codes.things.shape[1]), device=choice.device)
        filled = facts.gather(1, (-1 - slots).clamp(min=0))
        out[rows] = slots.where(slots >= 0, filled)
    return out


def _first_ids(places: int) -> list[int]:
    """The number of each fact's first word: the background, then size, colour, shape of each."""
    words = word_numbers()
    return [words[BACKGROUNDS[0]], *[words[SIZES[0]], words[COLOURS[0]], words[SHAPES[0]]] * places]


@cache
def word_numbers() -> dict[str, int]:
    """Words to numbers: each fact's words stand together, in the order of their codes."""
    facts = [*SIZES, *COLOURS, *SHAPES, *BACKGROUNDS]
    rest = [word for word in vocabulary() if word not in facts]
    return {word: i for i, word in enumerate([*facts, *rest], start=1)}


@cache
def _slots(count: int, axis: str | None, length: int) -> Tensor:
    """The wordings that name the background, as rows of word numbers; -1 - i stands for fact i."""
    full = [wording for wording in wordings(count, axis) if "{b}" in wording]
    rows = [[i for word in wording.split() for i in _slot(word)] for wording in full]
    end = len(vocabulary()) + 1
    return torch.tensor([[*row, end, *[0] * (length - len(row) - 1)] for row in rows])


def _slot(word: str) -> list[int]:
    if word == "{b}":
        return [-1]
    if word.startswith("{"):
        first = 1 + 3 * int(word[1])
        return [word_numbers()["a"], *(-1 - fact for fact in range(first, first + 3))]
    return [word_numbers()[word]]
