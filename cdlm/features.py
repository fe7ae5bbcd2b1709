"""Features of a split's images and captions: ready ones, cached ones, or computed and cached."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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


def features(encoder: Encoder, split: Split, cache: Path | None, tell: Tell = silent) -> Tensor:
    """The feature of every image of a split that has a photo: images N C, float32 on the CPU.

    Ready features are looked up. Others are read from `cache`, or computed and left there. A
    cache file is named by all that changes its values (`encoder.identity()`, `split.fingerprint`),
    and used only if its names and its checksum are right. Values differ in the last digits between
    devices and batch sizes, which are not part of the name.
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
    if cache is None:
        return _compute_texts(encoder, captions, tell)
    about = {"encoder": encoder.identity(), "captions": _digest(_canonical(list(captions)))}
    return _kept(cache, about, [], lambda: _compute_texts(encoder, captions, tell))


def _pictured(split: Split) -> list[str]:
    """The ids of the images that have a photo."""
    return [name for name, there in zip(split.ids, split.pictured, strict=True) if there]


def _computed(
    encoder: Encoder, split: Split, cache: Path | None, tell: Tell, views: Views | None = None
) -> Tensor:
    """The features of a split's photos, or of their views, from the cache where it has them."""
    if cache is None:
        return _compute(encoder, split, tell, views)
    about = {"encoder": encoder.identity(), "split": split.fingerprint}
    about |= {"views": views.identity()} if views else {}
    return _kept(cache, about, _pictured(split), lambda: _compute(encoder, split, tell, views))


def _kept(
    cache: Path, about: dict[str, Any], ids: Sequence[str], compute: Callable[[], Tensor]
) -> Tensor:
    """What the cache has under this description, or what is computed now, and left there."""
    kept = Kept.of(cache, about, ids)
    found = kept.load()
    if found is not None:
        return found
    with kept.alone():  # of processes that want the same features one computes them
        found = kept.load()
        if found is None:
            found = compute()
            kept.save(found)
    return found


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


def _compute(encoder: Encoder, split: Split, tell: Tell, views: Views | None) -> Tensor:
    """Of the photos N C each, or of their views K N C."""
    rows = [row for row, there in enumerate(split.pictured) if there]
    total, each = len(rows), (views.count,) if views else ()
    result = torch.empty(total, *each, *encoder.shape())
    doing = "features of views" if views else "image features"
    for start in range(0, total, AT_ONCE):
        tell(doing, start, total, "")
        some = rows[start : start + AT_ONCE]
        images, names = split.images(some), [split.ids[row] for row in some]
        if views:
            images = list(
                chain(*(views(it, Random(name)) for it, name in zip(images, names, strict=True)))
            )
            names = [name for name in names for _ in range(views.count)]
        found = _checked(encoder, images, names)
        result[start : start + len(some)] = found.reshape(len(some), *each, *encoder.shape())
    tell(doing, total, total, "")
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


def _compute_texts(encoder: Encoder, captions: Sequence[str], tell: Tell) -> Tensor:
    _, width = encoder.shape()
    result = torch.empty(len(captions), 1, width)
    for start in range(0, len(captions), TEXTS_AT_ONCE):
        tell("caption features", start, len(captions), "")
        got = encoder.texts(captions[start : start + TEXTS_AT_ONCE])
        if got.shape[1:] != (1, width) or not bool(got.isfinite().all()):
            raise CdlmError(
                f"the encoder gave caption features of {tuple(got.shape)}, not finite B 1 C"
            )
        result[start : start + len(got)] = got
    tell("caption features", len(captions), len(captions), "")
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
