"""A TensorFlow Lite network as the encoder: any layer of it, as a grid of tokens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cdlm.errors import CdlmError, DataError
from cdlm.parts.encoders.files import beside, sha256
from cdlm.values import Positive
from cdlm_litert.projection import Projection

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 5  # layers that an error names
PIXELS = {np.uint8: 0, np.int8: -128}  # what a pixel of 0 is in the network's input


class LiteRt:
    """A TensorFlow Lite network, frozen, run on the CPU by LiteRT.

    What one of its layers says of an image, averaged to grid x grid fields, row by row; each field
    is a token. A projection may follow, x -> W x + b, such as a PCA: a safetensors file with
    `weight` C' C and `bias` C'. An image is squeezed to the size that the network takes (bicubic,
    whatever its shape). Networks in whole numbers get its pixels as they are, those in floating
    point -1 (black) to 1 (white).
    Shapes: images B -> B N C, N = grid^2. Units: those of the layer, its whole numbers scaled.
    Errors: CdlmError for a network that takes no images, and a layer that has no fields; DataError
    for files that are not there or of another form.
    Source: https://ai.google.dev/edge/litert
    """

    needs: ClassVar[set[str]] = {"images"}
    provides: ClassVar[set[str]] = set()

    def __init__(
        self,
        *,
        model: str,  # the .tflite file
        layer: str = "",  # the name of its tensor, or how it begins; "": what comes out last
        grid: Positive = 1,  # fields along each side
        projection: str = "",  # a safetensors file; "": the layer as it is
    ):
        self.model = model
        self.layer = layer
        self.grid = grid
        self.projection = projection

    def to(self, device: str) -> None:
        """It works on the CPU, whatever the device."""

    def identity(self) -> dict[str, Any]:
        """Network and projection by their checksums, layer, grid, and LiteRT's version."""
        return {
            "encoder": "litert",
            "ai_edge_litert": version("ai-edge-litert"),
            "model": sha256(self._file),
            "layer": self._layer["name"],
            "grid": self.grid,
            "projection": sha256(Path(self.projection).expanduser()) if self.projection else "",
        }

    def shape(self) -> tuple[int, int]:
        """(N, C)."""
        width = len(self._projection.bias) if self._projection else self._width
        return self.grid**2, width

    def lookup(self, ids: Sequence[str]) -> None:
        """None: features must be computed."""

    def encode(self, images: Sequence[Image]) -> Tensor:
        """images B -> B N C, float32 on the CPU."""
        fields = [torch.empty(0, self.grid**2, self._width)]
        fields += [self._fields(self._said(image)) for image in images]
        found = torch.cat(fields)
        return self._projection(found) if self._projection else found

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Always refuses: these are networks of images."""
        raise CdlmError("encoder litert knows images only; for captions take open_clip")

    def _said(self, image: Image) -> Tensor:
        """What the layer says of one image: 1 ... C."""
        entrance = self._entrance
        _, height, width, _ = entrance["shape"]
        small = image if image.size == (width, height) else image.resize((int(width), int(height)))
        pixels = np.asarray(small)[None]
        if entrance["dtype"] in PIXELS:
            pixels = (pixels.astype(np.int16) + PIXELS[entrance["dtype"]]).astype(entrance["dtype"])
        else:
            pixels = (pixels / 127.5 - 1).astype(np.float32)
        self._network.set_tensor(entrance["index"], pixels)
        self._network.invoke()
        said = torch.from_numpy(self._network.get_tensor(self._layer["index"]).astype(np.float32))
        scale, zero = self._layer["quantization"]
        return (said - zero) * scale if scale else said

    def _fields(self, said: Tensor) -> Tensor:
        """1 H W C, or 1 C -> 1 N C."""
        if said.ndim == 2:
            return said[:, None]
        return F.adaptive_avg_pool2d(said.movedim(3, 1), self.grid).flatten(2).mT

    @cached_property
    def _projection(self) -> Projection | None:
        if not self.projection:
            return None
        return Projection.load(Path(self.projection), self._width)

    @property
    def _width(self) -> int:
        """C of the layer."""
        return int(self._layer["shape"][-1])

    @property
    def _file(self) -> Path:
        path = Path(self.model).expanduser()
        if not path.is_file():
            raise DataError(f"encoder.model: no file {path}\n    {beside(path)}")
        return path

    @cached_property
    def _network(self) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that layers are kept is what we ask for
            try:
                network = Interpreter(
                    str(self._file),
                    num_threads=torch.get_num_threads(),
                    experimental_preserve_all_tensors=bool(self.layer),
                )
                network.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                said = str(error).partition("\n")[0]
                raise DataError(
                    f"{self.model}: not a network that LiteRT can run: {said}"
                ) from error
        return network

    @cached_property
    def _entrance(self) -> dict[str, Any]:
        """The network's input."""
        takes = self._network.get_input_details()
        shape = list(takes[0]["shape"])
        if len(takes) != 1 or len(shape) != 4 or shape[0] != 1 or shape[3] != 3:
            found = ", ".join("x".join(map(str, it["shape"])) for it in takes)
            raise CdlmError(f"{self.model}: it takes {found}; expected one image, 1 x H x W x 3")
        if takes[0]["dtype"] not in (*PIXELS, np.float32):
            raise CdlmError(f"{self.model}: it takes {takes[0]['dtype'].__name__}, not pixels")
        return takes[0]

    @cached_property
    def _layer(self) -> dict[str, Any]:
        """The tensor that is looked at."""
        layers = self._network.get_tensor_details() if self.layer else []
        found = [it for it in layers if it["name"] == self.layer]
        found = found or [it for it in layers if it["name"].startswith(self.layer)]
        if not self.layer:
            found = self._network.get_output_details()
        elif not found:
            raise CdlmError(f'encoder.layer: {self.model} has no "{self.layer}"\n    {self._near}')
        fits = [it for it in found if self._has_fields(it)]
        if not fits:
            shapes = ", ".join(f"{it['name']} is {'x'.join(map(str, it['shape']))}" for it in found)
            raise CdlmError(
                f"encoder.grid: {shapes}\n    grid = 1 is for a layer 1 x C, and up to the smaller "
                "of H and W for one 1 x H x W x C"
            )
        return fits[-1]

    @property
    def _near(self) -> str:
        """Layers with enough fields that the writer of a wrong name may have meant."""
        layers = self._network.get_tensor_details()
        names = {it["name"].partition(";")[0] for it in layers if self._has_fields(it)}
        close = get_close_matches(self.layer, sorted(names), n=SHOWN, cutoff=0.0)
        return f"nearest of its {len(names)} layers: {', '.join(close)}"

    def _has_fields(self, layer: dict[str, Any]) -> bool:
        shape = list(layer["shape"])
        if len(shape) == 2:
            return shape[0] == 1 and self.grid == 1
        return len(shape) == 4 and shape[0] == 1 and self.grid <= min(shape[1:3])
