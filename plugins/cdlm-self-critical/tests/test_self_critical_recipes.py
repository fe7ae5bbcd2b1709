"""The recipes that come with the plugin are free of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdlm.testing import check_recipe

FILES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_free_of_mistakes(path: Path) -> None:
    pytest.importorskip(f"cdlm_{path.stem.rpartition('_')[2]}", reason="what it trains on")
    check_recipe(path)
