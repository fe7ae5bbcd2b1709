"""Networks and photos to test on, made anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from networks import SIDE, averages
from PIL import Image


@pytest.fixture
def network(tmp_path: Path) -> str:
    """A network in floating point."""
    return averages(tmp_path / "averages.tflite")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 60 photos: patches of colours."""
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(60):
        patches = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        small = Image.fromarray(patches).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        small.save(folder / f"{number:02}.png")
    return folder
