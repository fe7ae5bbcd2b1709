"""The learned table keeps its rows at one length; the pretrained one is that of its source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import DistilBertConfig, DistilBertModel

from cdlm.errors import CdlmError
from cdlm.parts.embeddings import Learned, Pretrained
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
