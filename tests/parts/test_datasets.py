"""Flickr30k, COCO, your own folder, and mixtures: how they are read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cdlm.checkup import _with_photos
from cdlm.data import Captions
from cdlm.errors import CdlmError, DataError
from cdlm.features import features
from cdlm.network import withhold
from cdlm.parts.datasets.captioned import hash_split
from cdlm.parts.datasets.coco import Coco
from cdlm.parts.datasets.flickr8k import Flickr8k
from cdlm.parts.datasets.flickr30k import Flickr30k
from cdlm.parts.datasets.folder import Folder
from cdlm.parts.datasets.mix import Mix, photo
from cdlm.parts.encoders.features import Features
from cdlm.parts.tokenizers import Words

SPLITS = {"train": ["100010.jpg", "100020.jpg"], "val": ["100030.jpg"], "test": ["100040.jpg"]}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (len(path.name), 90, 60)).save(path)


# ------------------------------------------------------------------------------------- flickr30k


@pytest.fixture
def flickr30k(tmp_path: Path) -> Path:
    """Four photos, a token file, and lists of splits without ".jpg"."""
    root = tmp_path / "flickr30k"
    for split, names in SPLITS.items():
        for name in names:
            picture(root / "flickr30k-images" / name)
        (root / f"{split}.txt").write_text("\n".join(n.removesuffix(".jpg") for n in names))
    lines = [
        f"{n}#{k}\tA {s} photo {k} ." for s, them in SPLITS.items() for n in them for k in "01"
    ]
    (root / "results_20130124.token").write_text("\n".join(lines) + "\n")
    return root


def karpathy(entries: list[tuple[str, str, str]]) -> str:
    """Karpathy's JSON of (filepath, filename, split)."""
    images = [
        {"filepath": folder, "filename": name, "split": split, "sentences": [{"raw": f"A  {name}"}]}
        for folder, name, split in entries
    ]
    return json.dumps({"images": images, "dataset": "toy"})


def test_flickr30k_reads_token_files_and_lists(flickr30k: Path) -> None:
    data = Flickr30k(root=str(flickr30k))
    assert {name: data.split(name).ids for name in SPLITS} == SPLITS
    split = data.split("val")
    assert split.captions == [["A val photo 0 .", "A val photo 1 ."]]
    assert split.images([0])[0].size == (8, 8)


def test_flickr30k_reads_kaggle_s_file_of_captions(flickr30k: Path) -> None:
    (flickr30k / "results_20130124.token").unlink()
    lines = ["image_name| comment_number| comment"]
    lines += [f"{n}| 0| A man | with a pipe ." for names in SPLITS.values() for n in names]
    (flickr30k / "results.csv").write_text("\n".join(lines))
    assert Flickr30k(root=str(flickr30k)).split("test").captions == [["A man | with a pipe ."]]
    (flickr30k / "results.csv").write_text("\n".join([lines[0], "100010.jpg| nothing"]))
    with pytest.raises(DataError, match=r"results.csv:2: has 2 fields, not 3"):
        Flickr30k(root=str(flickr30k)).split("train")


def test_flickr30k_prefers_karpathy_s_splits(flickr30k: Path) -> None:
    entries = [("", "100040.jpg", "train"), ("", "100010.jpg", "test")]
    (flickr30k / "dataset_flickr30k.json").write_text(karpathy(entries))
    data = Flickr30k(root=str(flickr30k))
    assert data.split("train").ids == ["100040.jpg"] and data.split("test").ids == ["100010.jpg"]
    (flickr30k / "results_20130124.token").unlink()
    assert Flickr30k(root=str(flickr30k)).split("train").captions == [["A 100040.jpg"]]


