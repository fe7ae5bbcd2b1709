"""cdlm: captioning images with diffusion language models.

    import cdlm

    captioner = cdlm.Captioner.load("runs/extra_token/default-s0-1a2b3c4d")
    captioner("photo.jpg")

Importing cdlm imports nothing heavy; `Captioner` brings torch with it when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdlm.errors import CdlmError, DataError, PluginError, RecipeError, RunError
from cdlm.plugins import hookimpl
from cdlm.registry import Registry

if TYPE_CHECKING:
    from cdlm.captioner import Captioner

__version__ = "0.1.0"
__all__ = [
    "Captioner",
    "CdlmError",
    "DataError",
    "PluginError",
    "RecipeError",
    "Registry",
    "RunError",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if name == "Captioner":
        from cdlm.captioner import Captioner

        return Captioner
    raise AttributeError(f"module 'cdlm' has no attribute {name!r}")
