"""The laws of its kind, and a recipe and a study without mistakes."""

from __future__ import annotations

from pathlib import Path

from cdlm.testing import check_recipe, check_study, conformance

RECIPES = Path(__file__).parents[1] / "recipes"

test_COMPONENT = conformance("KIND", "COMPONENT")


def test_recipe_and_study_have_no_mistakes() -> None:
    """Their keys, values and components are all there, and fit together."""
    check_recipe(RECIPES / "COMPONENT.toml")
    check_study(RECIPES / "studies" / "COMPONENT.toml")
