"""A contact sheet: images with their captions beneath, as one PNG.

All lengths are in points; the sheet is drawn at SCALE pixels per point, so that it stays sharp on
dense screens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cdlm.errors import DataError, RunError
from cdlm.evaluate import plain

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

SCALE = 2  # pixels per point
COLUMNS = 4
CELL = 220  # width of a cell
GUTTER = 28  # between columns
ROW_GAP = 36  # between rows
MARGIN = 48  # around the sheet
MARK = 14  # width of a tick or cross
RADIUS = 6  # of the images' corners

PAPER = "#ffffff"
PANEL = "#f1f2f4"  # behind an image that does not fill its place
EDGE = "#dfe2e6"  # hairline around each panel: white images would melt into the paper
INK = "#1c1f24"
GREY = "#858b94"
GOOD = "#1f9d55"
BAD = "#d64545"


@dataclass(frozen=True)
class Type:
    """A size of type, the line height that suits it, its colour, and how many lines it may take."""

    size: int
    leading: int
    ink: str
    lines: int

    def font(self) -> FreeTypeFont:
        from PIL import ImageFont

        return ImageFont.load_default(self.size * SCALE)  # type: ignore[return-value]

    def wrap(self, text: str, width: float) -> list[str]:
        return _wrap(plain(text), self.font(), width * SCALE, self.lines)


TITLE = Type(size=26, leading=34, ink=INK, lines=2)
SUBTITLE = Type(size=14, leading=20, ink=GREY, lines=3)
CAPTION = Type(size=14, leading=19, ink=INK, lines=6)
REFERENCE = Type(size=12, leading=16, ink=GREY, lines=5)


@dataclass(frozen=True)
class Cell:
    """One image of the sheet, its text already broken into lines."""

    image: Image
    caption: list[str]
    reference: list[str]
    mark: bool | None

    def text_height(self) -> int:
        below = len(self.reference) * REFERENCE.leading + 5 if self.reference else 0
        return len(self.caption) * CAPTION.leading + below


def gallery(
    images: Sequence[Image],
    captions: Sequence[str],
    references: Sequence[str],
    marks: Sequence[bool | None],
    path: Path,
    title: str,
    subtitle: str = "",
) -> None:
    """Write a sheet of images, each with its caption, its reference ("" for none) and its mark.

    A mark is True for a tick, False for a cross, None for neither. The file appears whole or not
    at all. Raises DataError where there are no images, RunError where it can't be written.
    """
    if not images:
        raise DataError(f"{path}: a gallery needs at least one image, got none")
    parts = zip(images, captions, references, marks, strict=True)
    cells = [_cell(*part) for part in parts]
    _write(_sheet(cells, title, subtitle), path)


def _cell(image: Image, caption: str, reference: str, mark: bool | None) -> Cell:
    room = CELL if mark is None else CELL - MARK - 8
    return Cell(
        image=image,
        caption=CAPTION.wrap(caption, room) or ["(empty)"],
        reference=REFERENCE.wrap(reference, CELL),
        mark=mark,
    )


# ----------------------------------------------------------------------------------------- sheet


def _sheet(cells: Sequence[Cell], title: str, subtitle: str) -> Image:
    """Title, then rows of cells; the texts of a row start at one height."""
    from PIL import Image, ImageDraw

    columns = min(COLUMNS, len(cells))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    panel = _panel_height(cells)
    heights = [panel + 10 + max(cell.text_height() for cell in row) for row in rows]
    inner = columns * CELL + (columns - 1) * GUTTER
    header = [(TITLE, TITLE.wrap(title, inner)), (SUBTITLE, SUBTITLE.wrap(subtitle, inner))]
    top = MARGIN + sum(style.leading * len(lines) for style, lines in header) + 24
    size = (inner + 2 * MARGIN, top + sum(heights) + ROW_GAP * (len(rows) - 1) + MARGIN)
    sheet = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for style, lines in header:
        y = _text(draw, lines, MARGIN, y, style)
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            _draw_cell(sheet, cell, MARGIN + column * (CELL + GUTTER), top, panel)
        top += height + ROW_GAP
    return sheet


def _panel_height(cells: Sequence[Cell]) -> int:
    """One height for all images: the middle one of theirs at cell width, within 3:4 and 3:2."""
    heights = sorted(CELL * cell.image.height / cell.image.width for cell in cells)
    return round(min(max(heights[len(heights) // 2], CELL * 2 / 3), CELL * 4 / 3))


def _draw_cell(sheet: Image, cell: Cell, x: int, y: int, panel: int) -> None:
    from PIL import ImageDraw

    picture, mask = _picture(cell.image, CELL * SCALE, panel * SCALE)
    sheet.paste(picture, (x * SCALE, y * SCALE), mask)
    draw = ImageDraw.Draw(sheet)
    box = (x * SCALE, y * SCALE, (x + CELL) * SCALE - 1, (y + panel) * SCALE - 1)
    draw.rounded_rectangle(box, RADIUS * SCALE, outline=EDGE, width=1)
    below = y + panel + 10
    if cell.mark is not None:
        _mark(draw, cell.mark, x + CELL - MARK, below + (CAPTION.leading - MARK) // 2)
    end = _text(draw, cell.caption, x, below, CAPTION)
    _text(draw, cell.reference, x, end + 5, REFERENCE)


def _picture(image: Image, width: int, height: int) -> tuple[Image, Image]:
    """The whole image, as large as fits, centred on a panel; and the panel's rounded outline."""
    from PIL import Image, ImageDraw

    ratio = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    panel = Image.new("RGB", (width, height), PANEL)
    # Enlarged by Lanczos, drawn shapes get a halo.
    smooth = Image.Resampling.BICUBIC if ratio > 1 else Image.Resampling.LANCZOS
    resized = image.convert("RGB").resize(size, smooth)
    panel.paste(resized, ((width - size[0]) // 2, (height - size[1]) // 2))
    outline = Image.new("L", (width * 2, height * 2), 0)  # twice the size: smooth corners
    box = (0, 0, width * 2 - 1, height * 2 - 1)
    ImageDraw.Draw(outline).rounded_rectangle(box, RADIUS * SCALE * 2, fill=255)
    return panel, outline.resize((width, height), Image.Resampling.LANCZOS)


def _mark(draw: ImageDraw, good: bool, x: float, y: float) -> None:
    """A tick or a cross in a box of MARK points, drawn with lines: a font may lack the signs."""
    tick = [[(0.08, 0.55), (0.38, 0.85), (0.94, 0.18)]]
    cross = [[(0.15, 0.15), (0.85, 0.85)], [(0.85, 0.15), (0.15, 0.85)]]
    thick = 2 * SCALE
    for stroke in tick if good else cross:
        line = [((x + u * MARK) * SCALE, (y + v * MARK) * SCALE) for u, v in stroke]
        draw.line(line, fill=GOOD if good else BAD, width=thick, joint="curve")
        for px, py in (line[0], line[-1]):  # round ends
            draw.circle((px, py), thick / 2, fill=GOOD if good else BAD)


# ------------------------------------------------------------------------------------------ text


def _text(draw: ImageDraw, lines: Sequence[str], x: int, y: int, style: Type) -> int:
    """Draw lines downwards from y, and return where the next one would start."""
    for line in lines:
        draw.text((x * SCALE, y * SCALE), line, font=style.font(), fill=style.ink)
        y += style.leading
    return y


def _wrap(text: str, font: FreeTypeFont, width: float, most: int) -> list[str]:
    """Break the text into at most `most` lines of `width` pixels; what is cut off ends in "..."."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines += _pieces(word, font, width)
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last.rstrip() + "..."]
    return lines


def _pieces(word: str, font: FreeTypeFont, width: float) -> list[str]:
    """The word, cut where it is wider than a line."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


# ------------------------------------------------------------------------------------------ file


def _write(sheet: Image, path: Path) -> None:
    """Write beside the path first, then rename: a reader never finds half a picture."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        sheet.save(beside, format="PNG")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RunError(
            f"{path}: the gallery can't be written ({error.strerror or error}); "
            "choose a folder that exists and may be written to"
        ) from error
