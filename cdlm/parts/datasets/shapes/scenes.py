"""What is in a scene, as numbers and as words; which split it belongs to; where its things stand.

Letters of this folder: B scenes, K places for things (1 to 3; unused places hold -1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

SIZES = ("small", "large")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "cyan")
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
AXES = ("across", "down")  # things stand left to right, or top to bottom
BACKGROUNDS = ("white", "grey", "black", "striped", "checked", "dotted")
ATTRIBUTES = (len(SIZES), len(COLOURS), len(SHAPES))

CANVAS = 96  # pixels of a side
RADII = ((7.0, 8.5), (13.0, 14.5))  # pixels: least and most, of a small and of a large thing
GAP = 2.0  # pixels, least distance between things and to the border, along the axis
SWAY = 0.2  # share of the least step along the axis that a thing may stray across it

HELD_OUT = {"test": (0.0, 0.06), "val": (0.06, 0.12)}  # shares of the contents; the rest is train


class Thing(NamedTuple):
    """One shape: its size, colour and shape, as words."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """What a scene holds: its things from left to right or top to bottom, and what is behind."""

    things: tuple[Thing, ...]
    axis: str | None  # "across", "down", or None for a single thing
    background: str


@dataclass(frozen=True)
class Codes:
    """Contents of B scenes as numbers, the same facts as `Scene`. Shapes: B K 3, B, B."""

    things: Tensor  # size, colour, shape; -1 where there is no thing
    axis: Tensor
    background: Tensor

    def __getitem__(self, rows: Tensor) -> Codes:
        return Codes(self.things[rows], self.axis[rows], self.background[rows])

    @property
    def counts(self) -> Tensor:
        """Things in each scene. Shape: B."""
        return (self.things[:, :, 0] >= 0).sum(1)

    def content(self) -> Tensor:
        """One whole number for each content, equal for equal contents only. Shape: B."""
        sizes, colours, shapes = ATTRIBUTES
        number = torch.zeros_like(self.axis)
        for thing in self.things.unbind(1):
            one = 1 + (thing[:, 0] * colours + thing[:, 1]) * shapes + thing[:, 2]
            number = number * (1 + sizes * colours * shapes) + one.where(thing[:, 0] >= 0, 0)
        axis = self.axis.where(self.counts > 1, 0)  # a single thing stands along no axis
        return (number * len(AXES) + axis) * len(BACKGROUNDS) + self.background

    def scenes(self) -> list[Scene]:
        """The same facts in words."""
        rows = zip(self.things.tolist(), self.axis.tolist(), self.background.tolist(), strict=True)
        return [_scene(*row) for row in rows]


def _scene(things: list[list[int]], axis: int, background: int) -> Scene:
    named = tuple(Thing(SIZES[s], COLOURS[c], SHAPES[h]) for s, c, h in things if s >= 0)
    return Scene(named, AXES[axis] if len(named) > 1 else None, BACKGROUNDS[background])


def split_of(codes: Codes, name: str) -> Tensor:
    """Whether each content belongs to the split called `name`; each is in just one. B bool.

    A fixed hash of the content decides (Knuth's multiplicative hash, mixed twice), so the splits
    are the same for every seed, size and number of things.
    """
    mixed = codes.content()
    for _ in range(2):
        mixed = (mixed * 2654435761) % 2**32
        mixed = mixed ^ (mixed >> 15)
    share = mixed.double() / 2**32
    held = {split: (share >= low) & (share < high) for split, (low, high) in HELD_OUT.items()}
    return held[name] if name in held else ~(held["test"] | held["val"])


def random_codes(scenes: int, mix: Tensor, rng: Generator) -> Codes:
    """Contents drawn at random; mix K: how often there are 1, 2, ... K things.

    No two things of a scene are alike in size, colour and shape: their order could not be told.
    """
    device, places = rng.device, len(mix)
    draw = [torch.randint(n, (scenes, places), generator=rng, device=device) for n in ATTRIBUTES]
    count = 1 + torch.multinomial(mix.to(device), scenes, replacement=True, generator=rng)
    absent = torch.arange(places, device=device) >= count[:, None]
    things = torch.stack(draw, dim=2).masked_fill(absent[:, :, None], -1)
    axis = torch.randint(len(AXES), (scenes,), generator=rng, device=device)
    behind = torch.randint(len(BACKGROUNDS), (scenes,), generator=rng, device=device)
    return Codes(things, axis, behind)


def distinct(codes: Codes) -> Tensor:
    """Whether all things of a scene differ from one another. Shape: B bool."""
    a, b = codes.things[:, :, None], codes.things[:, None, :]
    same = (a == b).all(-1) & (a[..., 0] >= 0)
    return same.sum((1, 2)) == codes.counts


def sample_codes(scenes: int, split: str, mix: Tensor, rng: Generator) -> Codes:
    """`scenes` random contents of a split."""
    kept: list[Codes] = []
    while sum(len(codes.axis) for codes in kept) < scenes:
        codes = random_codes(max(256, 2 * scenes), mix, rng)
        kept.append(codes[split_of(codes, split) & distinct(codes)])
    parts = ((codes.things, codes.axis, codes.background) for codes in kept)
    return Codes(*(torch.cat(column)[:scenes] for column in zip(*parts, strict=True)))


def arrange(codes: Codes, rng: Generator) -> Tensor:
    """Where things stand: centre x, centre y, radius in pixels, at random. Shape: B K 3.

    Along the axis the things follow each other without touching; across it they sway by less than
    SWAY of the least step between neighbours, so that the axis can always be told.
    """
    device, (b, k) = rng.device, codes.things.shape[:2]
    there = codes.things[:, :, 0] >= 0
    low, high = torch.tensor(RADII, device=device)[codes.things[:, :, 0].clamp(min=0)].unbind(2)
    radius = (low + (high - low) * torch.rand(b, k, generator=rng, device=device)) * there
    along = _in_a_row(radius, there, rng)
    pairs = there[:, 1:] & there[:, :-1]
    steps = along.new_full((b, k), CANVAS)  # K, not K - 1 of them: min needs one where K is 1
    steps[:, 1:] = along.diff(dim=1).masked_fill(~pairs, CANVAS)
    steps = steps.min(1, keepdim=True).values
    sway = SWAY * steps.clamp(max=CANVAS / 4) * (pairs.any(1, keepdim=True))
    room = CANVAS / 2 - GAP - radius.max(1, keepdim=True).values - sway
    middle = CANVAS / 2 + room * (2 * torch.rand(b, 1, generator=rng, device=device) - 1)
    beside = middle + sway * (2 * torch.rand(b, k, generator=rng, device=device) - 1)
    across = (codes.axis == 0)[:, None]
    return torch.stack([along.where(across, beside), beside.where(across, along), radius], dim=2)


def _in_a_row(radius: Tensor, there: Tensor, rng: Generator) -> Tensor:
    """Centres along the axis: what the things leave of the canvas is shared out at random. B K."""
    b, k = radius.shape
    spare = CANVAS - 2 * radius.sum(1) - GAP * (1 + there.sum(1))
    shares = torch.rand(b, k + 1, generator=rng, device=radius.device)
    shares[:, :k] *= there
    gaps = GAP + spare[:, None] * shares / shares.sum(1, keepdim=True)
    return (gaps[:, :k] + 2 * radius).cumsum(1) - radius
