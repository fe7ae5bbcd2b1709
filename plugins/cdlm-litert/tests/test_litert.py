"""A layer's fields are what the network says of an image, and a projection can be found again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cdlm_litert.command import fit_projection
from cdlm_litert.encoder import LiteRt
from cdlm_litert.fit import fit
from cdlm_litert.projection import Projection
from networks import SCALE, SIDE, ZERO, averages
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

from cdlm.errors import CdlmError
from cdlm.parts.encoders.features import Features
from cdlm.testing import build, laws


def noise(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Pixels by chance; size is width and height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def quarters(image: Image.Image) -> torch.Tensor:
    """The mean colour of each quarter, row by row: 4 3, 0 to 255."""
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32))
    height, width, _ = pixels.shape
    blocks = pixels.view(2, height // 2, 2, width // 2, 3)
    return blocks.mean((1, 3)).flatten(0, 1)


@pytest.mark.parametrize("law", laws("encoder").values(), ids=laws("encoder"))
@pytest.mark.parametrize("layer", ["", "fields"])
def test_it_keeps_the_laws(law: Callable[[Any], None], layer: str, network: str) -> None:
    law(build("encoder", "litert", model=network, layer=layer, grid=2 if layer else 1))


def test_a_layer_is_a_grid_of_fields_row_by_row(network: str) -> None:
    """In floating point black is -1 and white 1."""
    images = [noise(seed) for seed in range(3)]
    encoder = LiteRt(model=network, layer="fields", grid=2)
    wanted = torch.stack([quarters(image) for image in images]) / 127.5 - 1
    assert_close(encoder.encode(images), wanted)
    assert encoder.shape() == (4, 3)


@pytest.mark.parametrize("type_", ["uint8", "int8"])
def test_networks_in_whole_numbers_get_pixels_as_they_are(tmp_path: Path, type_: str) -> None:
    """What a layer says is in its own units; averages are rounded in the network."""
    path = averages(tmp_path / "whole.tflite", type_)
    found = LiteRt(model=path, layer="fields", grid=2).encode([noise()])[0]
    first = 0 if type_ == "uint8" else -128
    assert_close(found, SCALE * (quarters(noise()) + first - ZERO[type_]), atol=SCALE / 2, rtol=0)


def test_without_a_layer_it_is_what_comes_out_last(network: str) -> None:
    encoder = LiteRt(model=network)
    assert encoder.shape() == (1, 3)
    assert_close(encoder.encode([noise()])[0, 0], quarters(noise()).mean(0) / 127.5 - 1)


def test_images_are_squeezed_to_the_size_that_it_takes(tmp_path: Path) -> None:
    path = averages(tmp_path / "wide.tflite", size=(8, 24))
    red = Image.new("RGB", (50, 70), (255, 0, 0))
    assert_close(LiteRt(model=path).encode([red])[0, 0], torch.tensor([1.0, -1.0, -1.0]))
    right = Image.new("RGB", (48, 16))
    right.paste((255, 255, 255), (24, 0, 48, 16))
    found = LiteRt(model=path, layer="fields", grid=2).encode([right])[0, :, 0]
    assert found[0] == found[2] < -0.9 and found[1] == found[3] > 0.9


def test_a_projection_follows(network: str, tmp_path: Path) -> None:
    one = Projection(torch.randn(5, 3).half().float(), torch.randn(5).half().float())
    one.save(tmp_path / "projection.safetensors")
    kept = {"model": network, "layer": "fields", "grid": 2}
    plain = LiteRt(**kept)
    whole = LiteRt(**kept, projection=str(tmp_path / "projection.safetensors"))
    assert whole.shape() == (4, 5)
    assert_close(whole.encode([noise()]), plain.encode([noise()]) @ one.weight.T + one.bias)
    assert whole.identity() != plain.identity()


def test_its_place_in_the_cache_rests_on_all_that_changes_it(network: str, tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {"model": network, "layer": "fields"},
        {"model": network, "layer": "whole/mean"},
        {"model": network, "layer": "fields", "grid": 2},
        {"model": averages(tmp_path / "other.tflite", "uint8"), "layer": "fields"},
    ]
    assert len({json.dumps(LiteRt(**it).identity(), sort_keys=True) for it in given}) == len(given)


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "{}/avarages.tflite"}, "did you mean .*averages.tflite"),
        ({"model": "{}/words.txt"}, "words.txt: not a network that LiteRT can run"),
        ({"layer": "feilds/pool"}, 'has no "feilds/pool"\n    nearest of its .*: fields/pool'),
        ({"layer": "fields", "grid": 5}, "encoder.grid: fields/pool is 1x4x4x3"),
        ({"grid": 2}, "encoder.grid: whole/mean is 1x3"),
        ({"projection": "{}/none.safetensors"}, "encoder.projection: no file"),
        ({"projection": "{}/words.txt"}, "expected the tensors weight and bias"),
        (
            {"projection": "{}/other.safetensors"},
            r"weight \[2, 7\] and bias \[2\]; expected C' x 3",
        ),
    ],
)
def test_what_is_wrong_is_said(
    given: dict[str, Any], said: str, network: str, tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_text("a dog runs over the grass and into the water")
    Projection(torch.ones(2, 7), torch.ones(2)).save(tmp_path / "other.safetensors")
    filled = {
        name: it.format(tmp_path) if isinstance(it, str) else it for name, it in given.items()
    }
    with pytest.raises(CdlmError, match=said):
        LiteRt(**({"model": network} | filled)).encode([noise()])


def test_captions_are_refused(network: str) -> None:
    with pytest.raises(CdlmError, match="knows images only"):
        LiteRt(model=network).texts(["a dog"])


# --------------------------------------------------------------------------------- fit-projection


def ready(encoder: LiteRt, photos: Path, to: Path) -> Features:
    """The features of these photos, as a file."""
    names = sorted(path.name for path in photos.iterdir())
    found = encoder.encode([Image.open(photos / name).convert("RGB") for name in names])
    save_file({"features": found}, to, metadata={"image_ids": json.dumps(names)})
    return Features(path=str(to))


def test_a_projection_is_found_again(network: str, photos: Path, tmp_path: Path) -> None:
    lost = Projection(torch.randn(5, 3), torch.randn(5))
    lost.save(tmp_path / "lost.safetensors")
    whole = LiteRt(
        model=network, layer="fields", grid=4, projection=str(tmp_path / "lost.safetensors")
    )
    file = ready(whole, photos, tmp_path / "ready.safetensors")
    found = fit(LiteRt(model=network, layer="fields", grid=4), file, photos, file.ids())
    assert_close(found.weight, lost.weight, atol=2e-3, rtol=2e-3)
    assert_close(found.bias, lost.bias, atol=2e-3, rtol=2e-3)


def command(network: str, photos: Path, grid: int = 2) -> None:
    here = photos.parent
    fit_projection(
        model=Path(network),
        features=here / "ready.safetensors",
        photos=photos,
        out=here / "found.safetensors",
        layer="fields",
        grid=grid,
    )


def test_the_command_says_how_well_it_fits_what_it_has_not_seen(
    network: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = LiteRt(model=network, layer="fields", grid=2)
    ready(encoder, photos, tmp_path / "ready.safetensors")
    command(network, photos)
    said = capsys.readouterr().out
    assert "fitted to 54 photos" in said and "6 others" in said
    found = LiteRt(
        model=network, layer="fields", grid=2, projection=str(tmp_path / "found.safetensors")
    )
    assert_close(found.encode([noise()]), encoder.encode([noise()]), atol=2e-3, rtol=2e-3)


def test_features_of_other_photos_are_told_apart(
    network: str, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ready(LiteRt(model=network, layer="fields", grid=2), photos, tmp_path / "ready.safetensors")
    command(network, photos)
    assert caplog.text == ""
    names = sorted(path.name for path in photos.iterdir())
    shuffled = torch.randn(len(names), 4, 3)
    place = tmp_path / "ready.safetensors"
    save_file({"features": shuffled}, place, metadata={"image_ids": json.dumps(names)})
    command(network, photos)
    assert "these features are not of this layer" in caplog.text


def test_a_projection_takes_more_photos_than_it_has_unknowns(
    network: str, photos: Path, tmp_path: Path
) -> None:
    encoder = LiteRt(model=network)
    file = ready(encoder, photos, tmp_path / "ready.safetensors")
    with pytest.raises(CdlmError, match="3 photos to fit to; a layer of width 3 takes at least 4"):
        fit(encoder, file, photos, file.ids()[:3])


def test_features_of_another_grid_have_no_projection(
    network: str, photos: Path, tmp_path: Path
) -> None:
    ready(LiteRt(model=network, layer="fields", grid=2), photos, tmp_path / "ready.safetensors")
    with pytest.raises(CdlmError, match=r"--grid: 16 tokens of an image, and .* has 4"):
        command(network, photos, grid=4)


def test_without_photos_there_is_nothing_to_fit_to(
    network: str, photos: Path, tmp_path: Path
) -> None:
    ready(LiteRt(model=network, layer="fields", grid=2), photos, tmp_path / "ready.safetensors")
    for path in photos.iterdir():
        path.unlink()
    with pytest.raises(CdlmError, match="has none of the photos"):
        command(network, photos)
