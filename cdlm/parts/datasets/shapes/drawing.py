"""How a scene looks: every shape is a signed distance, drawn with soft edges, on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cdlm.parts.datasets.shapes.scenes import BACKGROUNDS, CANVAS, COLOURS, SHAPES, Codes

PAINT = {  # 0 to 255
    "red": (214, 45, 48),
    "orange": (247, 142, 30),
    "yellow": (250, 218, 50),
    "green": (50, 155, 72),
    "blue": (43, 84, 204),
    "purple": (125, 55, 165),
    "pink": (247, 140, 190),
    "brown": (124, 78, 42),
    "cyan": (62, 203, 216),
}
PAPER = {  # the two tones of a background, which a pattern mixes
    "white": (250, 250),
    "grey": (165, 165),
    "black": (28, 28),
    "striped": (238, 205),
    "checked": (238, 205),
    "dotted": (238, 190),
}
TILE = 12.0  # pixels, period of the patterns
WINDOW = 36  # pixels, side of the square that holds the largest thing


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.86


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    side = (1.8 * x.abs() - 1.0 * (y + 1.0)) / (1.8**2 + 1.0**2) ** 0.5
    return torch.maximum(side, y - 0.8)


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return (1.35 * x.abs() + y.abs() - 1.1) / (1.35**2 + 1) ** 0.5


def _star(x: Tensor, y: Tensor) -> Tensor:
    sector = 2 * torch.pi / 5
    angle = torch.atan2(x, -y).remainder(sector)
    angle = torch.minimum(angle, sector - angle)  # 0 at a tip, pi / 5 between two tips
    reach = torch.hypot(x, y)
    tip, dent = 1.12, 0.50  # radii of the outer and the inner corners
    ex, ey = dent * math.cos(sector / 2) - tip, dent * math.sin(sector / 2)  # an edge, tip to dent
    return ((reach * angle.cos() - tip) * ey - reach * angle.sin() * ex) / math.hypot(ex, ey)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    y, q = y - 0.12, 0.86
    lower = (x.abs() + y.abs() - q) / 2**0.5
    lobes = torch.hypot(x.abs() - q / 2, y + q / 2) - q / 2**0.5
    return torch.minimum(lower, lobes)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    near, far = torch.minimum(x.abs(), y.abs()), torch.maximum(x.abs(), y.abs())
    return torch.maximum(near - 0.34, far - 1.0)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.74).abs() - 0.26


# Signed distance to the outline of a shape of radius 1 at the origin, y downwards; inside < 0.
DISTANCE = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
}


def draw(codes: Codes, places: Tensor) -> Tensor:
    """Pictures of scenes whose things stand at `places`. B K 3 -> uint8 B 3 CANVAS CANVAS."""
    axis = torch.arange(CANVAS, device=places.device) + 0.5
    picture = _papers(axis[None, :], axis[:, None])[codes.background][..., None].repeat(1, 1, 1, 3)
    for place, thing in zip(places.unbind(1), codes.things.unbind(1), strict=True):
        for kind, shape in enumerate(SHAPES):
            rows = (thing[:, 2] == kind).nonzero()[:, 0]
            _stamp(picture, rows, place[rows], thing[rows, 1], shape)
    return picture.round().to(torch.uint8).permute(0, 3, 1, 2)


def _stamp(picture: Tensor, rows: Tensor, place: Tensor, colour: Tensor, shape: str) -> None:
    """Draw one shape into these rows of picture B CANVAS CANVAS 3, touching only its window."""
    near = torch.arange(WINDOW, device=place.device)
    corner = (place[:, :2] - WINDOW / 2).round().clamp(0, CANVAS - WINDOW).long()
    ix, iy = (
        corner[:, 0, None, None] + near[None, None, :],
        corner[:, 1, None, None] + near[:, None],
    )
    cx, cy, r = (v[:, None, None] for v in place.unbind(1))
    distance = r * DISTANCE[shape]((ix + 0.5 - cx) / r, (iy + 0.5 - cy) / r)
    paint = torch.tensor([PAINT[c] for c in COLOURS], device=place.device, dtype=torch.float32)
    at = (rows[:, None, None], iy, ix)
    inside = (0.5 - distance).clamp(0, 1)[..., None]  # soft over one pixel at the outline
    picture[at] = torch.lerp(picture[at], paint[colour][:, None, None], inside)


def _papers(x: Tensor, y: Tensor) -> Tensor:
    """Every background, in grey. Shape: backgrounds CANVAS CANVAS."""
    plain = torch.zeros_like(x + y)
    even_x, even_y = (v.remainder(2 * TILE) < TILE for v in (x, y))
    dots = torch.hypot(x.remainder(TILE) - TILE / 2, y.remainder(TILE) - TILE / 2)
    pattern = {
        "striped": ((x + y).remainder(TILE) < TILE / 2).float(),
        "checked": (even_x ^ even_y).float(),
        "dotted": (3.0 - dots).clamp(0, 1),
    }
    tones = []
    for name in BACKGROUNDS:
        light, dark = PAPER[name]
        tones.append(light + (dark - light) * pattern.get(name, plain))
    return torch.stack(tones)
