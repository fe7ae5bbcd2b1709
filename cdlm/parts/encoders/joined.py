"""Several encoders as one: every image token beside what the others say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cdlm.errors import CdlmError
from cdlm.values import AnyEncoder

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The features of several encoders side by side, so that a captioner sees with all of them.

    Each has as many tokens as the others, or one, which then stands at every token: a grid beside
    the pooled feature of the whole image. Tokens of each are brought to mean 0 and variance 1
    first, for encoders differ in scale. All of them compute, or all have ready features.
    Shapes: B N C_i or B 1 C_i -> B N (C_1 + C_2 + ...), float32 on the CPU.
    Errors: ValueError for fewer than two encoders, and for tokens that don't go together; CdlmError
    for ready features beside an encoder that computes.
    """

    needs: ClassVar[set[str]] = set()
    provides: ClassVar[set[str]] = set()

    of: list[AnyEncoder]

    def __post_init__(self) -> None:
        if len(self.of) < 2:
            raise ValueError(f"of: expected two encoders or more, got {len(self.of)}")
        shapes = [encoder.shape() for encoder in self.of]
        if len({tokens for tokens, _ in shapes} - {1}) > 1:
            found = ", ".join(f"{tokens} x {width}" for tokens, width in shapes)
            raise ValueError(f"of: features of {found}; expected 1 token or as many as the others")

    def to(self, device: str) -> None:
        """All of them work on this device from now on."""
        for encoder in self.of:
            encoder.to(device)

    def identity(self) -> dict[str, Any]:
        """Those of all."""
        return {"encoder": "joined", "of": [encoder.identity() for encoder in self.of]}

    def shape(self) -> tuple[int, int]:
        """(N, sum of C_i)."""
        shapes = [encoder.shape() for encoder in self.of]
        return max(tokens for tokens, _ in shapes), sum(width for _, width in shapes)

    def lookup(self, ids: Sequence[str]) -> Tensor | None:
        """ids B -> B N C, or None where they must compute."""
        found = [encoder.lookup(ids) for encoder in self.of]
        ready = [features for features in found if features is not None]
        if 0 < len(ready) < len(found):
            raise CdlmError(
                "encoder joined: some of its encoders have ready features, and some compute\n"
                "    join encoders that all compute, or files of features alone"
            )
        return self._beside(ready) if ready else None

    def encode(self, images: Sequence[Image]) -> Tensor:
        """images -> B N C."""
        return self._beside([encoder.encode(images) for encoder in self.of])

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Always refuses: captions have features of one encoder only."""
        raise CdlmError("joined encoders have no features of captions; choose one of them")

    def _beside(self, features: Sequence[Tensor]) -> Tensor:
        tokens, _ = self.shape()
        even = [F.layer_norm(one, one.shape[2:]).expand(-1, tokens, -1) for one in features]
        return torch.cat(even, 2)
