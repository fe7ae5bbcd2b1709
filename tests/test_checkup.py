"""The doctor of features: each sickness is made, and found; health is called health."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Command
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from cdlm.checkup import alignment, pairs, rows
from cdlm.parts.datasets.shapes.dataset import Shapes
from cdlm.testing.examples import rng

SPLIT = Shapes(train=4, held_out=120).split("val")
WORDS = sorted({word for texts in SPLIT.captions for text in texts for word in text.split()})
SPACE = torch.randn(len(WORDS), 32, generator=rng())  # a random vector for every word


def of_text(text: str) -> Tensor:
    return sum((SPACE[WORDS.index(word)] for word in text.split()), torch.zeros(32))


CAPTIONS = F.normalize(torch.stack([of_text(t) for texts in SPLIT.captions for t in texts]), dim=1)
OWNER = torch.tensor([i for i, texts in enumerate(SPLIT.captions) for _ in texts])
IMAGES = F.normalize(
    torch.zeros(120, 32).index_add(0, OWNER, CAPTIONS)
    + 0.3 * torch.randn(120, 32, generator=rng(1)),
    dim=1,
)


def status(found: list[Any]) -> dict[str, str]:
    return {it.name: it.status for it in found}


def test_healthy_features_are_called_so() -> None:
    found = [*rows(IMAGES[:, None], "images"), alignment(IMAGES, SPLIT)]
    found += [*rows(CAPTIONS[:, None], "captions"), *pairs(IMAGES, CAPTIONS, SPLIT)]
    assert set(status(found).values()) == {"ok"}, found


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        (lambda x: x.index_fill(0, torch.tensor([3]), torch.nan), "images: numbers", "bad"),
        (lambda x: x * torch.linspace(1, 9, len(x))[:, None], "images: length", "warn"),
        (lambda x: x.index_fill(0, torch.tensor([3]), 0.0), "images: length", "bad"),
        (lambda x: x[torch.arange(len(x)) // 5], "images: rows", "bad"),
        (lambda x: F.pad(x, (0, 40), value=1.0), "images: columns", "bad"),
    ],
)
def test_what_is_wrong_with_rows_is_found(change: Any, name: str, expected: str) -> None:
    assert status(rows(change(IMAGES)[:, None], "images"))[name] == expected


@pytest.mark.parametrize("moved", [1, -1, 17])
def test_rows_in_another_order_than_their_names_are_found(moved: int) -> None:
    assert alignment(IMAGES.roll(moved, 0), SPLIT).status == "bad"
    assert alignment(IMAGES[torch.randperm(120, generator=rng())], SPLIT).status == "bad"
    found = status(pairs(IMAGES.roll(moved, 0), CAPTIONS, SPLIT))
    assert found["captions: own image"] == "bad"


def test_swapped_images_and_captions_are_found() -> None:
    """A cache with a row for each caption, as CLIP-Diffusion-LM's: the image's row repeated stands
    where captions should, and then all captions of an image have one feature."""
    found = status(pairs(CAPTIONS[OWNER.bincount().cumsum(0) - 1], IMAGES[OWNER], SPLIT))
    assert found["captions: differ"] == "bad"


def test_captions_of_another_model_are_found() -> None:
    other = F.normalize(torch.randn(len(CAPTIONS), 32, generator=rng(9)), dim=1)
    assert status(pairs(IMAGES, other, SPLIT))["captions: own image"] == "bad"


def test_a_few_images_are_too_few_to_tell() -> None:
    few = SimpleNamespace(captions=SPLIT.captions[:10])
    assert alignment(IMAGES[:10], few).status == "warn"  # type: ignore[arg-type]


def test_the_command_examines_a_recipe_s_features(
    tiny_recipe: Path, tmp_path: Path, cdlm: Command
) -> None:
    """The tiny recipe's features are random: they do not fit their captions. Right ones do."""
    small = ("--set", "dataset.held_out=120")
    said = cdlm("doctor", tiny_recipe)
    assert said.code in (0, 1) and "too few" in said.out
    path = tmp_path / "right.safetensors"
    for features, code, expected in (
        (IMAGES, 0, "ok    rows"),
        (IMAGES.roll(5, 0), 1, "bad   rows"),
    ):
        ids = {"image_ids": json.dumps(SPLIT.ids)}
        save_file({"features": features.contiguous()}, path, metadata=ids)
        said = cdlm("doctor", tiny_recipe, *small, "--set", f'encoder.path="{path}"')
        assert said.code == code and f"{expected} against captions" in said.out, said.out + said.err


def test_a_set_without_a_recipe_is_refused(cdlm: Command) -> None:
    said = cdlm("doctor", "--set", "seed=1")
    assert said.code == 2 and "without one" in said.err
