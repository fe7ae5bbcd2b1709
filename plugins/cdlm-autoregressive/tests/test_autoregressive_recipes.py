"""The recipes and studies that come with the plugin are free of mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cdlm import RecipeError, recipe, study

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("recipes/*.toml"), *ROOT.glob("studies/*.toml")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_it_is_free_of_mistakes(path: Path) -> None:
    if path.parent.name == "studies":
        pytest.importorskip("cdlm_masked", reason="its studies compare with cdlm-masked")
    found = (study if path.parent.name == "studies" else recipe).load(path)
    assert found.about


def test_lengths_that_are_drawn_would_cut_captions_short_and_are_refused() -> None:
    said = "autoregressive needs generated_end.*what provides generated_end: length generated"
    with pytest.raises(RecipeError, match=re.compile(said, re.DOTALL)):
        recipe.load(ROOT / "recipes" / "plain.toml", ["length={ use = 'histogram' }"])
