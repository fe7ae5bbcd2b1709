"""The denoisers: what they see of the noise level, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import DistilBertConfig, DistilBertModel

from cdlm.errors import CdlmError
from cdlm.parts.denoisers import modern
from cdlm.parts.denoisers.distilbert import DistilBert
from cdlm.parts.denoisers.linear import Linear
from cdlm.parts.denoisers.modern import Modern
from cdlm.parts.denoisers.transformer import Transformer
from cdlm.testing.examples import DIMS, stir, stream

STREAM = stream(behind=DIMS.seen - DIMS.length)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DistilBERT of 2 layers and 12 positions, as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=20, dim=DIMS.hidden, hidden_dim=32, n_layers=2, n_heads=4,
        max_position_embeddings=12,
    )  # fmt: skip
    DistilBertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", [Transformer, DistilBert, Modern])
def test_heads_must_share_the_width(kind: type) -> None:
    with pytest.raises(CdlmError, match=r"5 heads can't share model.hidden = 16") as caught:
        kind(heads=5, dims=DIMS)
    assert "allowed: 1, 2, 4, 8, 16" in str(caught.value)


def change(model: torch.nn.Module) -> float:
    """How much of what the model says is another when all that comes in is 100 times as large."""
    louder = replace(STREAM, h=100 * STREAM.h)
    with torch.no_grad():
        one, two = model.eval()(STREAM), model(louder)
    return float((one - two).norm() / one.norm())


def test_distilbert_hardly_sees_the_size_of_what_comes_in_and_the_plain_one_does() -> None:
    """Without its input norm DistilBERT is as blind at first: each of its layers ends in a norm."""
    torch.manual_seed(0)
    assert change(DistilBert(layers=1, heads=2, dims=DIMS)) < 0.05
    assert change(DistilBert(layers=1, heads=2, input_norm=False, dims=DIMS)) < 0.05
    assert change(Transformer(layers=1, heads=2, dims=DIMS)) > 0.1


def test_the_input_norm_changes_what_distilbert_says() -> None:
    said = []
    for norm in (True, False):
        torch.manual_seed(0)
        part = stir(DistilBert(layers=1, heads=2, dropout=0.0, input_norm=norm, dims=DIMS))
        said.append(part(replace(STREAM, h=0.1 * STREAM.h)))
    assert float((said[0] - said[1]).detach().norm()) > 0.1


def test_pretrained_is_the_model_in_the_folder(bert: Path) -> None:
    ours = DistilBert(pretrained=str(bert), layers=2, heads=4, dims=DIMS).eval()
    theirs = DistilBertModel.from_pretrained(bert).eval()
    with torch.no_grad():
        expected = theirs(inputs_embeds=STREAM.h, attention_mask=STREAM.mask.long())
        assert_close(ours(STREAM), expected.last_hidden_state, rtol=1e-5, atol=1e-5)


def test_fewer_layers_keep_the_first_ones(bert: Path) -> None:
    short = DistilBert(pretrained=str(bert), layers=1, heads=4, dims=DIMS)
    theirs = DistilBertModel.from_pretrained(bert).transformer.layer[0].attention.q_lin.weight
    layers = [p for n, p in short.named_parameters() if n.endswith("attention.q_lin.weight")]
    assert len(layers) == 1 and torch.equal(layers[0], theirs)


def test_all_that_does_not_fit_the_pretrained_one_is_said_at_once(bert: Path) -> None:
    dims = replace(DIMS, hidden=24, seen=13)
    with pytest.raises(CdlmError) as caught:
        DistilBert(pretrained=str(bert), layers=3, heads=2, dims=dims)
    said = str(caught.value)
    assert "model.hidden is 24" in said and "has 16" in said
    assert "denoiser.heads is 2" in said and "has 4" in said
    assert "denoiser.layers is 3" in said and "has 2" in said
    assert "13 tokens (caption and extra)" in said and "has 12 positions" in said


def test_a_folder_that_is_not_there_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CdlmError, match=r"denoiser.pretrained: no config.json in"):
        DistilBert(pretrained=str(tmp_path / "nothing"), dims=DIMS, heads=4)


def test_no_word_embeddings_are_left_that_nothing_would_train() -> None:
    names = [name for name, _ in DistilBert(layers=1, heads=2, dims=DIMS).named_parameters()]
    assert not [name for name in names if "word_embeddings" in name]


def test_rotary_positions_need_even_heads() -> None:
    with pytest.raises(CdlmError, match="16 heads of 1 numbers"):
        Modern(heads=16, dims=DIMS)


def only(*written: str) -> Modern:
    torch.manual_seed(0)
    return Modern(layers=2, heads=2, dims=replace(DIMS, written=frozenset(written))).eval()


def test_a_fresh_adaptive_network_passes_its_input_on() -> None:
    """adaLN-zero: every gate is 0 at first, cross-attention adds 0, and the last norm is plain."""
    for written in (("tokens", "time"), ("tokens", "time", "context")):
        out = only(*written)(STREAM)
        assert_close(out, torch.nn.functional.rms_norm(STREAM.h, (DIMS.hidden,)))


def test_what_nobody_writes_costs_no_weights() -> None:
    def size(*written: str) -> int:
        return sum(p.numel() for p in only(*written).parameters())

    assert size("tokens") < size("tokens", "context") < size("tokens", "context", "time")
    bare = replace(STREAM, time=None, context=None)
    assert_close(only("tokens")(bare), only("tokens")(STREAM))


def test_positions_count_only_by_their_distance() -> None:
    """Rotary: a sequence moved by one place says the same, the place before it unseen."""
    model, seen = only("tokens"), torch.ones_like(STREAM.mask)
    said = model(replace(STREAM, mask=seen.index_fill(1, torch.tensor([DIMS.seen - 1]), False)))
    moved = replace(
        STREAM, h=STREAM.h.roll(1, 1), mask=seen.index_fill(1, torch.tensor([0]), False)
    )
    assert_close(model(moved)[:, 1:], said[:, :-1], rtol=1e-4, atol=1e-5)


def test_places_that_no_caption_has_are_not_computed() -> None:
    """What is said of the others is the same."""
    model, short = only("tokens"), STREAM.mask & (torch.arange(DIMS.seen) < 3)
    said = model(replace(STREAM, mask=short))
    used = modern._used(short)
    assert used == 3 and bool((said[:, used:] == 0).all())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modern, "_used", lambda mask: mask.shape[1])
        whole = model(replace(STREAM, mask=short))
    assert_close(said[short], whole[short], rtol=1e-5, atol=1e-6)
    assert bool((whole[:, used:] != 0).any())


def test_the_linear_one_hears_no_other_position() -> None:
    model = Linear(dims=DIMS)
    other = STREAM.h.clone()
    other[:, 1:] += 1
    said = model(replace(STREAM, h=other))
    assert torch.equal(said[:, 0], model(STREAM)[:, 0])
    doubled = model(replace(STREAM, h=2 * STREAM.h))
    assert_close(doubled - model.map.bias, 2 * (model(STREAM) - model.map.bias))
