"""The laws of its kind, recipe and study without mistakes, and a fact of its own."""

from __future__ import annotations

from pathlib import Path

import torch

from cdlm.testing import build, check_recipe, check_study, conformance
from cdlm.testing.examples import condition, stream

RECIPES = Path(__file__).parents[1] / "recipes"

test_film = conformance("conditioning", "film")


def test_recipe_and_study_have_no_mistakes() -> None:
    """Their keys, values and components are all there, and fit together."""
    check_recipe(RECIPES / "film.toml")
    check_study(RECIPES / "studies" / "film.toml")


def test_at_first_nothing_is_changed() -> None:
    """W starts at 0, so a network that was trained without images goes on from there."""
    before = stream()
    assert torch.equal(build("conditioning", "film")(before, condition()).h, before.h)
