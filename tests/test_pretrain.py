"""The recipe of the shipped encoder, and the batches that it learns from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Generator

from cdlm import pretrain
from cdlm.errors import CdlmError, RunError
from cdlm.parts.datasets.shapes.language import vocabulary
from cdlm.parts.datasets.shapes.scenes import CANVAS, sample_codes, split_of
from cdlm.parts.encoders.open_clip import OpenClip
from cdlm.places import assets_dir
from cdlm.pretrain import accuracy, loss, make, read, relatives

SHIPPED = assets_dir() / "shapes_clip"
RECIPE = Path(pretrain.__file__).parents[1] / "recipes" / "encoders" / "shapes_clip.toml"
SMALL = """
[model]
embed_dim = 8
vision_cfg = { image_size = 96, patch_size = 48, width = 16, layers = 1, head_width = 8 }
text_cfg = { context_length = 30, width = 16, heads = 2, layers = 1 }

[train]
steps = 4
families = 3
relatives = 4
warmup = 4
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_relatives_are_the_scene_itself_and_scenes_of_train() -> None:
    rng = Generator().manual_seed(0)
    codes = sample_codes(50, "train", torch.tensor([0.2, 0.5, 0.3]), rng)
    kin = relatives(codes, 8, rng)
    content = kin.content().view(50, 8)
    assert torch.equal(content[:, 0], codes.content())
    assert split_of(kin, "train").all()
    # where an edit would lead into val or test, the scene itself stands again
    assert (content[:, 1:] != content[:, :1]).float().mean() > 0.5


def test_equal_scenes_are_no_rivals() -> None:
    """Two pictures of one content may both lie near both captions at no cost."""
    feature = torch.eye(2)[[0, 0, 1]]
    content, scale = torch.tensor([7, 7, 9]), torch.tensor(50.0)
    assert loss(feature, feature, scale, content) < 1e-6
    assert loss(feature, feature, scale, torch.tensor([7, 8, 9])) > 0.4


def test_a_pretrained_encoder_is_one_that_recipes_can_use(tmp_path: Path, small: Path) -> None:
    share = make(small, tmp_path / "clip", "cpu")
    assert 0 <= share <= 1
    encoder = OpenClip(model=str(tmp_path / "clip"))
    features = encoder.encode([Image.new("RGB", (CANVAS, CANVAS), "red")])
    assert features.shape == (1, 1, 8)
    with pytest.raises(RunError, match="can't be made"):
        make(small, tmp_path / "clip", "cpu")


def test_mistakes_are_named(small: Path) -> None:
    small.write_text(SMALL.replace("families", "familys"))
    with pytest.raises(CdlmError, match=r"unknown: train\.familys\n.*families"):
        read(small)


def test_the_shipped_encoder_is_that_of_its_recipe() -> None:
    config, _ = read(RECIPE)
    stored = json.loads((SHIPPED / "open_clip_config.json").read_text())["model_cfg"]
    assert stored == config
    assert config["text_cfg"]["vocab_size"] == len(vocabulary()) + 2
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 4_000_000


def test_the_shipped_encoder_tells_held_out_scenes_from_their_rivals() -> None:
    import open_clip

    model = open_clip.create_model(f"local-dir:{SHIPPED}").eval()
    _, plan = read(RECIPE)
    assert accuracy(model, plan, 64, Generator().manual_seed(1)) > 0.9