def test_flickr30k_says_what_is_missing(flickr30k: Path) -> None:
    (flickr30k / "val.txt").unlink()
    with pytest.raises(DataError, match=r"dataset_flickr30k.json.*\n.*splits=hashed"):
        Flickr30k(root=str(flickr30k)).split("train")
    hashed = Flickr30k(root=str(flickr30k), splits="hashed")
    names = sorted(it for s in ("train", "val", "test") for it in _ids(hashed, s))
    assert names == sorted(it for them in SPLITS.values() for it in them)
    with pytest.raises(DataError, match=r'did you mean ".*flickr30k"'):
        Flickr30k(root=str(flickr30k.parent / "flickr30")).split("train")


def _ids(data: Any, name: str) -> list[str]:
    try:
        return data.split(name).ids
    except DataError:
        return []


# ------------------------------------------------------------------------------------------ coco


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two training photos and one of val; one more has no caption."""
    root = tmp_path / "coco"
    for split, ids in (("train", [1, 2, 3]), ("val", [4])):
        names = {i: f"{i:012}.jpg" for i in ids}
        for name in names.values():
            picture(root / f"{split}2017" / name)
        found = {
            "images": [{"id": i, "file_name": name} for i, name in names.items()],
            "annotations": [
                {"image_id": i, "caption": f"Photo {i},\n number {k}."}
                for k in range(2) for i in ids if i != 3
            ],
        }  # fmt: skip
        file = root / "annotations" / f"captions_{split}2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(found))
    return root


def test_coco_reads_the_official_files(coco: Path) -> None:
    split = Coco(root=str(coco)).split("train")
    assert split.ids == ["000000000001.jpg", "000000000002.jpg"]
    assert split.captions[0] == ["Photo 1, number 0.", "Photo 1, number 1."]
    assert len(split.images([1, 0])) == 2
    with pytest.raises(DataError, match=r"no captions\n.*karpathy"):
        Coco(root=str(coco)).split("test")
    with pytest.raises(DataError, match=r"captions_val2014.json is missing\n.*captions_train2017"):
        Coco(root=str(coco), year="2014").split("val")


def test_coco_reads_karpathy_s_splits_of_two_folders(coco: Path) -> None:
    entries = [("train2014", "a.jpg", "train"), ("val2014", "b.jpg", "restval"),
               ("val2014", "c.jpg", "test")]  # fmt: skip
    (coco / "dataset_coco.json").write_text(karpathy(entries))
    for folder, name, _ in entries:
        picture(coco / "images" / folder / name)
    data = Coco(root=str(coco), splits="karpathy")
    assert data.split("train").ids == ["a.jpg", "b.jpg"] and data.split("test").ids == ["c.jpg"]
    assert len(data.split("train").images([0, 1])) == 2


def test_an_image_that_karpathy_s_file_has_twice_is_refused(coco: Path) -> None:
    """It may be in two splits, and then it would be trained and tested on."""
    entries = [("train2014", "a.jpg", "train"), ("val2014", "a.jpg", "test")]
    (coco / "dataset_coco.json").write_text(karpathy(entries))
    with pytest.raises(DataError, match=r"dataset_coco.json: 1 images stand in it twice: a.jpg"):
        Coco(root=str(coco), splits="karpathy").split("train")


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [{}], "annotations": []}'])
def test_coco_refuses_other_json(coco: Path, text: str) -> None:
    (coco / "annotations" / "captions_val2017.json").write_text(text)
    with pytest.raises(DataError, match=r"captions_val2017.json: expected COCO's JSON"):
        Coco(root=str(coco)).split("val")


# ---------------------------------------------------------------------------------------- folder


def folder(root: Path, *lines: object) -> Folder:
    root.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (root / "captions.jsonl").write_text("\n".join(texts) + "\n\n")
    return Folder(root=str(root))


def test_a_folder_is_read_line_by_line(tmp_path: Path) -> None:
    picture(tmp_path / "own" / "in" / "a.jpg")
    data = folder(
        tmp_path / "own",
        {"image": "in/a.jpg", "captions": ["a  dog", "two"], "split": "train"},
        {"image": "b.jpg", "caption": "a cat", "split": "val"},
    )
    assert data.split("train").captions == [["a dog", "two"]]
    assert data.split("val").ids == ["b.jpg"]
    assert len(data.split("train").images([0])) == 1
    with pytest.raises(DataError, match="nothing is left of the test split"):
        data.split("test")


def test_a_folder_without_splits_is_split_by_names(tmp_path: Path) -> None:
    lines = [{"image": f"{i}.jpg", "caption": "a dog"} for i in range(80)]
    data = folder(tmp_path / "own", *lines)
    sizes = [len(data.split(name).ids) for name in ("train", "val", "test")]
    assert sum(sizes) == 80 and sizes[0] > 40 and min(sizes) > 0


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "captions.jsonl:2: not JSON"),
        ({"image": "b.jpg"}, "captions.jsonl:2: .*\n.*expected"),
        ({"image": "b.jpg", "captions": ["a", " "]}, "captions.jsonl:2"),
        ({"image": "b.jpg", "caption": "a", "split": "dev"}, "captions.jsonl:2"),
        ({"image": "../b.jpg", "caption": "a", "split": "val"}, "below the folder"),
        ({"image": "a.jpg", "caption": "a", "split": "val"}, "stands in the file already"),
        ({"image": "b.jpg", "caption": "a"}, "others have none, such as b.jpg"),
    ],
)
def test_lines_that_can_not_be_used(tmp_path: Path, line: object, why: str) -> None:
    data = folder(tmp_path / "own", {"image": "a.jpg", "caption": "a", "split": "train"}, line)
    with pytest.raises(DataError, match=why):
        data.split("train")


def test_bytes_that_are_no_text_are_not_trained_on(tmp_path: Path) -> None:
    line = b'{"image": "a.jpg", "caption": "a caf\xe9"}\n'
    (tmp_path / "captions.jsonl").write_bytes(b"\n" + line)
    with pytest.raises(DataError, match=r"captions.jsonl:2: not UTF-8: .* at byte 36"):
        Folder(root=str(tmp_path)).split("train")
    (tmp_path / "captions.jsonl").write_bytes(b"\xef\xbb\xbf" + line.replace(b"\xe9", b"e"))
    assert _ids(Folder(root=str(tmp_path)), hash_split("a.jpg")) == ["a.jpg"]


def test_a_folder_without_captions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file\n.*each of its lines"):
        Folder(root=str(tmp_path)).split("train")


# ------------------------------------------------------------------------------------- mixtures


@pytest.fixture
def flickr8k(tmp_path: Path) -> Path:
    """Three photos; the one of dev, by its number, is one that flickr30k trains on."""
    root = tmp_path / "flickr8k"
    names = {"train": "200010_0a1b2c3d4e.jpg", "dev": "100020_aaaaaaaaaa.jpg", "test": "9_bb.jpg"}
    for part, name in names.items():
        (root / "Images").mkdir(parents=True, exist_ok=True)
        picture(root / "Images" / name)
        (root / f"Flickr_8k.{part}Images.txt").write_text(name + "\n")
    lines = [f"{name}#{k}\ta {part} caption {k} ." for part, name in names.items() for k in "012"]
    (root / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    return root


def test_photos_of_flickr_and_coco_are_known_by_number() -> None:
    assert photo("1000268201_693b08cb0e.jpg") == photo("1000268201.jpg") == "1000268201"
    assert photo("train2014/COCO_train2014_000000000009.jpg") == photo("000000000009.jpg")
    assert photo("000000000009.jpg") != photo("9000000000.jpg")
    assert photo("a.jpg") != photo("b.jpg")


def test_a_leak_is_refused_counted_and_named(flickr8k: Path, flickr30k: Path) -> None:
    parts = [Flickr8k(root=str(flickr8k)), Flickr30k(root=str(flickr30k))]
    with pytest.raises(DataError) as caught:
        Mix(of=parts).split("train")
    assert "flickr30k trains on 1 of them: 100020" in str(caught.value)
    assert "flickr8k trains" not in str(caught.value) and "on_leak=drop" in str(caught.value)
    dropped = Mix(of=parts, on_leak="drop")
    assert dropped.split("train").ids == ["200010_0a1b2c3d4e.jpg", "100010.jpg"]
    assert dropped.split("val").ids == ["100020_aaaaaaaaaa.jpg", "100030.jpg"]


def test_weights_say_how_often_captions_come(flickr8k: Path, flickr30k: Path) -> None:
    """3 captions of weight 4 beside 2 of weight 1: 6/7 of all draws."""
    parts = [Flickr8k(root=str(flickr8k)), Flickr30k(root=str(flickr30k))]
    split = Mix(of=parts, weights=[4.0, 1.0], on_leak="drop").split("train")
    assert split.weights == [4.0, 1.0]
    tokenizer = Words()
    tokenizer.fit([text for texts in split.captions for text in texts])
    data = Captions.of(split, torch.arange(2.0).view(2, 1, 1), tokenizer, 8, 0, "cpu")
    seen = torch.cat([data.batch(k, 50, seed=0).features for k in range(40)])
    assert float((seen == 0).float().mean()) == pytest.approx(12 / 14, abs=0.03)


def test_a_photo_that_both_have_counts_once(flickr8k: Path, flickr30k: Path) -> None:
    """As 200010_0a1b2c3d4e.jpg and as 200010.jpg; one dataset's own names stay apart."""
    for name, text in (
        ("results_20130124.token", "200010.jpg#0\tA twin ."),
        ("train.txt", "200010"),
    ):
        with (flickr30k / name).open("a") as file:
            file.write("\n" + text + "\n")
    eight, thirty = Flickr8k(root=str(flickr8k)), Flickr30k(root=str(flickr30k))
    own = "200010_0a1b2c3d4e.jpg"
    split = Mix(of=[eight, thirty], weights=[4.0, 1.0], on_leak="drop").split("train")
    assert (split.ids, split.weights) == ([own, "100010.jpg"], [4.0, 1.0])
    split = Mix(of=[thirty, eight], on_leak="drop").split("train")
    assert split.ids == ["100010.jpg", "200010.jpg"]
    lines = [{"image": f"{it}/1.jpg", "caption": "a", "split": "train"} for it in "ab"]
    split = Mix(of=[folder(flickr8k.parent / "own", *lines)]).split("train")
    assert split.ids == ["a/1.jpg", "b/1.jpg"]


