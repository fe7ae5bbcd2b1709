from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from cdlm.errors import CdlmError, DataError
from cdlm.parts.datasets.shapes.dataset import Shapes
from cdlm.parts.encoders.features import Features, PairedFeatures
from cdlm.parts.encoders.joined import Joined
from cdlm.parts.encoders.open_clip import OpenClip
from cdlm.places import assets_dir

SIZE, PATCH, WIDTH = 32, 8, 24
CONFIG: dict[str, Any] = {
    "embed_dim": WIDTH,
    "vision_cfg": {
        "image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": PATCH,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "squash"}


def write_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A folder as open_clip writes it, with a tiny model of random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | changes
    (folder / "arch.json").write_text(json.dumps(config))
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS})
    )
    torch.manual_seed(seed)
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    model = open_clip.CLIP(**arguments)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


@pytest.fixture
def architecture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny model's architecture, known to open_clip by name for one test."""
    from open_clip import factory

    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    path = folder.parent / "tiny-arch.json"
    (folder / "arch.json").rename(path)
    open_clip.add_model_config(path)
    return path.stem


@pytest.fixture
def bare(folder: Path) -> Path:
    """The tiny model's weights alone, away from the configuration."""
    path = folder.parent / "weights.safetensors"
    (folder / "open_clip_model.safetensors").rename(path)
    return path


def pictures(count: int = 3) -> list[Image.Image]:
    values = torch.randint(0, 256, (count, 40, 50, 3), generator=torch.Generator().manual_seed(1))
    return [Image.fromarray(x.to(torch.uint8).numpy()) for x in values]


def reference(folder: Path) -> Tensor:
    """What open_clip itself makes of the pictures."""
    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    with torch.no_grad():
        return model.eval().encode_image(torch.stack([prepare(x) for x in pictures()]))


def test_a_folder_gives_what_open_clip_gives(folder: Path) -> None:
    expected = reference(folder)
    for model in (str(folder), f"local-dir:{folder}"):
        encoder = OpenClip(model=model, normalize=False)
        assert encoder.shape() == (1, WIDTH)
        torch.testing.assert_close(encoder.encode(pictures()), expected[:, None])


def test_normalized_features_have_length_1_and_the_same_direction(folder: Path) -> None:
    got = OpenClip(model=str(folder)).encode(pictures())[:, 0]
    torch.testing.assert_close(got, torch.nn.functional.normalize(reference(folder), dim=-1))


