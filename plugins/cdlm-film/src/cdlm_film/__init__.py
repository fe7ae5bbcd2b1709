"""The plugin: which component there is, and where. Nothing is imported until it is used."""

from __future__ import annotations

import cdlm


@cdlm.hookimpl
def cdlm_register(registry: cdlm.Registry) -> None:
    """Tell cdlm where the component stands."""
    registry.add("conditioning", "film", "cdlm_film.film:Film")
