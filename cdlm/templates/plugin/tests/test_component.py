"""The laws of its kind, and a recipe without mistakes."""

from __future__ import annotations

from pathlib import Path

from cdlm.testing import check_recipe, conformance

RECIPES = Path(__file__).parents[1] / "recipes"

test_COMPONENT = conformance("KIND", "COMPONENT")


def test_the_recipe_has_no_mistakes() -> None:
    """Its keys, values and components are all there, and fit together."""
    check_recipe(RECIPES / "COMPONENT.toml")
