"""Image features of a split: ready ones, cached ones, or computed now and cached."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdlm.errors import CdlmError, DataError
from cdlm.progress import Tell, silent
from cdlm.rundir import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from cdlm.protocols import Encoder, Split

log = logging.getLogger(__name__)

AT_ONCE = 64  # photos held in memory at a time


def features(encoder: Encoder, split: Split, cache: Path | None, tell: Tell = silent) -> Tensor:
    """The feature of every image of a split: len(split.ids) N C, float32 on the CPU.

    Ready features are looked up. Others are read from `cache`, or computed and left there. A
    cache file is named by all that changes its values (`encoder.identity()`, `split.fingerprint`),
    and used only if its names and its checksum are right. Values differ in the last digits between
    devices and batch sizes, which are not part of the name.
    Errors: DataError for photos that can't be read; CdlmError for features that aren't finite.
    """
    ready = encoder.lookup(split.ids)
    if ready is not None:
        return ready
    if cache is None:
        return _compute(encoder, split, tell)
    kept = Kept.of(cache, encoder.identity(), split)
    found = kept.load()
    if found is None:
        found = _compute(encoder, split, tell)
        kept.save(found)
    return found


@dataclass(frozen=True)
class Kept:
    """One file of the cache."""

    path: Path
    about: dict[str, str]  # its metadata, but for the checksum

    @classmethod
    def of(cls, cache: Path, identity: dict[str, Any], split: Split) -> Kept:
        """The file that features of this split by this encoder belong in."""
        text = _canonical({"encoder": identity, "split": split.fingerprint})
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        about = {"identity": text, "ids": _canonical(split.ids)}
        return cls(cache / "features" / f"{key}.safetensors", about)

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
            log.warning("image features are not kept for next time: %s", error)

    def _stamped(self, tensor: Tensor) -> dict[str, str]:
        return self.about | {"sha256": _checksum(tensor)}

    def _warn(self, why: str) -> None:
        log.warning(
            "%s is damaged or unreadable (%s); its features are computed again", self.path, why
        )


def _compute(encoder: Encoder, split: Split, tell: Tell) -> Tensor:
    total = len(split.ids)
    result = torch.empty(total, *encoder.shape())
    for start in range(0, total, AT_ONCE):
        tell("image features", start, total, "")
        rows = range(start, min(start + AT_ONCE, total))
        result[start : rows.stop] = _checked(encoder, split, rows)
    tell("image features", total, total, "")
    return result


def _checked(encoder: Encoder, split: Split, rows: range) -> Tensor:
    got = encoder.encode(split.images(rows))
    if got.shape != (wanted := (len(rows), *encoder.shape())):
        raise CdlmError(f"the encoder gave features of shape {tuple(got.shape)}, not {wanted}")
    if not got.isfinite().all():
        bad = [split.ids[row] for row, x in zip(rows, got, strict=True) if not x.isfinite().all()]
        raise DataError(
            f"the encoder gave NaN or infinity for {len(bad)} images: {', '.join(bad[:3])}"
        )
    return got


def _checksum(tensor: Tensor) -> str:
    """sha256 of type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