def test_patches_follow_the_pooled_feature(folder: Path) -> None:
    encoder = OpenClip(model=str(folder), patches=True, normalize=False)
    tokens = encoder.encode(pictures())
    assert encoder.shape() == (1 + (SIZE // PATCH) ** 2, WIDTH)
    assert tokens.shape == (3, *encoder.shape())
    torch.testing.assert_close(tokens[:, :1], reference(folder)[:, None])


def test_patch_tokens_live_in_the_space_of_the_pooled_feature(tmp_path: Path) -> None:
    """Where a tower pools by averaging, its pooled feature is the mean of its patch tokens."""
    vision = CONFIG["vision_cfg"] | {"pool_type": "avg"}
    folder = write_model(tmp_path / "mean", vision_cfg=vision)
    tokens = OpenClip(model=str(folder), patches=True, normalize=False).encode(pictures())
    torch.testing.assert_close(tokens[:, 1:].mean(1), tokens[:, 0])


def test_patches_of_a_tower_that_has_none(tmp_path: Path) -> None:
    vision = {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}
    folder = write_model(tmp_path / "resnet", vision_cfg=vision)
    assert OpenClip(model=str(folder)).encode(pictures()).shape == (3, 1, WIDTH)
    with pytest.raises(CdlmError, match="not a plain ViT"):
        OpenClip(model=str(folder), patches=True).encode(pictures())


def test_the_batch_changes_no_feature(folder: Path) -> None:
    whole = OpenClip(model=str(folder)).encode(pictures(5))
    pieces = OpenClip(model=str(folder), batch=2).encode(pictures(5))
    torch.testing.assert_close(whole, pieces)
    assert OpenClip(model=str(folder)).encode([]).shape == (0, 1, WIDTH)


def test_a_shipped_model_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdlm.places.assets_dir", lambda: folder.parent)
    got = OpenClip(model="cdlm:tiny").encode(pictures())
    assert torch.equal(got, OpenClip(model=str(folder)).encode(pictures()))
    with pytest.raises(CdlmError, match='did you mean "tiny"'):
        OpenClip(model="cdlm:tinny").shape()


def test_a_bare_file_of_weights_with_a_warning(
    architecture: str, bare: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = OpenClip(model=architecture, pretrained=str(bare))
    with caplog.at_level(logging.WARNING, logger="cdlm"):
        assert encoder.encode(pictures()).shape == (3, 1, WIDTH)
    assert "does not say how it was trained" in caplog.text
    assert encoder.identity()["preprocess"]["mean"] == open_clip.OPENAI_DATASET_MEAN


def test_a_bare_pt_file_equals_safetensors(architecture: str, bare: Path) -> None:
    pt = bare.with_suffix(".pt")
    state = {f"module.{key}": value for key, value in load_file(bare).items()}
    torch.save({"epoch": 1, "state_dict": state}, pt)
    a, b = (OpenClip(model=architecture, pretrained=str(path)) for path in (bare, pt))
    assert torch.equal(a.encode(pictures()), b.encode(pictures()))


def test_weights_beside_their_configuration_must_use_it(architecture: str, folder: Path) -> None:
    weights = folder / "open_clip_model.safetensors"
    with pytest.raises(CdlmError, match=f'use model = "{folder}"'):
        OpenClip(model=architecture, pretrained=str(weights)).identity()


def test_a_tag_brings_its_activation_and_preprocessing(
    architecture: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = {"file": str(bare), "quick_gelu": True, "mean": (0.1, 0.2, 0.3)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, architecture, {"tag": tag})
    tagged = OpenClip(model=architecture, pretrained="tag")
    assert tagged.identity()["activation"] == "QuickGELU"
    assert tagged.identity()["preprocess"]["mean"] == (0.1, 0.2, 0.3)
    quick = tagged.encode(pictures())
    tag["quick_gelu"] = False
    assert not torch.allclose(
        quick, OpenClip(model=architecture, pretrained="tag").encode(pictures())
    )


def test_quick_gelu_against_a_tag_without_it(
    architecture: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, architecture, CONFIG | {"quick_gelu": True}
    )
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, architecture, {"tag": {"file": str(bare)}}
    )
    with pytest.raises(CdlmError, match="trained without it"):
        OpenClip(model=architecture, pretrained="tag").identity()


# --------------------------------------------------------------------------------- identity


def test_identity_needs_no_tower_and_no_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the tower was built")

    monkeypatch.setattr(open_clip, "create_model", refuse)
    here = OpenClip(model=str(folder)).identity()
    moved = folder.rename(folder.with_name("moved"))
    assert OpenClip(model=str(moved)).identity() == here
    assert json.loads(json.dumps(here))["activation"] == "GELU"


def test_identity_changes_with_all_that_changes_features(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain")
    weights = write_model(tmp_path / "weights", seed=1)
    quick = write_model(tmp_path / "quick", quick_gelu=True)
    mean = write_model(tmp_path / "mean")
    text = (mean / "open_clip_config.json").read_text().replace("0.25", "0.5")
    (mean / "open_clip_config.json").write_text(text)
    encoders = [OpenClip(model=str(x)) for x in (plain, weights, quick, mean)]
    encoders += [
        OpenClip(model=str(plain), patches=True),
        OpenClip(model=str(plain), normalize=False),
    ]
    assert len({json.dumps(encoder.identity(), sort_keys=True) for encoder in encoders}) == 6


# ----------------------------------------------------------------------------------- errors


def test_missing_weights_are_never_made_up(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no weights here; expected open_clip_model\.safetensors"):
        OpenClip(model=str(folder)).encode(pictures())
    with pytest.raises(CdlmError, match="features of random ones mean nothing"):
        OpenClip(model="ViT-B-32").encode(pictures())


@pytest.mark.parametrize(
    ("model", "pretrained", "parts"),
    [
        ("ViT-B-23", "openai", ["ViT-B-32", "open_clip.list_models()"]),
        ("vit-b-32", "openai", ["ViT-B-32"]),
        ("ViT-B-32", "opnai", ['did you mean "openai"', "laion2b_s34b_b79k", ".safetensors"]),
        ("./nowhere", "", ["no folder"]),
        ("hf-hub:x/y", "openai", ["no effect"]),
    ],
)
def test_unknown_models_and_tags(model: str, pretrained: str, parts: list[str]) -> None:
    with pytest.raises(CdlmError) as caught:
        OpenClip(model=model, pretrained=pretrained).identity()
    assert all(part in str(caught.value) for part in parts), caught.value


def test_which_of_several_weights(folder: Path) -> None:
    weights = folder / "open_clip_model.safetensors"
    (folder / "b.safetensors").write_bytes(weights.read_bytes())
    assert OpenClip(model=str(folder)).shape() == (1, WIDTH)  # the well-known name is taken
    weights.rename(folder / "a.safetensors")
    with pytest.raises(DataError, match=r"a\.safetensors, b\.safetensors"):
        OpenClip(model=str(folder)).shape()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"model_cfg": {"embed_dim": 4, "vision_cfg": {"x": 1}}}']
)
def test_a_damaged_configuration(folder: Path, text: str) -> None:
    (folder / "open_clip_config.json").write_text(text)
    with pytest.raises(DataError, match="as open_clip writes it"):
        OpenClip(model=str(folder)).shape()


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    path = folder / "open_clip_model.safetensors"
    state = load_file(path)
    state.pop("visual.proj")
    save_file(state, path)
    with pytest.raises(DataError, match="can't be loaded as"):
        OpenClip(model=str(folder)).encode(pictures())


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="can't be loaded as"):
        OpenClip(model=str(folder)).encode(pictures())


def test_weights_that_hold_code_are_refused(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": {"x": Path("pickled object")}}, path)
    with pytest.raises(DataError, match="can't be loaded as"):
        OpenClip(model=architecture, pretrained=str(path)).encode(pictures())


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_position_embeddings_are_never_resized(folder: Path, suffix: str) -> None:
    weights = folder / "open_clip_model.safetensors"
    if suffix == ".bin":
        torch.save(load_file(weights), folder / "open_clip_pytorch_model.bin")
        weights.unlink()
    config = folder / "open_clip_config.json"
    config.write_text(config.read_text().replace('"image_size": 32', '"image_size": 48'))
    with pytest.raises(DataError, match=r"weights for 16 patches, but .* cuts an image into 36"):
        OpenClip(model=str(folder)).encode(pictures())


# --------------------------------------------------------------------------- ready features

IDS = ["a.jpg", "b.jpg", "c.jpg"]


def write_features(
    path: Path, tensor: Tensor, ids: object = IDS, name: str = "features"
) -> Features:
    metadata = {} if ids is None else {"image_ids": json.dumps(ids), "encoder": "made up"}
    save_file({name: tensor}, path, metadata=metadata)
    return Features(path=str(path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)])
def test_features_are_found_by_id(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    table = 1000 * torch.arange(3 * 8).reshape(3, 8)[:, : torch.Size(shape[1:]).numel()]
    table = table.reshape(shape).to(dtype)
    encoder = write_features(tmp_path / "f.safetensors", table)
    assert encoder.shape() == ((1, 4) if len(shape) == 2 else (2, 4))
    got = encoder.lookup(["c.jpg", "a.jpg", "c.jpg"])
    assert got.dtype == torch.float32
    assert torch.equal(got, table[[2, 0, 2]].float().reshape(3, *encoder.shape()))


def test_ids_without_features_are_counted_and_named(tmp_path: Path) -> None:
    encoder = write_features(tmp_path / "f.safetensors", torch.ones(3, 4))
    with pytest.raises(DataError) as caught:
        encoder.lookup(["a.jpg", "b.jpeg", "x", "y", "z"])
    message = str(caught.value)
    assert "no features for 4 of 5 images: b.jpeg, x, y, ..." in message
    assert 'nearest to the first: "b.jpg"' in message


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        (None, "must hold \"image_ids\".*\n?.*no metadata"),
        (["a.jpg"], "1 image_ids, but 3 rows"),
        (["a.jpg", "b.jpg", "a.jpg"], '"a.jpg" stands twice'),
        ([1, 2, 3], "list of strings"),
    ],
)  # fmt: skip
def test_ids_that_do_not_fit(tmp_path: Path, ids: object, why: str) -> None:
    with pytest.raises(DataError, match=why):
        write_features(tmp_path / "f.safetensors", torch.ones(3, 4), ids).lookup(["b.jpg"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    table = torch.ones(3, 4)
    table[1, 2] = value
    encoder = write_features(tmp_path / "f.safetensors", table)
    assert encoder.lookup(["a.jpg", "c.jpg"]).shape == (2, 1, 4)
    with pytest.raises(DataError, match=r"NaN or infinity in 1 features: b\.jpg"):
        encoder.lookup(IDS)


def test_tensors_of_another_form(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    with pytest.raises(DataError, match="type I64; allowed: F16"):
        write_features(path, torch.ones(3, 4, dtype=torch.int64)).shape()
    with pytest.raises(DataError, match=r"shape \[3\]"):
        write_features(path, torch.ones(3)).shape()
    with pytest.raises(DataError, match='did you mean "feature"'):
        write_features(path, torch.ones(3, 4), name="feature").shape()


def test_files_that_are_no_feature_files(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(DataError, match="not a whole safetensors file"):
        Features(path=str(path)).identity()
    with pytest.raises(DataError, match=f'did you mean "{path}"'):
        Features(path=str(tmp_path / "g.safetensors")).identity()


def test_identity_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    one = write_features(path, torch.ones(3, 4)).identity()
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    assert Features(path=str(copy)).identity() == one
    assert write_features(path, torch.zeros(3, 4)).identity() != one


def test_ready_features_encode_nothing(tmp_path: Path) -> None:
    encoder = write_features(tmp_path / "f.safetensors", torch.ones(3, 4))
    with pytest.raises(CdlmError, match="can't encode new photos"):
        encoder.encode(pictures(1))


def paired(folder: Path, width: int = 4, texts: object = ("a dog", "a cat")) -> PairedFeatures:
    write_features(folder / "images.safetensors", torch.rand(3, 4))
    rows = torch.arange(2.0 * width).view(2, width)
    path = folder / "captions.safetensors"
    save_file({"features": rows}, path, metadata={"captions": json.dumps(texts)})
    return PairedFeatures(path=str(folder / "images.safetensors"), captions=str(path))


def test_captions_are_found_by_their_text(tmp_path: Path) -> None:
    encoder = paired(tmp_path)
    assert encoder.texts(["a cat", "a dog", "a cat"])[:, 0, 0].tolist() == [4, 0, 4]
    with pytest.raises(DataError, match=r"no features for 1 of 2 captions: a dig\n.*\"a dog\""):
        encoder.texts(["a dig", "a cat"])


def test_images_and_captions_must_be_of_one_width(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="features of 1 x 5, and images of width 4"):
        paired(tmp_path, width=5).shape()


def test_features_of_images_read_no_captions(tmp_path: Path) -> None:
    encoder = write_features(tmp_path / "f.safetensors", torch.ones(3, 4))
    with pytest.raises(CdlmError, match="paired_features"):
        encoder.texts(["a dog"])


# --------------------------------------------------------------------------------------- joined


def test_a_pooled_feature_stands_beside_every_token_of_a_grid(tmp_path: Path) -> None:
    grid = write_features(tmp_path / "grid.safetensors", torch.randn(3, 4, 6))
    pooled = write_features(tmp_path / "pooled.safetensors", 100 * torch.randn(3, 5))
    both = Joined(of=[grid, pooled])
    ids = IDS[1::-1]
    found = both.lookup(ids)
    assert found is not None and found.shape == (2, *both.shape()) == (2, 4, 11)
    assert torch.equal(found[..., :6], F.layer_norm(grid.lookup(ids), [6]))
    assert torch.equal(found[..., 6:], F.layer_norm(pooled.lookup(ids), [5]).expand(-1, 4, -1))
    assert both.identity() != Joined(of=[pooled, grid]).identity()


def test_joined_encoders_have_equally_many_tokens_or_one(tmp_path: Path) -> None:
    one = write_features(tmp_path / "one.safetensors", torch.randn(3, 4, 6))
    other = write_features(tmp_path / "other.safetensors", torch.randn(3, 9, 6))
    with pytest.raises(ValueError, match="4 x 6, 9 x 6; expected 1 token or as many"):
        Joined(of=[one, other])
    with pytest.raises(ValueError, match="two encoders or more, got 1"):
        Joined(of=[one])


def test_joined_encoders_that_compute(tmp_path: Path, folder: Path) -> None:
    clip = OpenClip(model=str(folder))
    both = Joined(of=[clip, clip])
    assert both.lookup(IDS[:1]) is None
    images = pictures(2)
    assert torch.equal(
        both.encode(images)[..., : clip.shape()[1]],
        F.layer_norm(clip.encode(images), [clip.shape()[1]]),
    )
    ready = write_features(tmp_path / "f.safetensors", torch.randn(3, 6))
    with pytest.raises(CdlmError, match="some of its encoders have ready features, and some"):
        Joined(of=[clip, ready]).lookup(IDS[:1])


# ------------------------------------------------------------------------------------- captions


def test_the_shipped_model_tells_captions_apart() -> None:
    """It finds the right one of 32 captions for at least 29 of 32 held-out scenes."""
    encoder, split = OpenClip(model="cdlm:shapes_clip"), Shapes(train=8, held_out=32).split("val")
    images = encoder.encode(split.images(range(32)))[:, 0]
    texts = encoder.texts([captions[0] for captions in split.captions])[:, 0]
    found = (images @ texts.T).argmax(1) == torch.arange(32)
    assert int(found.sum()) >= 29
    assert torch.allclose(texts.norm(dim=1), torch.ones(32))


@pytest.mark.parametrize("normalize", [True, False])
def test_captions_are_what_open_clip_makes_of_them(normalize: bool) -> None:
    """Its own tokenizer and text tower, whatever the batch; no caption, no feature."""
    folder = assets_dir() / "shapes_clip"
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    words = open_clip.get_tokenizer(f"local-dir:{folder}")
    captions = ["a red circle", "two small blue squares", "a circle above a triangle"]
    with torch.no_grad():
        wanted = model.encode_text(words(captions), normalize=normalize)
    encoder = OpenClip(model="cdlm:shapes_clip", normalize=normalize, batch=2)
    assert_close(encoder.texts(captions)[:, 0], wanted, rtol=1e-5, atol=1e-5)
    assert encoder.texts([]).shape == (0, 1, encoder.shape()[1])


def test_a_model_with_fewer_words_than_its_tokenizer_reads_no_captions(folder: Path) -> None:
    with pytest.raises(CdlmError, match="hf_tokenizer_name"):
        OpenClip(model=str(folder)).texts(["a dog"])
