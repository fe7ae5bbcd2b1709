"""Learned rows at one length or free; a pretrained table; the bits of a word's number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import DistilBertConfig, DistilBertModel

from cdlm.errors import CdlmError
from cdlm.kernels import nearest_token
from cdlm.parts.embeddings import Bits, Learned, Pretrained
from cdlm.testing.examples import DIMS


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=DIMS.vocab, dim=DIMS.width, hidden_dim=16, n_layers=1, n_heads=2
    )
    DistilBertModel(config).save_pretrained(folder)
    return folder


def test_learned_rows_have_length_root_e_however_the_weights_grow() -> None:
    part = Learned(dims=DIMS)
    with torch.no_grad():
        part.weight *= 50
    assert_close(part.table().norm(dim=1), torch.full((DIMS.vocab,), DIMS.width**0.5))


def test_sharpness_scales_the_scores() -> None:
    torch.manual_seed(0)
    plain = Learned(sharpness=1.0, dims=DIMS)
    torch.manual_seed(0)
    sharp = Learned(sharpness=3.0, dims=DIMS)
    x = torch.randn(1, 2, DIMS.width)
    assert_close(sharp.logits(x), 3 * plain.logits(x))


def test_a_word_scores_its_sharpness_for_itself_and_less_for_others() -> None:
    part = Learned(sharpness=7.0, dims=DIMS)
    scores = part.logits(part.table()[None])[0].detach()
    assert_close(scores.diagonal(), torch.full((DIMS.vocab,), 7.0))
    assert float((scores - 100 * torch.eye(DIMS.vocab)).max()) < 7.0


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_is_not_trained(frozen: bool, bert: Path) -> None:
    for part in (
        Learned(frozen=frozen, dims=DIMS),
        Pretrained(source=str(bert), frozen=frozen, dims=DIMS),
    ):
        assert [p.requires_grad for p in part.parameters()] == [not frozen]


def test_pretrained_is_the_table_of_its_source_shifted_and_scaled(bert: Path) -> None:
    words = DistilBertModel.from_pretrained(bert).get_input_embeddings().weight.detach()
    table = Pretrained(source=str(bert), dims=DIMS).table().detach()
    assert_close(table, (words - words.mean()) / words.std())
    assert float(table.var()) == pytest.approx(1, rel=1e-5)


def test_a_source_of_another_width_or_vocabulary_says_what_to_set(bert: Path) -> None:
    with pytest.raises(CdlmError) as caught:
        Pretrained(source=str(bert), dims=replace(DIMS, width=16, vocab=99))
    said = str(caught.value)
    assert f"{DIMS.vocab} words of width {DIMS.width}" in said
    assert f"set model.width = {DIMS.width}" in said and 'use = "hugging_face"' in said


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CdlmError, match=r"embedding.source: no config.json in"):
        Pretrained(source=str(tmp_path), dims=DIMS)


# --------------------------------------------------------------------------------------- free rows


def test_free_rows_may_grow_and_the_best_word_is_the_nearest() -> None:
    torch.manual_seed(0)
    part = Learned(norm="free", dims=DIMS)
    with torch.no_grad():
        part.weight[3] *= 5
    assert float(part.table()[3].detach().norm()) > 2 * DIMS.width**0.5
    x = 2 * torch.randn(1, 200, DIMS.width)
    assert torch.equal(part.logits(x).argmax(-1)[0], nearest_token(x[0], part.table()))


# ------------------------------------------------------------------------------------------- bits


def test_bits_are_the_numbers_of_words_lowest_first_and_repeated() -> None:
    """13 words have numbers of 4 bits, which stand twice in a width of 8."""
    table = Bits(dims=DIMS).table()
    assert table[5].tolist() == [1, -1, 1, -1] * 2
    assert table[12].tolist() == [-1, -1, 1, 1] * 2
    assert set(table.flatten().tolist()) == {-1, 1}


def test_bits_learn_nothing_and_are_saved() -> None:
    part = Bits(dims=DIMS)
    assert list(part.parameters()) == []
    assert list(part.state_dict()) == ["codes"]


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_scores_of_bits_are_independent_coins(repeats: int) -> None:
    """With all 16 words: p(word) is the product over its bits of 1 / (1 + exp(-2 s bit x))."""
    part = Bits(sharpness=0.7, dims=replace(DIMS, vocab=16, width=4 * repeats))
    x = torch.randn(1, 5, 4 * repeats)
    mean = x.view(5, repeats, 4).mean(1)  # of the places of a bit
    coins = (2 * 0.7 * part.table()[:, :4] * mean[:, None]).sigmoid().prod(-1)
    assert_close(part.logits(x).softmax(-1)[0], coins)


def test_bits_round_to_the_nearest_word_that_there_is() -> None:
    part = Bits(dims=replace(DIMS, width=4))
    x = torch.tensor([[1.0, 1.0, 1.0, 0.9], [0.1, -0.2, 2.0, 0.3]])  # 15, and 13: no such words
    wanted = torch.tensor([7, 12])
    assert torch.equal(nearest_token(x, part.table()), wanted)
    assert torch.equal(part.logits(x[None]).argmax(-1)[0], wanted)


@pytest.mark.parametrize("width", [3, 6, 9])
def test_a_width_that_bits_do_not_fill_says_which_do(width: int) -> None:
    with pytest.raises(CdlmError) as caught:
        Bits(dims=replace(DIMS, width=width))
    said = str(caught.value)
    assert f"13 words have numbers of 4 bits, which do not fill model.width = {width}" in said
    assert "set model.width = 4, or a multiple of it: 8, 12, ..." in said
