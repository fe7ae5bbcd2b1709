"""From a recipe to parts: widths, seeds, pretrained weights. Pairs of components: test_pairs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import DistilBertConfig, DistilBertModel

from cdlm import recipe
from cdlm.compose import Parts, compose, dataset, make, metrics
from cdlm.errors import CdlmError
from cdlm.recipe import Recipe
from cdlm.sample import captions
from cdlm.testing.examples import CAPTIONS, DIMS, rng
from cdlm.testing.whole import NoEncoder, data, trained

RECIPE = """
dataset      = { use = "shapes", train = 4, held_out = 4 }
encoder      = { use = "open_clip", model = "stands for any" }
tokenizer    = { use = "words" }
length       = { use = "generated" }
embedding    = { use = "learned" }
schedule     = { use = "cosine" }
noise        = { use = "independent" }
timesteps    = { use = "uniform" }
target       = { use = "x0" }
conditioning = [{ use = "time_add" }, { use = "extra_token" }]
denoiser     = { use = "transformer", layers = 1, heads = 2 }
self_conditioning = { use = "none" }
guidance     = { use = "none" }
variance     = { use = "fixed" }
loss         = [{ use = "mse" }, { use = "rounding", weight = 0.5 }]
rounding     = { use = "none" }
grid         = { use = "uniform" }
sampler      = { use = "ddim", steps = 2 }
constraint   = []
selection    = { use = "first" }
metric       = [{ use = "true_caption" }, { use = "exact_match" }]

[model]
width = 8
hidden = 16
length = 6
"""
MODES = {
    "none": "[]",
    "extra_token": '[{ use = "time_add" }, { use = "extra_token" }]',
    "feature_add": '[{ use = "time_add" }, { use = "feature_add" }]',
    "both_then_time": '[{ use = "extra_token" }, { use = "feature_add" }, { use = "time_add" }]',
}


def resolved(*sets: str) -> Recipe:
    return recipe.loads(RECIPE, sets=sets)


def composed(*sets: str) -> Parts:
    given = resolved(*sets)
    tokenizer = make(given.one("tokenizer"))
    tokenizer.fit(CAPTIONS)
    encoder: Any = NoEncoder()
    return compose(given, encoder, tokenizer)


def said_after_a_step(parts: Parts) -> list[str]:
    assert math.isfinite(trained(parts, steps=1)["loss"])
    parts.modules().eval()
    return [it.caption for it in captions(parts, data(parts).features, rng())]


@pytest.mark.parametrize(("heads", "hidden"), [(12, 768), (8, 512)])
def test_the_papers_widths_fit(heads: int, hidden: int) -> None:
    parts = composed(
        f'denoiser={{ use = "distilbert", layers = 1, heads = {heads} }}',
        f"model.hidden={hidden}", "model.width=48",
    )  # fmt: skip
    assert math.isfinite(trained(parts, steps=1)["loss"])


# ------------------------------------------------------------------------------- what compose does


def test_the_seed_decides_the_first_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(seed + 1)
        parts = composed(f"seed={seed}")
        return torch.cat([p.flatten() for p in parts.modules().parameters()])

    one, two, other = weights(1), weights(1), weights(2)
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("mode", "seen"),
    [("none", 6), ("extra_token", 8), ("feature_add", 6), ("both_then_time", 8)],
)
def test_the_denoiser_is_told_of_every_token_that_is_added(mode: str, seen: int) -> None:
    parts = composed(f"conditioning={MODES[mode]}")
    assert parts.dims.seen == seen
    assert parts.network.denoiser.positions.shape == (seen, 16)  # type: ignore[union-attr]


def test_equal_widths_need_no_projections() -> None:
    narrow, same = composed(), composed("model.width=16")
    assert isinstance(narrow.network.read, nn.Linear) and isinstance(
        narrow.network.write, nn.Linear
    )
    assert isinstance(same.network.read, nn.Identity) and isinstance(
        same.network.write, nn.Identity
    )


def test_losses_keep_their_names_and_weights() -> None:
    parts = composed()
    assert {name: loss.weight for name, loss in parts.loss.items()} == {"mse": 1, "rounding": 0.5}


def test_only_what_holds_weights_is_saved() -> None:
    assert set(composed().modules()) == {
        "network",
        "embedding",
        "length",
        "guidance",
        "self_conditioning",
    }
    names = set(composed('length.use="histogram"').modules().state_dict())
    assert "length.counts" in names


def test_dataset_and_metrics_are_those_of_the_recipe() -> None:
    given = resolved()
    assert len(dataset(given).split("train").ids) == 4
    assert [type(metric).__name__ for metric in metrics(given)] == ["TrueCaption", "ExactMatch"]


def test_a_value_that_the_component_refuses_names_the_component(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = resolved()

    def refuses(**parameters: object) -> None:
        raise ValueError("train and held_out are the wrong way round")

    monkeypatch.setattr("cdlm.registry.Entry.load", lambda entry: refuses)
    with pytest.raises(CdlmError, match='dataset "shapes": train and held_out'):
        dataset(given)


# ------------------------------------------------------------------------ pretrained, from a folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DistilBERT 16 wide with 2 layers, 2 heads, 8 positions, and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    ids = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[SEP]", *words])}
    engine = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(ids), dim=16, hidden_dim=32, n_layers=2, n_heads=2, max_position_embeddings=8
    )
    DistilBertModel(config).save_pretrained(folder)
    return folder


def pretrained(folder: Path, *sets: str, heads: int = 2) -> Parts:
    denoiser = f'{{ use = "distilbert", pretrained = "{folder}", layers = 2, heads = {heads} }}'
    return composed(f"denoiser={denoiser}", *sets)


def test_pretrained_denoiser_trains_and_samples(bert: Path) -> None:
    assert len(said_after_a_step(pretrained(bert))) == len(CAPTIONS)


@pytest.mark.parametrize("frozen", [True, False])
def test_pretrained_words_with_their_own_tokenizer(bert: Path, frozen: bool) -> None:
    """The paper's arrangement: words as wide as the transformer, and both from one folder."""
    parts = pretrained(
        bert, "model.width=16", f'tokenizer={{ use = "hugging_face", source = "{bert}" }}',
        f'embedding={{ use = "pretrained", source = "{bert}", frozen = {str(frozen).lower()} }}',
    )  # fmt: skip
    before = parts.embedding.table().detach().clone()
    assert len(said_after_a_step(parts)) == len(CAPTIONS)
    assert torch.equal(parts.embedding.table(), before) == frozen


@pytest.mark.parametrize(
    ("sets", "heads", "said"),
    [
        (["model.hidden=32"], 2, "model.hidden is 32, but"),
        ([], 4, "denoiser.heads is 4, but"),
        (["model.length=7"], 2, "9 tokens (caption and extra), but"),
    ],
)
def test_pretrained_weights_of_other_sizes_are_refused(
    bert: Path, sets: list[str], heads: int, said: str
) -> None:
    with pytest.raises(CdlmError) as caught:
        pretrained(bert, *sets, heads=heads)
    assert said in str(caught.value)


def test_pretrained_words_of_another_width_are_refused(bert: Path) -> None:
    choice = recipe.Choice("embedding", "pretrained", {"source": str(bert)})
    with pytest.raises(CdlmError, match=r"set model.width = 16"):
        make(choice, dims=DIMS)


def test_the_examples_fit_this_recipe() -> None:
    parts = composed()
    assert replace(parts.dims, written=DIMS.written) == DIMS
