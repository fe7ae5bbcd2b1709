"""Ready features as the encoder: of images, or of images and captions."""

from __future__ import annotations

import json
from collections import Counter
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


@dataclass(frozen=True)
class _Rows:
    """The rows of a tensor in a safetensors file, each with a name."""

    file: Path
    tensor: str
    names: str  # the key of the metadata that lists them
    key: str  # the recipe's key that gives the path

    def shape(self) -> tuple[int, int]:
        """(N, C), from the file's header alone."""
        shape, _ = self.header()
        return (1, shape[1]) if len(shape) == 2 else (shape[1], shape[2])

    def of(self, wanted: Sequence[str]) -> Tensor:
        """names B -> B N C. Errors: DataError for names that the file lacks, NaN and infinity."""
        _, known = self.header()
        rows = {name: row for row, name in enumerate(known)}
        lost = [name for name in wanted if name not in rows]
        if lost:
            raise DataError(_lost(self, lost, len(wanted), known))
        features = self._load()[[rows[name] for name in wanted]].float()
        bad = (~features.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            names = ", ".join(wanted[i] for i in bad[:3])
            raise DataError(f"{self.file}: NaN or infinity in {len(bad):,} features: {names}")
        return features.reshape(len(wanted), *self.shape())

    def header(self) -> tuple[list[int], list[str]]:
        """Shape of the tensor and the names of its rows, both checked."""
        from safetensors import SafetensorError, safe_open

        if not self.file.is_file():
            raise DataError(f"encoder.{self.key}: no file {self.file}\n    {beside(self.file)}")
        try:
            with safe_open(self.file, "pt") as file:
                _must_name(self.tensor, file.keys(), self.file)
                part = file.get_slice(self.tensor)
                shape, dtype, about = part.get_shape(), part.get_dtype(), file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self.file}: not a whole safetensors file: {error}") from error
        _must_be_features(shape, dtype, self.file)
        return shape, _names(about, shape[0], self)

    def _load(self) -> Tensor:
        from safetensors import safe_open

        with safe_open(self.file, "pt") as file:
            return file.get_tensor(self.tensor)


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
    provides: ClassVar[set[str]] = set()

    path: str  # of the safetensors file
    tensor: str = "features"  # the name of the tensor in the file

    def to(self, device: str) -> None:
        """Nothing runs here: features arrive on the CPU whatever the device."""

    def identity(self) -> dict[str, Any]:
        """The file's sha256 and the tensor's name."""
        self._rows.header()
        return {"encoder": "features", "sha256": sha256(self._rows.file), "tensor": self.tensor}

    def shape(self) -> tuple[int, int]:
        """(N, C), from the file's header alone."""
        return self._rows.shape()

    def ids(self) -> list[str]:
        """The images that the file knows, in the order of its rows."""
        return self._rows.header()[1]

    def lookup(self, ids: Sequence[str]) -> Tensor:
        """ids B -> B N C. Errors: DataError for ids that the file lacks, NaN and infinity."""
        return self._rows.of(ids)

    def encode(self, images: Sequence[Image]) -> Tensor:
        """Always refuses: a file of ready features knows no new photos."""
        raise CdlmError(
            f"{self._rows.file} holds ready features and can't encode new photos\n"
            "    for these, give the encoder that the features are of: "
            "--set 'encoder={use=\"open_clip\", ...}'"
        )

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Always refuses: these are features of images."""
        raise CdlmError(
            f"{self._rows.file} holds features of images and can't read captions\n"
            '    give theirs too: encoder = { use = "paired_features", path = ..., captions = ... }'
        )

    @property
    def _rows(self) -> _Rows:
        return _Rows(Path(self.path).expanduser(), self.tensor, "image_ids", "path")


@dataclass(frozen=True, kw_only=True)
class PairedFeatures:
    """Ready features of images and of captions, from two safetensors files, in one space.

    Images as for `features`. The file of captions: a tensor K C of any float type, and in its
    metadata `captions`, a JSON list of the K texts in the order of the rows, each once; a caption
    is found by its text, as the dataset has it.
    Shapes: ids B -> B N C, captions B -> B 1 C, float32.
    Errors: DataError for files of another form or width, ids and captions without a feature, NaN
    and infinity.
    """

    needs: ClassVar[set[str]] = set()
    provides: ClassVar[set[str]] = {"texts"}

    path: str  # of the safetensors file with the images' features
    captions: str  # of the safetensors file with the captions' features
    tensor: str = "features"  # the name of the tensor in both files

    def to(self, device: str) -> None:
        """Nothing runs here: features arrive on the CPU whatever the device."""

    def identity(self) -> dict[str, Any]:
        """Both files' sha256 and the tensor's name."""
        return self._images.identity() | {
            "encoder": "paired_features",
            "captions": sha256(self._texts.file),
        }

    def shape(self) -> tuple[int, int]:
        """(N, C), from the images' header alone. Errors: DataError where captions differ in C."""
        shape, texts = self._images.shape(), self._texts.shape()
        if texts != (1, shape[1]):
            raise DataError(
                f"encoder.captions: {self.captions} has features of {texts[0]} x {texts[1]}, and "
                f"images of width {shape[1]} need 1 x {shape[1]}: both from one model"
            )
        return shape

    def lookup(self, ids: Sequence[str]) -> Tensor:
        """ids B -> B N C. Errors: DataError for ids that the file lacks, NaN and infinity."""
        return self._images.lookup(ids)

    def encode(self, images: Sequence[Image]) -> Tensor:
        """Always refuses: a file of ready features knows no new photos."""
        return self._images.encode(images)

    def texts(self, captions: Sequence[str]) -> Tensor:
        """captions B -> B 1 C. Errors: DataError for captions that the file lacks."""
        return self._texts.of(captions)

    @property
    def _images(self) -> Features:
        return Features(path=self.path, tensor=self.tensor)

    @property
    def _texts(self) -> _Rows:
        return _Rows(Path(self.captions).expanduser(), self.tensor, "captions", "captions")


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


def _names(about: dict[str, str], rows: int, of: _Rows) -> list[str]:
    try:
        names = json.loads(about[of.names])
    except (KeyError, ValueError, RecursionError) as error:
        raise DataError(
            f'{of.file}: the metadata must hold "{of.names}", a JSON list of the name of each row; '
            f"found: {', '.join(about) or 'no metadata'}"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f'{of.file}: "{of.names}" must be a JSON list of strings')
    if len(names) != rows:
        raise DataError(f"{of.file}: {len(names):,} {of.names}, but {rows:,} rows of features")
    if len(set(names)) != len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f'{of.file}: "{twice}" stands twice in {of.names}; which row is meant?')
    return names


def _lost(of: _Rows, lost: list[str], asked: int, known: list[str]) -> str:
    what = of.names.removeprefix("image_").replace("ids", "images")
    first = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
    close = get_close_matches(lost[0], known, n=1, cutoff=0.6)
    hint = f'nearest to the first: "{close[0]}"; ' if close else ""
    mend = f"; for another dataset: --set encoder.{of.key}=FILE" if len(lost) == asked else ""
    return (
        f"{of.file}: no features for {len(lost):,} of {asked:,} {what}: {first}\n"
        f'    {hint}the file has {len(known):,}, such as "{known[0]}"{mend}'
    )
