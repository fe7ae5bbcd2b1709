"""The recipes and studies that come with the plugin are free of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdlm import recipe, study

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("recipes/*.toml"), *ROOT.glob("studies/*.toml")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_it_is_free_of_mistakes(path: Path) -> None:
    found = (study if path.parent.name == "studies" else recipe).load(path)
    assert found.about
