"""Captions of one's own images."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdlm.cli.common import (
    Device,
    SamplingSets,
    app,
    must_be_a_place,
)
from cdlm.errors import CdlmError

if TYPE_CHECKING:
    from PIL.Image import Image

    from cdlm.captioner import Caption, Captioner, Options

log = logging.getLogger(__name__)
AT_ONCE = 64  # images that `caption` reads, captions and writes together


@app.command()
def caption(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Images and folders.")],
    run: Annotated[Path, typer.Option(metavar="DIR", help="The run whose captioner to use.")],
    out: Annotated[
        Path | None, typer.Option("--out", "--jsonl", metavar="FILE", help="Write JSON lines here.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps.")] = None,
    sampler: Annotated[str | None, typer.Option(metavar="NAME", help="cdlm list sampler")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale; 1: none.")] = None,
    candidates: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Drawn for each image; one of them is chosen."),
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Also the caption at every step of sampling.")
    ] = False,
    n: Annotated[
        int, typer.Option("--n", min=1, help="So many different captions of each image.")
    ] = 1,
    template: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Words to keep: "a [ ] dog on [ ]".')
    ] = None,
    forbid: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD", help="A word that no caption may have; may be repeated."),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(metavar="N-M", help="Fewest and most words: 5-12, 5-, -12, or 7 for just 7."),
    ] = None,
    set_: SamplingSets = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="Of all random numbers.")] = 0,
    device: Device = "auto",
) -> None:
    """Caption your own images.

    Like: cdlm caption photo.jpg --run RUN --candidates 10. After each caption stands how far the
    other candidates say the same, 0 to 1: 5 of them, unless the run's recipe selects among others.
    Photos that can't be read are named, and stop nothing. --template "a [ ] dog on ..." gives words
    to keep: [ ] is one to fill in, and "..." at the end lets the caption go on. What is left out is
    as in the run's recipe. With --n nothing is selected: captions stand as they were drawn, those
    of a run with beams the best first. A run on ready features needs the encoder that they are of:
    --set 'encoder={use="open_clip", ...}'.
    """
    from cdlm.captioner import Captioner
    from cdlm.parts.datasets import photos

    _must_have_an_effect(n, candidates, trace)
    seeing, saying = _apart(set_ or ())
    options: Options = {
        "steps": steps, "sampler": sampler, "guidance": guidance, "template": template,
        "forbid": forbid or (), "words": words if words is None else _limits(words), "sets": saying,
    }  # fmt: skip
    found = photos.find(images)
    captioner = Captioner.load(run, device, seeing)
    if n > 1:
        say = partial(_several, captioner, n, options)
    else:
        say = partial(_one, captioner, candidates, trace, options)
    _caption_all(found, say, seed, out)


def _apart(sets: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that say what looks at the photos, and those that say how captions are sampled."""
    from cdlm.layers import key_of

    seeing, saying = list[str](), list[str]()
    for text in sets:
        (seeing if key_of(text)[0] == "encoder" else saying).append(text)
    return seeing, saying


def _must_have_an_effect(n: int, candidates: int | None, trace: bool) -> None:
    if n > 1 and (candidates or trace):
        option = "--candidates" if candidates else "--trace"
        raise CdlmError(f"{option} has no effect beside --n, which shows every caption it draws")


def _caption_all(
    found: Sequence[Path],
    say: Callable[[dict[str, Image], int], Iterator[dict[str, Any]]],
    seed: int,
    out: Path | None,
) -> None:
    """Write a record for each photo, those that can't be read among them.

    say: photos by name and a seed -> their records. Raises CdlmError at the end for photos that
    can't be read.
    """
    from cdlm import progress

    bad: list[CdlmError] = []
    with _lines_to(out) as write, progress.bars() as tell:
        for start in range(0, len(found), AT_ONCE):
            read = _read(found[start : start + AT_ONCE], bad, write)
            for record in say(read, seed + start):
                write(record)
            tell("captions", min(start + AT_ONCE, len(found)), len(found), "")
    _fail_for(bad, len(found))


