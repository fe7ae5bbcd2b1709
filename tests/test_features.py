from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cdlm.errors import CdlmError, DataError
from cdlm.features import AT_ONCE, PIECE, Kept, features, text_features, view_features


@dataclass
class Squares:
    """A split of one-coloured pictures, the colour being the position."""

    count: int = 3
    fingerprint: str = "photos as they were"
    opened: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = [f"é{i}.jpg" for i in range(self.count)]
        self.captions = [["a square"] for _ in self.ids]
        self.truths: list[Any] = [None] * self.count
        self.pictured = [True] * self.count

    def images(self, indices: Sequence[int]) -> list[Image.Image]:
        self.opened += indices
        return [Image.new("RGB", (2, 2), (i % 256, 0, 0)) for i in indices]


@dataclass
class Reds:
    """An encoder whose feature is how red a picture is, in C = 2 copies."""

    version: int = 1
    ready: Tensor | None = None
    fault: float = 0.0  # added to the feature of what has red = 1

    def identity(self) -> dict[str, Any]:
        return {"encoder": "reds", "version": self.version}

    def shape(self) -> tuple[int, int]:
        return 1, 2

    def lookup(self, ids: Sequence[str]) -> Tensor | None:
        return self.ready

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        reds = torch.tensor([float(image.getpixel((0, 0))[0]) for image in images])  # type: ignore[index]
        reds = reds + torch.where(reds == 1, self.fault, 0.0)
        return reds[:, None, None].expand(-1, 1, 2)


def only_file(cache: Path) -> Path:
    (path,) = (cache / "features").iterdir()
    return path


def test_every_image_gets_its_own_feature_in_order() -> None:
    split = Squares(AT_ONCE + 7)
    got = features(Reds(), split, None)
    assert torch.equal(got[:, 0, 0], torch.arange(AT_ONCE + 7.0))
    assert split.opened == list(range(AT_ONCE + 7))


def test_progress_is_told_up_to_the_end() -> None:
    told: list[tuple[str, int, int, str]] = []
    total = AT_ONCE + 7
    features(Reds(), Squares(total), None, lambda *event: told.append(event))
    assert [done for _, done, _, _ in told] == [0, AT_ONCE, total]
    assert {(what, of) for what, _, of, _ in told} == {("image features", total)}


def test_ready_features_touch_neither_photos_nor_cache(tmp_path: Path) -> None:
    split, ready = Squares(), torch.ones(3, 1, 2)
    assert features(Reds(ready=ready), split, tmp_path) is ready
    assert (split.opened, list(tmp_path.iterdir())) == ([], [])


def test_the_second_call_reads_the_cache(tmp_path: Path) -> None:
    first = features(Reds(), Squares(), tmp_path)
    again = Squares()
    assert torch.equal(features(Reds(), again, tmp_path), first)
    assert again.opened == []


@pytest.mark.parametrize(
    ("encoder", "split"), [(Reds(version=2), Squares()), (Reds(), Squares(fingerprint="touched"))]
)
def test_what_changes_the_features_changes_the_key(
    tmp_path: Path, encoder: Reds, split: Squares
) -> None:
    features(Reds(), Squares(), tmp_path)
    features(encoder, split, tmp_path)
    assert split.opened == [0, 1, 2]
    assert len(list((tmp_path / "features").iterdir())) == 2


@dataclass
class Brighter:
    """Views of a picture that are redder by 10 and by 20, or by chance a bit more."""

    count: int = 2
    by: int = 10

    def identity(self) -> dict[str, Any]:
        return {"views": "brighter", "by": self.by}

    def __call__(self, image: Image.Image, rng: Random) -> list[Image.Image]:
        red = image.getpixel((0, 0))[0] + rng.choice((0, 1))  # type: ignore[index]
        steps = range(1, 1 + self.count)
        return [Image.new("RGB", (2, 2), (red + self.by * i, 0, 0)) for i in steps]


def test_every_view_gets_its_own_feature_beside_those_of_its_photo() -> None:
    split = Squares(AT_ONCE + 7)
    got = view_features(Reds(), Brighter(), split, None)
    assert got is not None and got.shape == (AT_ONCE + 7, 2, 1, 2)
    more = got[:, :, 0, 0] - torch.arange(AT_ONCE + 7)[:, None] - torch.tensor([10, 20])
    assert more.unique().tolist() == [0, 1], "each photo has random numbers of its own"
    assert torch.equal(more[:, 0], more[:, 1])


def test_views_are_made_of_photos_alone() -> None:
    split = Squares(4)
    split.pictured = [True, False, True, True]
    got = view_features(Reds(), Brighter(), split, None)
    assert got is not None and split.opened == [0, 2, 3] and len(got) == 3


def test_views_are_kept_by_what_they_are(tmp_path: Path) -> None:
    first = view_features(Reds(), Brighter(), Squares(), tmp_path)
    features(Reds(), Squares(), tmp_path)
    again, other = Squares(), Squares()
    second = view_features(Reds(), Brighter(), again, tmp_path)
    view_features(Reds(), Brighter(by=5), other, tmp_path)
    assert first is not None and second is not None and torch.equal(first, second)
    assert (again.opened, other.opened) == ([], [0, 1, 2])
    assert len(list((tmp_path / "features").iterdir())) == 3


