"""The contact sheet: everything on it, nothing outside its place, written whole or not at all."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image, ImageColor, ImageFont

from cdlm.errors import DataError, RunError
from cdlm.gallery import BAD, CAPTION, CELL, COLUMNS, GOOD, GUTTER, MARGIN, SCALE, gallery

RED = (200, 30, 30)


def sheet(path: Path, n: int = 1, caption: str = "a dog", mark: bool | None = None) -> Image.Image:
    images = [Image.new("RGB", (64, 64), RED)] * n
    file = path / "gallery.png"
    gallery(images, [caption] * n, ["ref"] * n, [mark] * n, file, "title", "subtitle")
    with Image.open(file) as image:
        return image.convert("RGB")


def has(image: Image.Image, colour: str) -> bool:
    wanted = ImageColor.getrgb(colour)
    return wanted in {c for _, c in image.getcolors(1 << 24) or []}


@pytest.mark.parametrize("n", [1, COLUMNS, COLUMNS + 1, 12])
def test_every_image_has_its_place_in_the_grid(tmp_path: Path, n: int) -> None:
    image = sheet(tmp_path, n)
    columns = min(n, COLUMNS)
    assert image.width == (2 * MARGIN + columns * CELL + (columns - 1) * GUTTER) * SCALE
    across = [(MARGIN + k * (CELL + GUTTER) + CELL // 2) * SCALE for k in range(columns)]
    down = [[image.getpixel((x, y)) == RED for y in range(image.height)] for x in across]
    starts = [sum(b and not a for a, b in pairwise(line)) for line in down]
    assert starts == [len(range(k, n, COLUMNS)) for k in range(columns)]


def test_a_mark_is_green_red_or_absent(tmp_path: Path) -> None:
    sheets = [sheet(tmp_path, mark=mark) for mark in (True, False, None)]
    found = [(has(image, GOOD), has(image, BAD)) for image in sheets]
    assert found == [(True, False), (False, True), (False, False)]


@pytest.mark.parametrize(
    "text", ["", "word " * 80, "w" * 400, "犬が走る 😀 हिन्दी", "\ud800 \x00 a\u2028b", "[red]a[/]"]
)
def test_any_caption_stays_inside_the_margins(tmp_path: Path, text: str) -> None:
    image = sheet(tmp_path, caption=text, mark=True)
    edge = MARGIN * SCALE // 2
    for box in ((0, 0, edge, image.height), (image.width - edge, 0, image.width, image.height)):
        assert image.crop(box).getcolors() == [(edge * image.height, (255, 255, 255))]


def test_text_is_wrapped_within_the_width_without_losing_words() -> None:
    text = "a large red circle is to the left of a small blue square"
    lines = CAPTION.wrap(text, 120)
    assert len(lines) > 1 and " ".join(lines) == text
    font = ImageFont.load_default(CAPTION.size * SCALE)
    assert max(map(font.getlength, lines)) <= 120 * SCALE
    cut = CAPTION.wrap(text * 20, 120)
    assert len(cut) == CAPTION.lines and cut[-1].endswith("...")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize("size", [(1, 1), (5, 900), (900, 5)])
def test_images_of_any_mode_and_shape_are_drawn(
    tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    file = tmp_path / "g.png"
    gallery([Image.new(mode, size)] * 2, ["a", "b"], ["", ""], [None, True], file, "t")
    with Image.open(file) as image:
        assert image.width == (2 * MARGIN + 2 * CELL + GUTTER) * SCALE


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    sheet(tmp_path, 3, mark=True)
    first = (tmp_path / "gallery.png").read_bytes()
    sheet(tmp_path, 3, mark=True)
    assert (tmp_path / "gallery.png").read_bytes() == first


def test_a_failed_write_leaves_the_old_sheet_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet(tmp_path)
    before = (tmp_path / "gallery.png").read_bytes()

    def full(image: Image.Image, file: Path, **_: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RunError, match="No space left"):
        sheet(tmp_path, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["gallery.png"]
    assert (tmp_path / "gallery.png").read_bytes() == before


def test_a_missing_folder_and_an_empty_gallery_are_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere"):
        sheet(tmp_path / "nowhere")
    with pytest.raises(DataError, match="at least one image"):
        sheet(tmp_path, 0)
