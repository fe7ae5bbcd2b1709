"""What may follow a layer: x -> W x + b, such as a PCA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cdlm.errors import DataError
from cdlm.parts.encoders.files import beside


@dataclass(frozen=True)
class Projection:
    """x -> W x + b, of every token."""

    weight: Tensor  # C' C
    bias: Tensor  # C'

    @classmethod
    def load(cls, path: Path, width: int) -> Projection:
        """From a safetensors file, for features of a width C. Errors: DataError."""
        path = path.expanduser()
        if not path.is_file():
            raise DataError(f"encoder.projection: no file {path}\n    {beside(path)}")
        try:
            found = load_file(path)
            weight, bias = found["weight"].float(), found["bias"].float()
        except (SafetensorError, OSError, KeyError) as error:
            raise DataError(f"{path}: expected the tensors weight and bias; {error}") from error
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise DataError(
                f"{path}: weight {list(weight.shape)} and bias {list(bias.shape)}; "
                f"expected C' x {width}, and C'"
            )
        return cls(weight, bias)

    def save(self, path: Path) -> None:
        """Into a safetensors file, in half precision. Raises OSError."""
        halves = {"weight": self.weight.half(), "bias": self.bias.half()}
        path.write_bytes(save(halves))

    def __call__(self, x: Tensor) -> Tensor:
        """B N C -> B N C'."""
        return x @ self.weight.mT + self.bias
