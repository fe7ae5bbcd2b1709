"""The order of the captions is a function of (seed, batch) and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cdlm.data import Captions, resident
from cdlm.parts.tokenizers import Words

COUNTS = (2, 1, 4)  # captions of each image


@dataclass(frozen=True)
class Few:
    """Seven captions of three images; caption k of image i is "i k"."""

    ids: tuple[str, ...] = ("x", "y", "z")
    fingerprint: str = "few"
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    pictured: tuple[bool, ...] = (True, True, True)

    @property
    def captions(self) -> list[list[str]]:
        return [[f"{i} {k}" for k in range(count)] for i, count in enumerate(COUNTS)]


def few(limit: int = 0, weights: tuple[float, ...] = (1.0, 1.0, 1.0)) -> tuple[Captions, Words]:
    tokenizer, split = Words(), Few(weights=weights)
    tokenizer.fit([text for texts in split.captions for text in texts])
    features = torch.arange(3.0).view(3, 1, 1)
    given: Any = split
    return Captions.of(given, features, tokenizer, 4, limit, "cpu"), tokenizer


def rows(captions: Captions, k: int, size: int, seed: int) -> list[tuple[int, ...]]:
    return [tuple(row) for row in captions.batch(k, size, seed).ids.tolist()]


def test_every_caption_stands_beside_the_feature_of_its_image() -> None:
    captions, tokenizer = few()
    batch = captions.batch(0, 7, 0)
    images = [text.split()[0] for text in tokenizer.decode(batch.ids)]
    assert images == [str(int(value)) for value in batch.features[:, 0, 0]]
    assert batch.features.shape == (7, 1, 1) and bool((batch.mask.sum(1) == 3).all())
    assert [texts[0].split()[0] for texts in batch.references] == images
    assert [len(texts) for texts in batch.references] == [COUNTS[int(i)] for i in images]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 30])
def test_every_epoch_has_every_caption_once_however_large_the_batch(size: int) -> None:
    captions, _ = few()
    batches = -(-7 * 3 // size)
    seen = [row for k in range(batches) for row in rows(captions, k, size, seed=1)]
    for epoch in range(3):
        assert len(set(seen[7 * epoch : 7 * epoch + 7])) == 7


def viewed(looks: int) -> Captions:
    """Image i is seen as i, and in its other views as i + 0.1, i + 0.2, ..."""
    captions, _ = few()
    others = torch.arange(3.0)[:, None] + torch.arange(1, looks) / 10
    return replace(captions, views=others[:, :, None, None])


def test_of_a_photo_with_other_views_each_is_seen_as_often() -> None:
    seen = torch.cat([viewed(4).batch(k, 7, seed=1).features[:, 0, 0] for k in range(800)])
    tokens, counts = (seen * 10).round().int().unique(return_counts=True)
    assert tokens.tolist() == [i * 10 + view for i in range(3) for view in range(4)]
    share = counts / counts.view(3, 4).sum(1).repeat_interleave(4)
    assert float((share - 0.25).abs().max()) < 0.05


def test_views_change_neither_the_captions_nor_whose_they_are() -> None:
    plain, _ = few()
    for k in range(5):
        one, two = plain.batch(k, 7, seed=2), viewed(3).batch(k, 7, seed=2)
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.features, two.features.floor())


def test_which_view_is_seen_depends_on_seed_and_batch_alone() -> None:
    captions = viewed(3)
    once = captions.batch(9, 7, 3).features
    captions.batch(4, 7, 3)
    torch.manual_seed(123)
    assert torch.equal(captions.batch(9, 7, 3).features, once)
    assert (
        len(
            {
                tuple(captions.batch(k, 7, s).features.flatten().tolist())
                for k in (0, 1)
                for s in (0, 1)
            }
        )
        == 4
    )


def test_a_batch_does_not_depend_on_what_was_asked_before() -> None:
    captions, _ = few()
    once = rows(captions, 9, 4, 3)
    for k in (0, 50, 8):
        captions.batch(k, 4, 3)
    torch.manual_seed(123)
    assert rows(captions, 9, 4, 3) == once


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    captions, _ = few()
    orders = [tuple(rows(captions, k, 7, seed)) for seed in (0, 1) for k in (0, 1)]
    assert len(set(orders)) == 4


def test_a_batch_is_no_view_of_the_whole() -> None:
    captions, _ = few()
    before: Tensor = captions.ids.clone()
    captions.batch(0, 7, 0).ids.zero_()
    assert torch.equal(captions.ids, before)


def test_only_the_first_captions_are_seen_where_there_is_a_limit() -> None:
    captions, tokenizer = few(limit=3)
    seen = tokenizer.decode(captions.batch(0, 30, 0).ids)
    assert set(seen) == {"0 0", "0 1", "1 0"}
    assert captions.references == (["0 0", "0 1"], ["1 0"], [])


def test_captions_come_as_often_as_their_weights_say() -> None:
    """In every epoch of 7 draws: 2, 1 and 4 captions of weight 3, 1 and 1; to less than one."""
    captions, _ = few(weights=(3.0, 1.0, 1.0))
    share = 7 / (2 * 3 + 1 + 4)
    for epoch in range(4):
        owner = captions.batch(epoch, 7, 0).features.flatten().tolist()
        assert abs(owner.count(0.0) - 6 * share) < 1
        assert abs(owner.count(1.0) - 1 * share) < 1
    often = [captions.batch(0, 7 * 2000, 0).features.flatten().tolist().count(i) for i in range(3)]
    expected = [2000 * share * count for count in (6, 1, 4)]
    assert often == pytest.approx(expected, rel=0.05)


def test_features_that_fill_a_gpu_stay_in_main_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table, moved = torch.zeros(1000), []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8001, 9000))
    resident(table, "cuda:1")
    assert moved == ["cuda:1"] and not caplog.text
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7999, 9000))
    assert resident(table, "cuda:1") is table and moved == ["cuda:1"]
    assert "stay in main memory" in caplog.text