def test_a_mixture_gives_each_part_s_photos(flickr8k: Path, flickr30k: Path) -> None:
    parts = [Flickr8k(root=str(flickr8k)), Flickr30k(root=str(flickr30k))]
    mixed = Mix(of=parts, on_leak="drop").split("val")
    own = [part.split("val").images([0])[0] for part in parts]
    assert [it.tobytes() for it in mixed.images([1, 0])] == [it.tobytes() for it in own[::-1]]
    assert mixed.fingerprint != Mix(of=parts[:1]).split("val").fingerprint


def test_a_mixture_of_nothing_or_with_other_weights(flickr8k: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Mix(of=[])
    with pytest.raises(ValueError, match="expected 1 numbers above 0"):
        Mix(of=[Flickr8k(root=str(flickr8k))], weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="one of them true"):
        Mix(of=[Flickr8k(root=str(flickr8k))], photos=[False])


def test_captions_without_their_photos_are_trained_on_alone(
    flickr8k: Path, flickr30k: Path
) -> None:
    """No feature is asked for them, every batch withholds it, and nothing else knows of them."""
    parts = [Flickr8k(root=str(flickr8k)), Flickr30k(root=str(flickr30k))]
    mix = Mix(of=parts, photos=[True, False], on_leak="drop")
    train = mix.split("train")
    assert (train.ids, train.pictured) == (
        ["200010_0a1b2c3d4e.jpg", "100010.jpg"],
        [True, False],
    )
    assert mix.split("val").ids == ["100020_aaaaaaaaaa.jpg"]
    assert Mix(of=[mix]).split("train").pictured == [True, False]
    path = tmp_file(flickr8k, train.ids[:1])
    table = features(Features(path=str(path)), train, None)
    assert table.shape == (1, 1, 3)
    tokenizer = Words()
    tokenizer.fit([text for texts in train.captions for text in texts])
    batch = Captions.of(train, table, tokenizer, 8, 0, "cpu").batch(0, 50, seed=0)
    keep = withhold(batch, 0.0, torch.Generator()).keep
    seen = tokenizer.decode(batch.ids)
    assert keep.tolist() == ["caption" in text for text in seen] and len(set(keep.tolist())) == 2


def test_the_doctor_compares_features_with_captions_of_photos_alone(
    flickr8k: Path, flickr30k: Path
) -> None:
    """Wherever in a mixture the captions without photos stand."""
    parts = [Flickr30k(root=str(flickr30k)), Flickr8k(root=str(flickr8k))]
    train = Mix(of=parts, photos=[False, True], on_leak="drop").split("train")
    assert train.pictured == [False, True]
    seen = _with_photos(train)
    assert (seen.ids, seen.captions) == (train.ids[1:], train.captions[1:])
    assert len(train.ids) == 2


def tmp_file(folder: Path, ids: list[str]) -> Path:
    path = folder / "features.safetensors"
    save_file({"features": torch.ones(len(ids), 3)}, path, {"image_ids": json.dumps(ids)})
    return path


def test_photos_that_one_dataset_keeps_apart_are_in_no_other_s_training(
    flickr8k: Path, flickr30k: Path
) -> None:
    """Flickr8k's `held` too, though no other has such a split."""
    with (flickr8k / "Flickr_8k.trainImages.txt").open("a") as file:
        file.write("100010_cccccccccc.jpg\n")
    with (flickr8k / "Flickr8k.token.txt").open("a") as file:
        file.write("100010_cccccccccc.jpg#0\ta held caption .\n")
    parts = [Flickr8k(root=str(flickr8k), held=1), Flickr30k(root=str(flickr30k))]
    mix = Mix(of=parts, photos=[True, False], on_leak="drop")
    assert mix.split("train").ids == ["200010_0a1b2c3d4e.jpg"]
    assert mix.split("held").ids == ["100010_cccccccccc.jpg"]


def test_a_split_that_is_missing_can_not_be_searched_for_leaks(
    flickr8k: Path, flickr30k: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (flickr8k / "Flickr_8k.testImages.txt").unlink()
    parts = [Flickr8k(root=str(flickr8k)), Flickr30k(root=str(flickr30k))]
    Mix(of=parts, on_leak="drop").split("train")
    assert "flickr8k has no test split to look for leaks of" in caplog.text


# ------------------------------------------------------------------------------------ by caption


def test_by_caption_validates_on_photos_that_were_trained_on(flickr8k: Path) -> None:
    """The mistake of CLIP-Diffusion-LM, for replays: all captions once, every photo in training."""
    right, wrong = (Flickr8k(root=str(flickr8k), by=by) for by in ("image", "caption"))
    train, val = (wrong.split(name) for name in ("train", "val"))
    assert val.ids == right.split("val").ids and val.captions == [["a dev caption 2 ."]]
    assert train.ids == [*right.split("train").ids, *val.ids]
    assert train.captions[-1] == ["a dev caption 0 .", "a dev caption 1 ."]
    assert wrong.split("test").captions == right.split("test").captions


def test_flickr30k_by_caption_is_the_same_mistake(flickr30k: Path) -> None:
    wrong = Flickr30k(root=str(flickr30k), by="caption")
    train, val = wrong.split("train"), wrong.split("val")
    assert (val.ids, val.captions) == (SPLITS["val"], [["A val photo 1 ."]])
    assert train.ids == SPLITS["train"] + SPLITS["val"]
    assert train.captions[-1] == ["A val photo 0 ."] and len(train.captions[0]) == 2
    assert wrong.split("test").captions == Flickr30k(root=str(flickr30k)).split("test").captions


def test_errors_are_for_people() -> None:
    assert issubclass(DataError, CdlmError)
