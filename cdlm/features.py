"""Features of a split's images and captions: ready ones, cached ones, or computed and cached."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from cdlm.errors import CdlmError, DataError
from cdlm.progress import Tell, silent
from cdlm.rundir import write_bytes

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from cdlm.protocols import Encoder, Split, Views

log = logging.getLogger(__name__)

AT_ONCE = 64  # photos held in memory at a time
TEXTS_AT_ONCE = 1024
PIECE = 1024  # rows that are kept together while the rest is not there yet


def features(encoder: Encoder, split: Split, cache: Path | None, tell: Tell = silent) -> Tensor:
    """The feature of every image of a split that has a photo: images N C, float32 on the CPU.

    Ready features are looked up. Others are read from `cache`, or computed and left there, PIECE
    by PIECE, so that little is lost where that is interrupted. A cache file is named by all that
    changes its values (`encoder.identity()`, `split.fingerprint`), and used only if its names and
    its checksum are right. Values differ in the last digits between devices and batch sizes, which
    are not part of the name.
    Errors: DataError for photos that can't be read; CdlmError for features that aren't finite.
    """
    ready = encoder.lookup(_pictured(split))
    return _computed(encoder, split, cache, tell) if ready is None else ready


def view_features(
    encoder: Encoder, views: Views, split: Split, cache: Path | None, tell: Tell = silent
) -> Tensor | None:
    """The features of other views of every image that has a photo: images K N C; None for K = 0.

    Cached as those of the photos are, by the views' identity too.
    Errors: DataError for photos that can't be read; CdlmError for ready features, and for features
    that aren't finite.
    """
    if not views.count:
        return None
    if encoder.lookup(_pictured(split)) is not None:
        raise CdlmError(
            "views: these are ready features, of the photos as they are\n"
            '    for other views choose an encoder that encodes photos, or views = { use = "none" }'
        )
    return _computed(encoder, split, cache, tell, views)


def text_features(
    encoder: Encoder, captions: Sequence[str], cache: Path | None, tell: Tell = silent
) -> Tensor:
    """The feature of every caption: len(captions) 1 C, float32 on the CPU. Cached by their texts.

    Errors: CdlmError where the encoder can't read captions, or its features aren't finite.
    """
    compute, rows = partial(_compute_texts, encoder, captions, tell), range(len(captions))
    if cache is None:
        return compute(rows)
    about = {"encoder": encoder.identity(), "captions": _digest(_canonical(list(captions)))}
    return Kept.of(cache, about, []).or_made(rows, compute)


def _pictured(split: Split) -> list[str]:
    """The ids of the images that have a photo."""
    return [name for name, there in zip(split.ids, split.pictured, strict=True) if there]


def _computed(
    encoder: Encoder, split: Split, cache: Path | None, tell: Tell, views: Views | None = None
) -> Tensor:
    """The features of a split's photos, or of their views, from the cache where it has them."""
    compute, names = partial(_compute, encoder, views, split, tell), _pictured(split)
    rows = range(len(names))
    if cache is None:
        return compute(rows)
    about = {"encoder": encoder.identity(), "split": split.fingerprint}
    about |= {"views": views.identity()} if views else {}
    return Kept.of(cache, about, names).or_made(rows, compute)


