"""The doctor of features: each sickness is made, and found; health is called health."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Command
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from cdlm.checkup import CERTAIN, FAINT, alignment, pairs, rows
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
    found = [*rows(IMAGES[:, None], "images"), *alignment(IMAGES, SPLIT)]
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
    for moved_rows in (IMAGES.roll(moved, 0), IMAGES[torch.randperm(120, generator=rng())]):
        assert status(alignment(moved_rows, SPLIT)) == {"rows against captions": "bad"}
    found = status(pairs(IMAGES.roll(moved, 0), CAPTIONS, SPLIT))
    assert found["captions: own image"] == "bad"


def test_neighbours_that_are_a_little_alike_do_not_hide_moved_rows() -> None:
    """Of many photos a trace of likeness is certain, and still says that the rows are wrong."""
    data = Shapes(train=4, held_out=1000).split("val")
    means = torch.stack([sum(map(of_text, texts), torch.zeros(32)) for texts in data.captions])
    trace = means - means.mean(0) + 6 * means.std() * torch.randn(1000, 32, generator=rng(3))
    (found,) = alignment(trace, data)
    correlation, certain = map(float, re.findall(r"[\d.]+(?=,| standard)", found.text))
    assert certain > CERTAIN and correlation < FAINT and found.status == "bad"


@pytest.mark.parametrize("by_name", [True, False])
def test_rows_moved_behind_a_lost_photo_are_found(by_name: bool) -> None:
    """Most rows are right, so that the whole still looks well: only a part gives it away.

    In the order of the names, or in that of the split.
    """
    draw = torch.randperm(120, generator=rng(7)).tolist() if by_name else list(range(120))
    ids = [f"{place:03}" for place in draw] if by_name else [str(i * 7919 % 997) for i in draw]
    order = torch.tensor(draw).argsort()  # the file's rows
    behind = order[72:]
    moved = IMAGES.index_copy(0, behind, IMAGES[behind].roll(1, 0))
    split: Any = SimpleNamespace(captions=SPLIT.captions, ids=ids)
    assert set(status(alignment(IMAGES, split)).values()) == {"ok"}
    found = alignment(moved, split)
    assert status(found) == {"rows against captions": "ok", "stretches of rows": "bad"}
    first, last = re.findall(r"(\S+) to (\S+)$", found[1].text)[0]
    assert {ids.index(first), ids.index(last)} <= set(behind.tolist())


def test_swapped_images_and_captions_are_found() -> None:
    """A cache with a row for each caption, as CLIP-Diffusion-LM's: the image's row repeated stands
    where captions should, and then all captions of an image have one feature."""
    found = status(pairs(CAPTIONS[OWNER.bincount().cumsum(0) - 1], IMAGES[OWNER], SPLIT))
    assert found["captions: differ"] == "bad"


def test_captions_in_the_place_of_images_are_found() -> None:
    """Each image has the feature of its first caption: it fits its captions all too well."""
    first = OWNER.bincount().cumsum(0) - OWNER.bincount()
    found = {it.name: it for it in pairs(CAPTIONS[first], CAPTIONS, SPLIT)}
    assert found["images: not captions"].status == "bad"
    assert "100% of images" in found["images: not captions"].text
    assert found["captions: own image"].status == found["captions: differ"].status == "ok"


def test_the_gap_between_images_and_captions_is_told() -> None:
    """Unit vectors to the east and to the north: their means are sqrt(2) apart."""
    split: Any = SimpleNamespace(captions=[["a"], ["b"]])
    east, north = (2 * torch.eye(2)[[i, i]] for i in range(2))
    assert "are 1.41 apart" in pairs(east, north, split)[-1].text
    assert "are 0.00 apart" in pairs(east, east, split)[-1].text


def test_captions_of_another_model_are_found() -> None:
    other = F.normalize(torch.randn(len(CAPTIONS), 32, generator=rng(9)), dim=1)
    assert status(pairs(IMAGES, other, SPLIT))["captions: own image"] == "bad"


def test_a_few_images_are_too_few_to_tell() -> None:
    few: Any = SimpleNamespace(captions=SPLIT.captions[:10], ids=SPLIT.ids[:10])
    assert status(alignment(IMAGES[:10], few)) == {"rows against captions": "warn"}
    some: Any = SimpleNamespace(captions=SPLIT.captions[:50], ids=SPLIT.ids[:50])
    assert status(alignment(IMAGES[:50], some))["stretches of rows"] == "warn"


def test_features_that_fit_little_are_not_judged_part_by_part() -> None:
    weak = F.normalize(IMAGES + 0.25 * torch.randn(120, 32, generator=rng(5)), dim=1)
    whole, parts = alignment(weak, SPLIT)
    assert (whole.status, parts.status) == ("ok", "warn") and "too little" in parts.text


def test_the_command_examines_a_recipe_s_features(
    tiny_recipe: Path, tmp_path: Path, cdlm: Command
) -> None:
    """The tiny recipe's features are random: they do not fit their captions. Right ones do."""
    small = ("--set", "dataset.held_out=120")
    said = cdlm("doctor", tiny_recipe)
    assert said.code in (0, 1) and "too few" in said.out
    path = tmp_path / "right.safetensors"
    for features, code, expected in (
        (IMAGES, 0, "ok    val rows against captions"),
        (IMAGES.roll(5, 0), 1, "bad   val rows against captions"),
        (IMAGES[:119], 1, "no features for 1 of 120 images"),
        (IMAGES.index_fill(0, torch.tensor([3]), torch.nan), 1, "NaN or infinity in 1 features"),
    ):
        ids = {"image_ids": json.dumps(SPLIT.ids[: len(features)])}
        save_file({"features": features.contiguous()}, path, metadata=ids)
        chosen = ("--split", "val", "--set", f'encoder.path="{path}"')
        said = cdlm("doctor", tiny_recipe, *small, *chosen)
        assert said.code == code and expected in said.out, said.out + said.err
    said = cdlm("doctor", tiny_recipe, *small, "--set", f'encoder.path="{path}"')
    assert said.code == 1 and "bad   train features" in said.out  # training is examined too


@pytest.mark.parametrize("option", [("--set", "seed=1"), ("--split", "val")])
def test_an_option_without_a_recipe_is_refused(cdlm: Command, option: tuple[str, str]) -> None:
    said = cdlm("doctor", *option)
    assert said.code == 2 and f"{option[0]} is for a recipe" in said.err
