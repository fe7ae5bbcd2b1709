"""Whole captions, from an image's feature to 16 words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import captioners as them
import pytest
import torch
from goals import GPT2, GPT2_UNCACHED, GRAPH, captioning, eager, ours
from problems import SMALL
from providers import Call
from torch import Tensor

if TYPE_CHECKING:
    from conftest import Race

BATCHES = {"cpu": (2,), "cuda": (2,)} if SMALL else {"cpu": (1, 32), "cuda": (1, 64, 1_024)}
SLOW = {  # minutes, and no goal
    ("cpu", 32): {eager(200), GPT2_UNCACHED, ours(10, "85M")},
    ("cuda", 1_024): {GPT2_UNCACHED},
}
PROVIDERS: dict[str, Callable[[str, int], Call]] = {
    ours(10): lambda device, batch: _ours(device, batch, 10),
    ours(5): lambda device, batch: _ours(device, batch, 5),
    GRAPH: lambda device, batch: _ours(device, batch, 10, graph=True),
    ours(10, "85M"): lambda device, batch: _ours(device, batch, 10, "85M"),
    eager(10): lambda device, batch: _eager(device, batch, 10),
    eager(200): lambda device, batch: _eager(device, batch, 200),
    GPT2: lambda device, batch: them.gpt2(batch, device, cached=True),
    GPT2_UNCACHED: lambda device, batch: them.gpt2(batch, device, cached=False),
}
CASES = [
    pytest.param(
        device,
        batch,
        name,
        id=f"{device}-B{batch}-{name}",
        marks=pytest.mark.gpu if device == "cuda" else pytest.mark.cpu,
    )
    for device, batches in BATCHES.items()
    for batch in batches
    for name in PROVIDERS
    if name not in SLOW.get((device, batch), set()) and (name != GRAPH or device == "cuda")
]


def _ours(device: str, batch: int, steps: int, size: str = "19M", graph: bool = False) -> Call:
    return them.sampled(them.captioner(size, device, graph), them.features(batch, device), steps)


def _eager(device: str, batch: int, steps: int) -> Call:
    return them.eager(them.captioner("19M", device), them.features(batch, device), steps)


def _others(name: str, device: str, batch: int, ids: Tensor) -> int:
    """In how many places cdlm's own tokens are not those of the eager loop."""
    return int((PROVIDERS[name](device, batch)() != ids).sum())


@pytest.mark.parametrize(("device", "batch", "name"), CASES)
def test_captions(race: Race, device: str, batch: int, name: str) -> None:
    """cdlm's words beside those of an eager loop with the same weights are noted."""
    ids = race(
        PROVIDERS[name](device, batch),
        captioning(device, batch),
        name,
        device,
        task="captions",
        base=name == ours(10),
        ours=name.startswith("cdlm"),
        dtype="fp32",
        captions=batch,
        length=them.LENGTH,
    )
    facts = {"other_tokens": _others(ours(10), device, batch, ids)} if name == eager(10) else {}
    race.note(**facts)
    assert ids.shape == (batch, them.LENGTH)
    assert ids.dtype == torch.int64