@dataclass(frozen=True)
class Kept:
    """One file of the cache."""

    path: Path
    about: dict[str, str]  # its metadata, but for the checksum

    @classmethod
    def of(cls, cache: Path, identity: dict[str, Any], ids: Sequence[str]) -> Kept:
        """The file that features so described belong in, with the ids of their rows."""
        text = _canonical(identity)
        about = {"identity": text, "ids": _canonical(list(ids))}
        return cls(cache / "features" / f"{_digest(text)[:16]}.safetensors", about)

    def or_made(self, rows: range, make: Callable[[range], Tensor]) -> Tensor:
        """What is kept here; else what `make` makes of the rows, some at a time, and it is kept."""
        found = self.load()
        if found is not None:
            return found
        with self.alone():  # of processes that want the same features one computes them
            found = self.load()
            if found is None:
                found = self._made(rows, make)
        return found

    def _made(self, rows: range, make: Callable[[range], Tensor]) -> Tensor:
        if len(rows) <= PIECE:
            found = make(rows)
            self.save(found)
            return found
        pieces = [(self._piece(start), rows[start : start + PIECE]) for start in rows[::PIECE]]
        found = torch.empty(0)
        for piece, some in pieces:
            part = piece.load()
            if part is None:
                part = make(some)
                piece.save(part)
            if not some.start:
                found = part.new_empty(len(rows), *part.shape[1:])
            found[some.start : some.stop] = part
        self.save(found)
        for piece, _ in pieces:
            piece.path.unlink(missing_ok=True)
        return found

    def _piece(self, start: int) -> Kept:
        """The file of the rows from here on, until all are there."""
        path = self.path.with_name(f"{self.path.stem}-{start}.safetensors")
        return Kept(path, self.about | {"start": str(start)})

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes waiting; where files can't be locked, they work side by side."""
        with ExitStack() as held:
            try:
                place = self.path.parent.with_name("locks") / self.path.stem
                place.parent.mkdir(parents=True, exist_ok=True)
                file = held.enter_context(place.open("w"))
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                log.debug("%s: not locked: %s", self.path, error)
            yield

    def load(self) -> Tensor | None:
        """The features, or None where there are none, or damaged ones."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                tensor, about = file.get_tensor("features").clone(), file.metadata()
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            self._warn(str(error))
            return None
        if about != self._stamped(tensor):  # as text: a flipped bit in any of it counts
            self._warn("it is not what was written")
            return None
        return tensor

    def save(self, tensor: Tensor) -> None:
        """Write the file whole or not at all; a cache that can't be written is only a pity."""
        from safetensors.torch import save

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.path, save({"features": tensor}, metadata=self._stamped(tensor)))
        except (OSError, CdlmError) as error:
            log.warning("features are not kept for next time: %s", error)

    def _stamped(self, tensor: Tensor) -> dict[str, str]:
        return self.about | {"sha256": _checksum(tensor)}

    def _warn(self, why: str) -> None:
        log.warning(
            "%s is damaged or unreadable (%s); its features are computed again", self.path, why
        )


def _compute(
    encoder: Encoder, views: Views | None, split: Split, tell: Tell, some: range
) -> Tensor:
    """Of some of the photos N C each, or of their views K N C."""
    rows = [row for row, there in enumerate(split.pictured) if there]
    each = (views.count,) if views else ()
    result = torch.empty(len(some), *each, *encoder.shape())
    doing = "features of views" if views else "image features"
    for start in some[::AT_ONCE]:
        tell(doing, start, len(rows), "")
        now = rows[start : min(start + AT_ONCE, some.stop)]
        images, names = split.images(now), [split.ids[row] for row in now]
        if views:
            images = list(
                chain(*(views(it, Random(name)) for it, name in zip(images, names, strict=True)))
            )
            names = [name for name in names for _ in range(views.count)]
        found = _checked(encoder, images, names)
        at = start - some.start
        result[at : at + len(now)] = found.reshape(len(now), *each, *encoder.shape())
    tell(doing, some.stop, len(rows), "")
    return result


def _checked(encoder: Encoder, images: Sequence[Image], names: Sequence[str]) -> Tensor:
    got = encoder.encode(images)
    if got.shape != (wanted := (len(names), *encoder.shape())):
        raise CdlmError(f"the encoder gave features of shape {tuple(got.shape)}, not {wanted}")
    if not got.isfinite().all():
        bad = [name for name, x in zip(names, got, strict=True) if not x.isfinite().all()]
        raise DataError(
            f"the encoder gave NaN or infinity for {len(bad)} images: {', '.join(bad[:3])}"
        )
    return got


def _compute_texts(encoder: Encoder, captions: Sequence[str], tell: Tell, some: range) -> Tensor:
    """Of some of the captions, 1 C each."""
    _, width = encoder.shape()
    result = torch.empty(len(some), 1, width)
    for start in some[::TEXTS_AT_ONCE]:
        tell("caption features", start, len(captions), "")
        got = encoder.texts(captions[start : min(start + TEXTS_AT_ONCE, some.stop)])
        if got.shape[1:] != (1, width) or not bool(got.isfinite().all()):
            raise CdlmError(
                f"the encoder gave caption features of {tuple(got.shape)}, not finite B 1 C"
            )
        result[start - some.start : start - some.start + len(got)] = got
    tell("caption features", some.stop, len(captions), "")
    return result


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(tensor: Tensor) -> str:
    """sha256 of type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
