"""Crops are where they say, and mirrored as often as they say."""

from __future__ import annotations

from random import Random

import numpy as np
from PIL import Image

from cdlm.parts.views import Crops

WIDTH, HEIGHT = 60, 40


def located() -> Image.Image:
    """Every pixel is its own place: red says the column, green the row."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([columns, rows, np.zeros_like(rows)], 2)
    return Image.fromarray(pixels.astype(np.uint8))


def looked(views: Crops, seed: int = 0) -> list[np.ndarray]:
    return [np.asarray(view).astype(int) for view in views(located(), Random(seed))]


def test_a_crop_is_a_part_of_the_photo_in_its_shape() -> None:
    views = looked(Crops(count=200, smallest=0.5, mirrored=0.0))
    for view in views:
        height, width, _ = view.shape
        assert HEIGHT / 2 <= height <= HEIGHT and abs(width - height * WIDTH / HEIGHT) <= 1
        left, top = view[0, 0, :2]
        rows, columns = np.mgrid[top : top + height, left : left + width]
        assert (view[..., 0] == columns).all() and (view[..., 1] == rows).all()


def test_crops_are_of_all_sizes_and_reach_every_border() -> None:
    views = looked(Crops(count=500, smallest=0.5))
    sizes = sorted(len(view) for view in views)
    assert sizes[0] == HEIGHT // 2 and sizes[-1] == HEIGHT
    assert abs(float(np.mean(sizes)) / HEIGHT - 0.75) < 0.02
    for channel, last in ((0, WIDTH - 1), (1, HEIGHT - 1)):
        assert any(view[..., channel].min() == 0 and len(view) < HEIGHT for view in views)
        assert any(view[..., channel].max() == last and len(view) < HEIGHT for view in views)


def test_as_many_are_mirrored_as_it_says() -> None:
    views = looked(Crops(count=1000, mirrored=0.25))
    share = np.mean([view[0, 0, 0] > view[0, -1, 0] for view in views])
    assert abs(share - 0.25) < 0.05


def test_a_photo_of_one_pixel_is_its_own_crop() -> None:
    dot = Image.new("RGB", (1, 1), (7, 8, 9))
    assert [view.getpixel((0, 0)) for view in Crops()(dot, Random(0))] == [(7, 8, 9)] * 3
