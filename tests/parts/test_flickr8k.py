from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdlm.errors import DataError
from cdlm.parts.datasets import photos
from cdlm.parts.datasets.flickr8k import KNOWN_QUIRK, Flickr8k

SPLITS = {"train": ["a.jpg", "b.jpg"], "dev": ["c.jpg"], "test": ["d.jpg"]}
NAMES = [name for names in SPLITS.values() for name in names]


def write_splits(folder: Path, splits: dict[str, list[str]] = SPLITS) -> None:
    folder.mkdir(exist_ok=True)
    for word, names in splits.items():
        (folder / f"Flickr_8k.{word}Images.txt").write_text("\n".join(names) + "\n")


def write_photos(folder: Path, names: list[str] = NAMES) -> None:
    folder.mkdir()
    for i, name in enumerate(names):
        Image.new("RGB", (20 + i, 10), (40 * i, 100, 0)).save(folder / name)


def original_lines(names: list[str] = NAMES) -> list[str]:
    return [f"{name}#{i}\tcaption {i} of {name} ." for name in names for i in range(2)]


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A whole data set of four photos in the original layout."""
    write_splits(tmp_path)
    write_photos(tmp_path / "Flicker8k_Dataset")
    (tmp_path / "Flickr8k.token.txt").write_text("\n".join(original_lines()) + "\n")
    return tmp_path


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """The same photos as Kaggle has them: no split files."""
    write_photos(tmp_path / "Images")
    rows = [f'{name},"a dog, number {i}"' for name in NAMES for i in range(2)]
    (tmp_path / "captions.txt").write_text("\n".join(["image,caption", *rows]) + "\n")
    return tmp_path


def add_lines(root: Path, *lines: bytes) -> None:
    with (root / "Flickr8k.token.txt").open("ab") as file:
        file.writelines(line + b"\n" for line in lines)


@pytest.mark.parametrize(("name", "word"), [("train", "train"), ("val", "dev"), ("test", "test")])
def test_official_splits(original: Path, name: str, word: str) -> None:
    split = Flickr8k(root=str(original)).split(name)
    assert split.ids == SPLITS[word]
    assert split.captions == [[f"caption {i} of {x} ." for i in range(2)] for x in split.ids]
    assert split.truths == [None] * len(split.ids)


def test_held_images_are_those_of_train_that_are_not_trained_on(original: Path) -> None:
    data = Flickr8k(root=str(original), held=1)
    assert data.split("train").ids == ["a.jpg"]
    assert data.split("held").ids == ["b.jpg"]
    assert data.split("val").ids == ["c.jpg"]


def test_nothing_is_held_unless_asked_and_never_all(original: Path) -> None:
    with pytest.raises(DataError, match="to keep some of train apart"):
        Flickr8k(root=str(original)).split("held")
    with pytest.raises(DataError, match="2 of 2 training images"):
        Flickr8k(root=str(original), held=2).split("train")


def test_text_files_may_lie_in_their_own_folder(original: Path) -> None:
    text = original / "Flickr8k_text"
    text.mkdir()
    for path in original.glob("*.txt"):
        path.rename(text / path.name)
    split = Flickr8k(root=str(original)).split("val")
    assert split.ids == ["c.jpg"]
    assert split.images([0])[0].size == (22, 10)


def test_root_is_seen_from_the_current_folder_and_home(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(original.parent)
    monkeypatch.setenv("HOME", str(original.parent))
    for root in (original.name, f"~/{original.name}"):
        assert Flickr8k(root=root).split("val").ids == ["c.jpg"]


def test_windows_line_ends_and_a_byte_order_mark_are_fine(original: Path) -> None:
    path = original / "Flickr8k.token.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert Flickr8k(root=str(original)).split("train").captions[0][1] == "caption 1 of a.jpg ."


def test_kaggle_captions_keep_their_commas(kaggle: Path) -> None:
    split = Flickr8k(root=str(kaggle), splits="hashed").split("train")
    assert split.captions[0] == ["a dog, number 0", "a dog, number 1"]


def test_kaggle_without_split_files_says_which_and_how_to_go_on(kaggle: Path) -> None:
    with pytest.raises(DataError) as caught:
        Flickr8k(root=str(kaggle)).split("val")
    for part in ("Flickr_8k.devImages.txt", "Flickr8k_text.zip", "splits=hashed", "split_files"):
        assert part in str(caught.value)


def test_kaggle_with_split_files_elsewhere(
    kaggle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("text")
    write_splits(elsewhere)
    data = Flickr8k(root=str(kaggle), split_files=str(elsewhere))
    assert data.split("test").ids == ["d.jpg"]


def test_hashed_splits_share_out_all_images_6_1_1(kaggle: Path) -> None:
    names = [f"{i}.jpg" for i in range(4000)]
    (kaggle / "captions.txt").write_text("image,caption\n" + "".join(f"{x},a\n" for x in names))
    data = Flickr8k(root=str(kaggle), splits="hashed")
    parts = {name: data.split(name).ids for name in ("train", "val", "test")}
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert len(parts["train"]) == pytest.approx(3000, abs=110)  # 4 standard deviations
    assert len(parts["val"]) == pytest.approx(500, abs=84)


def test_split_files_without_effect_are_refused(kaggle: Path) -> None:
    with pytest.raises(DataError, match="no effect"):
        Flickr8k(root=str(kaggle), splits="hashed", split_files="x")


def test_captions_need_no_photos(original: Path) -> None:
    for photo in (original / "Flicker8k_Dataset").iterdir():
        photo.unlink()
    (original / "Flicker8k_Dataset").rmdir()
    split = Flickr8k(root=str(original), on_bad="skip").split("train")
    assert split.ids == SPLITS["train"]
    for ask in (lambda: split.fingerprint, lambda: split.images([0])):
        with pytest.raises(DataError, match=r"(?s)photos are missing.*Flickr8k_Dataset\.zip"):
            ask()


def test_a_split_whose_photos_are_missing_leaves_the_others_alone(original: Path) -> None:
    (original / "Flicker8k_Dataset" / "d.jpg").unlink()
    data = Flickr8k(root=str(original))
    assert len(data.split("train").images([0, 1])) == 2
    with pytest.raises(DataError, match=r"1 of 1 photos are missing: d\.jpg"):
        _ = data.split("test").fingerprint


def test_missing_root_names_a_near_folder_and_the_sources(original: Path) -> None:
    with pytest.raises(DataError) as caught:
        Flickr8k(root=str(original) + "x").split("train")
    for part in (
        f'did you mean "{original}"',
        "jbrownlee/Datasets",
        "adityajn105/flickr8k",
        "--set",
    ):
        assert part in str(caught.value)


def test_missing_captions_point_one_folder_deeper(original: Path) -> None:
    deeper = original / "deeper"
    deeper.mkdir()
    (original / "Flickr8k.token.txt").rename(deeper / "Flickr8k.token.txt")
    with pytest.raises(DataError) as caught:
        Flickr8k(root=str(original)).split("train")
    assert "Flickr8k.token.txt (original layout) or captions.txt (kaggle" in str(caught.value)
    assert f"--set dataset.root={deeper}" in str(caught.value)


def test_unknown_split(original: Path) -> None:
    with pytest.raises(DataError, match='did you mean "train"'):
        Flickr8k(root=str(original)).split("trian")


def test_the_known_quirk_is_dropped_and_counted(original: Path) -> None:
    add_lines(original, *(f"{KNOWN_QUIRK}#{i}\ta train .".encode() for i in range(5)))
    dropped = Flickr8k(root=str(original)).split("train").dropped
    assert len(dropped) == 5
    assert dropped[0][0] == "Flickr8k.token.txt:9"


BAD_LINES = {
    "no tab": (b"a.jpg#7 a dog", "lacks a tab"),
    "no number": (b"a.jpg\ta dog", "lacks a number"),
    "empty caption": (b"a.jpg#7\t  ", "is empty"),
    "second time": (b"a.jpg#0\tagain", "second time"),
    "bad UTF-8": (b"a.jpg#7\ta d\xffg", "not UTF-8"),
    "line separator": ("a.jpg#7\ta\u2028dog".encode(), r"U\+2028"),
    "carriage return": (b"a.jpg#7\ta\rdog", r"U\+000D"),
    "path": (b"../../a.jpg#7\ta dog", "not the name of a photo"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_caption_is_an_error_or_skipped_and_counted(original: Path, case: str) -> None:
    line, why = BAD_LINES[case]
    good = Flickr8k(root=str(original)).split("train").captions
    add_lines(original, line)
    with pytest.raises(DataError, match=rf"Flickr8k\.token\.txt:9: .*{why}"):
        Flickr8k(root=str(original)).split("train")
    split = Flickr8k(root=str(original), on_bad="skip").split("train")
    assert split.captions == good
    assert [what for what, _ in split.dropped] == ["Flickr8k.token.txt:9"]


@pytest.mark.parametrize(
    ("row", "why"),
    [('a.jpg,"open', "not CSV"), ("a.jpg,a dog, a cat", "3 fields"), ("a.jpg,", "is empty")],
)
def test_a_bad_kaggle_row(kaggle: Path, row: str, why: str) -> None:
    with (kaggle / "captions.txt").open("a") as file:
        file.write(f"{row}\na.jpg,the row after\n")
    with pytest.raises(DataError, match=rf"1 bad lines.*\n.*captions\.txt:10: .*{why}"):
        Flickr8k(root=str(kaggle), splits="hashed").split("train")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<!DOCTYPE html><p>404", "web page"),
        (b"PK\x03\x04\0\0", "binary"),
        (b"\n \n", "empty"),
        (b"image_name| comment_number| comment\n", r'should be "image,caption"; found'),
    ],
)
def test_a_caption_file_that_is_none(kaggle: Path, content: bytes, why: str) -> None:
    (kaggle / "captions.txt").write_bytes(content)
    for on_bad in ("error", "skip"):
        with pytest.raises(DataError, match=rf"captions\.txt.*{why}"):
            Flickr8k(root=str(kaggle), splits="hashed", on_bad=on_bad).split("train")  # type: ignore[arg-type]


def test_a_name_that_stands_twice_in_a_split(original: Path) -> None:
    write_splits(original, SPLITS | {"train": ["a.jpg", "b.jpg", "a.jpg"]})
    with pytest.raises(DataError, match=r"Images\.txt:3: a\.jpg comes a second time"):
        Flickr8k(root=str(original)).split("train")
    split = Flickr8k(root=str(original), on_bad="skip").split("train")
    assert (split.ids, len(split.dropped)) == (["a.jpg", "b.jpg"], 1)


@pytest.mark.parametrize("on_bad", ["error", "skip"])
def test_an_image_in_two_splits_is_always_an_error(original: Path, on_bad: str) -> None:
    write_splits(original, SPLITS | {"test": ["d.jpg", "a.jpg"]})
    with pytest.raises(DataError, match=r"in two splits: a\.jpg"):
        Flickr8k(root=str(original), on_bad=on_bad).split("val")  # type: ignore[arg-type]


def test_an_image_without_captions(original: Path) -> None:
    write_splits(original, SPLITS | {"train": ["a.jpg", "b.jpg", "e.jpg"]})
    with pytest.raises(
        DataError, match=r"1 images of the train split are without captions.*\n.*e\.jpg"
    ):
        Flickr8k(root=str(original)).split("train")
    split = Flickr8k(root=str(original), on_bad="skip").split("train")
    assert (split.ids, split.dropped) == (SPLITS["train"], [("e.jpg", "no caption")])


def test_skipped_photos_are_counted_and_nothing_left_is_an_error(original: Path) -> None:
    folder = original / "Flicker8k_Dataset"
    (folder / "a.jpg").write_bytes(b"")
    (folder / "c.jpg").unlink()
    data = Flickr8k(root=str(original), on_bad="skip")
    split = data.split("train")
    assert split.ids == ["b.jpg"]
    assert [what for what, _ in split.dropped] == ["a.jpg"]
    assert len(split.fingerprint) == 64
    with pytest.raises(DataError, match="nothing is left of the val split"):
        data.split("val")


def test_fingerprint_changes_with_any_photo(original: Path) -> None:
    def fingerprint() -> str:
        return Flickr8k(root=str(original)).split("train").fingerprint

    photo = original / "Flicker8k_Dataset" / "b.jpg"
    before = fingerprint()
    assert fingerprint() == before
    os.utime(photo, ns=(1, photo.stat().st_mtime_ns + 1))
    touched = fingerprint()
    photo.write_bytes(photo.read_bytes() + b"\0")
    assert len({before, touched, fingerprint()}) == 3


# ------------------------------------------------------------------------------------- photos


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def grey16(path: Path) -> Path:
    return saved(path, Image.fromarray(np.full((4, 6), 0x8080, np.uint16)))


READABLE: dict[str, tuple[Callable[[Path], Path], str, tuple[int, int, int]]] = {
    "rgb": (lambda p: saved(p, Image.new("RGB", (6, 4), (9, 8, 7))), ".png", (9, 8, 7)),
    "cmyk": (lambda p: saved(p, Image.new("CMYK", (6, 4), (0, 255, 255, 0))), ".jpg", (254, 0, 0)),
    "16 bits": (grey16, ".png", (128, 128, 128)),
    "clear": (lambda p: saved(p, Image.new("RGBA", (6, 4), (9, 9, 9, 0))), ".png", (255, 255, 255)),
    "palette": (
        lambda p: saved(p, Image.new("P", (6, 4), 0), transparency=0), ".gif", (255, 255, 255)
    ),
    "bilevel": (lambda p: saved(p, Image.new("1", (6, 4), 1)), ".png", (255, 255, 255)),
}  # fmt: skip


@pytest.mark.parametrize("case", READABLE)
def test_every_kind_of_pixels_becomes_rgb(tmp_path: Path, case: str) -> None:
    make, suffix, colour = READABLE[case]
    image = photos.read(make(tmp_path / f"photo{suffix}"))
    assert (image.mode, image.size) == ("RGB", (6, 4))
    pixel = image.getpixel((3, 2))
    assert isinstance(pixel, tuple)
    assert max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= 2


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (6, 4)), exif=exif)
    assert photos.read(path).size == (4, 6)


def truncated(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    saved(path, Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[:900])
    return path


def bomb(path: Path) -> Path:
    saved(path, Image.new("1", (12_000, 12_000)))
    assert path.stat().st_size < 100_000
    return path


def holding(data: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return make


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


UNREADABLE: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "empty": (holding(b""), ".jpg", "empty"),
    "truncated": (truncated, ".jpg", "truncated"),
    "web page": (holding(b"\n<!DOCTYPE html>"), ".jpg", "web page"),
    "git lfs": (holding(b"version https://git-lfs.github.com/spec/v1"), ".jpg", "git lfs pull"),
    "noise": (holding(b"\x01\x02" * 99), ".png", "not an image.*\n.*readable: JPEG"),
    "postscript": (holding(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"), ".jpg", "not an"),
    "bomb": (bomb, ".png", "12,000 x 12,000"),
    "float": (lambda p: saved(p, Image.new("F", (4, 4))), ".tif", "floating-point"),
    "pipe": (pipe, ".jpg", "not a file"),
    "missing": (lambda p: p, ".jpg", "no such photo"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_photo_that_can_not_be_read_is_named(tmp_path: Path, case: str) -> None:
    make, suffix, why = UNREADABLE[case]
    path = make(tmp_path / f"photo{suffix}")
    with pytest.raises(DataError, match=why) as caught:
        photos.read(path)
    assert str(path) in str(caught.value)


def test_find_takes_files_as_given_and_folders_sorted(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "deep/c.jpeg", "note.txt", ".hidden/d.jpg", "._b.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = photos.find([str(tmp_path / "note.txt"), str(tmp_path)])
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["note.txt", "a.png", "b.JPG", "deep/c.jpeg"]


def test_find_names_all_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        photos.find(
            [str(tmp_path / "foto.jpg"), str(tmp_path / "empty"), str(tmp_path / "photo.jpg")]
        )
    message = str(caught.value)
    assert f'did you mean "{tmp_path / "photo.jpg"}"' in message
    assert f"{tmp_path / 'empty'}: no photo" in message


# ---------------------------------------------------------------------------------- real data


@pytest.mark.skipif(
    "CDLM_FLICKR8K" not in os.environ, reason="CDLM_FLICKR8K does not name a folder with Flickr8k"
)
def test_the_real_data_set() -> None:
    data = Flickr8k(root=os.environ["CDLM_FLICKR8K"])
    for name, count in (("train", 6000), ("val", 1000)):
        split = data.split(name)
        assert len(split.ids) == count
        assert {len(captions) for captions in split.captions} == {5}
        assert all(image.mode == "RGB" for image in split.images(range(20)))
