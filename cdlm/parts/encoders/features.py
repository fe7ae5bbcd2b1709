"""Ready features as the encoder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cdlm.errors import CdlmError, DataError, nearest
from cdlm.parts.encoders.files import beside, sha256

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True, kw_only=True)
class Features:
    """Ready features from a safetensors file, found by image id.

    The file: a tensor M C or M N C of any float type, and in its metadata `image_ids`, a JSON list
    of M ids in the order of the rows. Values are used as they are, at whatever scale: the network's
    conditioning has a LayerNorm for that.
    Shapes: ids B -> B N C (N = 1 for M C), float32.
    Errors: DataError for a file of another form, ids without a feature, NaN and infinity.
    """

    needs: ClassVar[set[str]] = set()

    path: str  # of the safetensors file
    tensor: str = "features"  # the name of the tensor in the file

    def to(self, device: str) -> None:
        """Nothing runs here: features arrive on the CPU whatever the device."""

    def identity(self) -> dict[str, Any]:
        """The file's sha256 and the tensor's name."""
        self._header()
        return {"encoder": "features", "sha256": sha256(self._file), "tensor": self.tensor}

    def shape(self) -> tuple[int, int]:
        """(N, C), from the file's header alone."""
        shape, _ = self._header()
        return (1, shape[1]) if len(shape) == 2 else (shape[1], shape[2])

    def lookup(self, ids: Sequence[str]) -> Tensor:
        """ids B -> B N C. Errors: DataError for ids that the file lacks, NaN and infinity."""
        _, known = self._header()
        rows = {image: row for row, image in enumerate(known)}
        lost = [image for image in ids if image not in rows]
        if lost:
            raise DataError(_lost_ids(self._file, lost, len(ids), known))
        features = self._load()[[rows[image] for image in ids]].float()
        bad = (~features.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            names = ", ".join(ids[i] for i in bad[:3])
            raise DataError(f"{self._file}: NaN or infinity in {len(bad):,} features: {names}")
        return features.reshape(len(ids), *self.shape())

    def encode(self, images: Sequence[Image]) -> Tensor:
        """Always refuses: a file of ready features knows no new photos."""
        raise CdlmError(
            f"{self._file} holds ready features and can't encode new photos\n"
            "    a run on new photos needs an encoder that computes, such as open_clip"
        )

    @property
    def _file(self) -> Path:
        return Path(self.path).expanduser()

    def _load(self) -> Tensor:
        from safetensors import safe_open

        with safe_open(self._file, "pt") as file:
            return file.get_tensor(self.tensor)

    def _header(self) -> tuple[list[int], list[str]]:
        """Shape of the tensor and the ids of its rows, both checked."""
        from safetensors import SafetensorError, safe_open

        if not self._file.is_file():
            raise DataError(f"encoder.path: no file {self._file}\n    {beside(self._file)}")
        try:
            with safe_open(self._file, "pt") as file:
                _must_name(self.tensor, file.keys(), self._file)
                part = file.get_slice(self.tensor)
                shape, dtype, about = part.get_shape(), part.get_dtype(), file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self._file}: not a whole safetensors file: {error}") from error
        _must_be_features(shape, dtype, self._file)
        return shape, _image_ids(about, shape[0], self._file)


def _must_name(tensor: str, names: Iterable[str], path: Path) -> None:
    if tensor not in names:
        raise DataError(f'encoder.tensor: {path} has no "{tensor}"\n    {nearest(tensor, names)}')


def _must_be_features(shape: list[int], dtype: str, path: Path) -> None:
    if len(shape) not in (2, 3) or 0 in shape:
        raise DataError(
            f"{path}: features of shape {shape}; expected images x width or images x tokens x width"
        )
    if dtype not in FLOATS:
        raise DataError(f"{path}: features of type {dtype}; allowed: {', '.join(FLOATS)}")


def _image_ids(about: dict[str, str], rows: int, path: Path) -> list[str]:
    try:
        ids = json.loads(about["image_ids"])
    except (KeyError, ValueError, RecursionError) as error:
        raise DataError(
            f'{path}: the metadata must hold "image_ids", a JSON list of the id of each row; '
            f"found: {', '.join(about) or 'no metadata'}"
        ) from error
    if not isinstance(ids, list) or not all(isinstance(image, str) for image in ids):
        raise DataError(f'{path}: "image_ids" must be a JSON list of strings')
    if len(ids) != rows:
        raise DataError(f"{path}: {len(ids):,} image_ids, but {rows:,} rows of features")
    if len(set(ids)) != len(ids):
        twice = next(image for image in sorted(ids) if ids.count(image) > 1)
        raise DataError(f'{path}: "{twice}" stands twice in image_ids; which row is meant?')
    return ids


def _lost_ids(path: Path, lost: list[str], asked: int, known: list[str]) -> str:
    first = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
    close = get_close_matches(lost[0], known, n=1, cutoff=0.6)
    hint = f'nearest to the first: "{close[0]}"; ' if close else ""
    return (
        f"{path}: no features for {len(lost):,} of {asked:,} images: {first}\n"
        f'    {hint}the file has {len(known):,}, such as "{known[0]}"'
    )
