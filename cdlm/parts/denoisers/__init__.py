"""The transformers that denoise."""

from __future__ import annotations

from cdlm.errors import CdlmError
from cdlm.records import Dims


def require_equal_heads(heads: int, dims: Dims) -> None:
    """Raises CdlmError where the heads can't share the transformer's width equally."""
    if dims.hidden % heads:
        allowed = ", ".join(str(n) for n in range(1, 33) if dims.hidden % n == 0)
        raise CdlmError(
            f"denoiser.heads: {heads} heads can't share model.hidden = {dims.hidden} equally\n"
            f"    allowed: {allowed}"
        )
