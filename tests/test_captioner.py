"""The Python API: images in, captions out; equal calls give equal captions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Finished
from PIL import Image
from torch import Tensor

import cdlm
from cdlm.captioner import Captioner
from cdlm.errors import CdlmError, DataError, RecipeError, RunError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures of different colours."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{colour}.png" for colour in ("red", "green", "blue")]
    for path in paths:
        Image.new("RGB", (96, 96), path.stem).save(path)
    return paths


@pytest.fixture(scope="module")
def features(captioner: Captioner) -> Tensor:
    """Forty features at random, of the shape that the encoder gives. B N C."""
    return torch.randn(40, *captioner._job.parts.encoder.shape(), generator=rng())


def test_a_path_a_text_and_a_picture_are_one_image(
    captioner: Captioner, photos: list[Path]
) -> None:
    caption = captioner(photos[0])
    assert isinstance(caption, str)
    assert captioner(str(photos[0])) == caption
    with Image.open(photos[0]) as picture:
        assert captioner(picture) == caption


def test_a_list_gives_a_list_in_its_order(captioner: Captioner, photos: list[Path]) -> None:
    captions = captioner(photos)
    assert [type(caption) for caption in captions] == [str] * 3
    with Image.open(photos[0]) as first:
        assert captioner([first, str(photos[1]), photos[2]]) == captions
    assert captioner(tuple(photos)) == captions
    assert captioner([photos[0]]) == [captioner(photos[0])]
    assert captioner([]) == []


def test_equal_seeds_give_equal_captions_and_others_do_not(
    captioner: Captioner, features: Tensor
) -> None:
    again = [captioner.of_features(features, seed=seed) for seed in (0, 0, 1)]
    assert again[0] == again[1]
    assert again[0] != again[2]


def test_captions_of_features_are_those_of_their_images(
    captioner: Captioner, photos: list[Path]
) -> None:
    pictures = [Image.open(photo) for photo in photos]
    features = captioner._job.parts.encoder.encode(pictures)
    assert captioner.of_features(features, seed=3) == captioner(photos, seed=3)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 5},
        {"sampler": "ddim"},
        {"sampler": {"use": "ddim", "eta": 0.5}},
        {"guidance": 4.0},
    ],
    ids=str,
)
def test_every_option_has_an_effect_and_leaves_no_trace(
    captioner: Captioner, features: Tensor, options: dict[str, object]
) -> None:
    before = captioner.of_features(features)
    assert captioner.of_features(features, **options) != before  # type: ignore[arg-type]
    assert captioner.of_features(features) == before


def test_what_the_recipe_says_may_be_said_again(captioner: Captioner, features: Tensor) -> None:
    same = captioner.of_features(features, steps=2, sampler="ddpm", guidance=1.5, seed=0)
    assert same == captioner.of_features(features)


def test_other_options_share_the_weights(captioner: Captioner) -> None:
    job = captioner._job
    other = job.sampling(["sampler.steps=7"])
    assert other.parts.sampler.steps == 7
    assert other.parts.network is job.parts.network
    assert other.parts.guidance is job.parts.guidance


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "dpm"}, 'no sampler is called "dpm"\n    did you mean "ddpm"?'),
        ({"steps": 0}, "sampler.steps: expected a whole number above 0, got 0"),
        ({"sampler": {"use": "ddim", "etta": 1}}, 'did you mean "eta"?'),
        ({"guidance": -1.0}, "guidance.scale: expected a number at least 0"),
        ({"guidance": float("nan")}, "guidance.scale: expected a finite number"),
    ],
    ids=str,
)
def test_a_wrong_option_names_the_right_ones(
    captioner: Captioner, features: Tensor, options: dict[str, object], words: str
) -> None:
    with pytest.raises(RecipeError) as said:
        captioner.of_features(features, **options)  # type: ignore[arg-type]
    assert words in str(said.value)


def test_guidance_needs_a_run_that_withheld_images(tiny_run: Finished) -> None:
    job = Captioner.load(tiny_run.path, "cpu")._job.sampling(["guidance={ use = 'none' }"])
    features = torch.randn(2, *job.parts.encoder.shape())
    blind = Captioner(job)  # its guidance is now "none", and drops nothing
    with pytest.raises(CdlmError, match="without the image"):
        blind.of_features(features, guidance=2.0)
    assert blind.of_features(features, guidance=1.0) == blind.of_features(features)


def test_a_run_without_guidance_that_withheld_images_can_be_guided(tiny_run: Finished) -> None:
    job = Captioner.load(tiny_run.path, "cpu")._job
    features = torch.randn(20, *job.parts.encoder.shape(), generator=rng())
    plain = Captioner(job.sampling(["guidance={ use = 'none', drop = 0.1 }"]))
    assert plain.of_features(features, guidance=1.5) == Captioner(job).of_features(features)


def test_unreadable_images_are_named(captioner: Captioner, photos: list[Path]) -> None:
    wrong = photos[0].with_name("redd.png")
    with pytest.raises(DataError, match=r"redd\.png: no such photo\n.*red\.png"):
        captioner([photos[0], wrong])


def test_features_of_another_shape_are_refused(captioner: Captioner) -> None:
    with pytest.raises(ValueError, match=r"expected B x \(1, \d+\), got \(2, 3\)"):
        captioner.of_features(torch.randn(2, 3))


def test_a_run_that_is_not_there_names_those_that_are(tiny_run: Finished) -> None:
    with pytest.raises(RunError, match=tiny_run.path.name):
        cdlm.Captioner.load(tiny_run.path.parent / "default")


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