def test_where_there_are_no_views_nothing_is_looked_at() -> None:
    split = Squares()
    assert view_features(Reds(), Brighter(count=0), split, None) is None
    assert split.opened == []


def test_ready_features_have_no_other_views() -> None:
    with pytest.raises(CdlmError, match=r"views: these are ready features"):
        view_features(Reds(ready=torch.ones(3, 1, 2)), Brighter(), Squares(), None)


def test_an_interrupted_pass_goes_on(tmp_path: Path) -> None:
    """What was computed is there for the next call, and only the whole stays at the end."""

    class Stopped(Squares):
        def images(self, indices: Sequence[int]) -> list[Image.Image]:
            if len(self.opened) > PIECE:
                raise KeyboardInterrupt
            return super().images(indices)

    total = 2 * PIECE + 7
    with pytest.raises(KeyboardInterrupt):
        features(Reds(), Stopped(total), tmp_path)
    split = Squares(total)
    found = features(Reds(), split, tmp_path)
    assert split.opened == list(range(PIECE, total))
    assert torch.equal(found, features(Reds(), Squares(total), None))
    assert torch.equal(found, features(Reds(), Squares(total), tmp_path))
    only_file(tmp_path)


def test_of_those_who_want_the_same_features_at_once_one_computes_them(tmp_path: Path) -> None:
    """Threads stand for processes: each opens the lock by itself."""
    both_there, splits = threading.Barrier(2), [Squares(), Squares()]

    class Slow(Reds):
        def encode(self, images: Sequence[Image.Image]) -> Tensor:
            time.sleep(0.2)  # the other one is at the lock by now
            return super().encode(images)

    def work(split: Squares) -> Tensor:
        both_there.wait()
        return features(Slow(), split, tmp_path)

    with ThreadPoolExecutor() as pool:
        one, two = pool.map(work, splits)
    assert torch.equal(one, two)
    assert sorted(len(split.opened) for split in splits) == [0, 3]


def described(cache: Path, split: Squares) -> Kept:
    """The cache file of these features."""
    about = {"encoder": Reds().identity(), "split": split.fingerprint}
    return Kept.of(cache, about, split.ids)


def test_captions_are_kept_by_their_texts(tmp_path: Path) -> None:
    """Read once; other texts, or another order, are read anew; what is damaged, too."""
    asked: list[int] = []

    class Reader(Reds):
        def texts(self, captions: Sequence[str]) -> Tensor:
            asked.append(len(captions))
            return torch.tensor([[[float(len(text))] * 2] for text in captions])

    texts = ["a dog", "two", "a red ball"]
    for _ in range(2):
        found = text_features(Reader(), texts, tmp_path)
        assert found.shape == (3, 1, 2) and found[:, 0, 0].tolist() == [5, 3, 10]
    assert asked == [3]
    text_features(Reader(), texts[::-1], tmp_path)
    assert asked == [3, 3]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """R5: safetensors would load most of these files without a word."""
    split = Squares()
    features(Reds(), split, tmp_path)
    kept = described(tmp_path, split)
    assert kept.load() is not None
    whole = kept.path.read_bytes()
    logging.disable(logging.WARNING)
    try:
        for bit in range(0, 8 * len(whole), 3):  # every byte, and in turn every place in it
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            kept.path.write_bytes(damaged)
            assert kept.load() is None, f"bit {bit % 8} of byte {bit // 8}"
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("content", [b"", b"<html>", None])
def test_a_damaged_file_is_told_of_and_replaced(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    first = features(Reds(), Squares(), tmp_path)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    split = Squares()
    assert torch.equal(features(Reds(), split, tmp_path), first)
    assert split.opened == [0, 1, 2]
    assert str(path) in caplog.text
    caplog.clear()
    features(Reds(), split, tmp_path)
    assert (split.opened, caplog.text) == ([0, 1, 2], "")


def test_a_file_of_other_images_is_not_used(tmp_path: Path) -> None:
    features(Reds(), Squares(), tmp_path)
    other = Squares()
    other.ids.reverse()
    features(Reds(), other, tmp_path)
    assert other.opened == [0, 1, 2]


def test_a_cache_that_can_not_be_written_is_only_a_pity(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "file"
    cache.write_text("in the way")
    assert features(Reds(), Squares(), cache).shape == (3, 1, 2)
    assert "not kept" in caplog.text


def test_features_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"NaN or infinity for 1 images: é1\.jpg"):
        features(Reds(fault=float("nan")), Squares(), tmp_path)
    assert not (tmp_path / "features").exists()


def test_an_encoder_that_breaks_its_promise_of_a_shape() -> None:
    class Wide(Reds):
        def shape(self) -> tuple[int, int]:
            return 1, 3

    with pytest.raises(CdlmError, match=r"shape \(3, 1, 2\), not \(3, 1, 3\)"):
        features(Wide(), Squares(), None)