def _several(
    captioner: Captioner, n: int, options: Options, read: dict[str, Image], seed: int
) -> Iterator[dict[str, Any]]:
    """Records of n different captions of each photo."""
    options = {**options, "seed": seed}
    for path, texts in zip(read, captioner(list(read.values()), n=n, **options), strict=True):
        if len(texts) < n:
            log.warning("%s: only %d of %d different captions found", path, len(texts), n)
        yield {"image": path, "captions": texts}


def _one(
    captioner: Captioner,
    candidates: int | None,
    trace: bool,
    options: Options,
    read: dict[str, Image],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Records of the chosen caption of each photo, and of its rivals."""
    options = {**options, "seed": seed}
    said = captioner.details(list(read.values()), candidates=candidates, trace=trace, **options)
    for path, it in zip(read, said, strict=True):
        yield _caption_record(path, it)


def _read(
    paths: Sequence[Path], bad: list[CdlmError], write: Callable[[dict[str, Any]], object]
) -> dict[str, Image]:
    """The photos that can be read, by name; the others are noted."""
    from cdlm.parts.datasets import photos

    read = {}
    for path in paths:
        try:
            read[str(path)] = photos.read(path)
        except CdlmError as error:
            bad.append(error)
            write({"image": str(path), "error": str(error)})
            log.warning("%s", error)
    return read


def _fail_for(bad: Sequence[CdlmError], total: int) -> None:
    """Raises CdlmError where photos could not be read, once all others are captioned."""
    if total == len(bad) == 1:
        raise bad[0]
    if bad:
        rest = "the others are captioned" if len(bad) < total else "none is captioned"
        raise CdlmError(f"{len(bad):,} of {total:,} photos can't be read (see above); {rest}")


def _limits(text: str) -> tuple[int, int | None]:
    """The fewest and the most words that "5-12" says. Raises CdlmError."""
    found = re.fullmatch(r"(\d*)(-?)(\d*)", text.strip())
    if found is None or not (found[1] or found[3]):
        raise CdlmError(f'--words {text}: expected "5-12", "5-", "-12" or "7"')
    least = int(found[1] or 0)
    most = int(found[3]) if found[3] else None if found[2] else least
    if most is not None and most < max(least, 1):
        raise CdlmError(f"--words {text}: no caption has at least {least} and at most {most} words")
    return least, most


@contextmanager
def _lines_to(out: Path | None) -> Iterator[Callable[[dict[str, Any]], object]]:
    """A function that writes an image's record: as text, or as a JSON line into a file."""
    if out is None:
        yield _print_record
        return
    must_be_a_place(out)
    try:
        file = out.open("w", encoding="utf-8", buffering=1)  # by lines: a kill leaves what is done
    except OSError as error:
        raise CdlmError(f"--out {out}: can't write there: {error.strerror}") from error
    with file:
        yield lambda record: print(json.dumps(record), file=file)


def _print_record(record: dict[str, Any]) -> None:
    """A line for each caption: image, caption, confidence; and below it one for each step."""
    path = record["image"]
    for text in record.get("captions", ()):
        print(f"{path}\t{text}", flush=True)
    if "caption" in record:
        sure = [f"{record['confidence']:.2f}"] if "confidence" in record else []
        print(path, record["caption"], *sure, sep="\t", flush=True)
    for i, text in enumerate(record.get("trace", ())):
        print(f"  step {i}\t{text}", flush=True)


def _caption_record(path: str, said: Caption) -> dict[str, Any]:
    record: dict[str, Any] = {"image": path, "caption": said.text}
    if said.confidence is not None:
        record |= {"confidence": round(said.confidence, 4), "candidates": said.candidates}
    return record | ({"trace": said.trace} if said.trace else {})
