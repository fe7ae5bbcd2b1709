"""Rounding once: every row of x to its nearest word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from goals import OURS, floor
from problems import SHAPES, Problem, Shape, problem
from providers import OWN, PROVIDERS, Call

if TYPE_CHECKING:
    from conftest import Race

SLOW_TO_COMPILE = {"torch.compile TF32": (8_192, 128)}  # minutes: at the one shape with a goal
HUGE = {"Diffusion-LM": 8_192}  # rows; beyond, several matrices N x V of 8 GB each


def _runs(provider: str, shape: Shape) -> bool:
    if shape.device not in PROVIDERS[provider].devices:
        return False
    if shape.device == "cuda" and provider in SLOW_TO_COMPILE:
        return (shape.rows, shape.width) == SLOW_TO_COMPILE[provider]
    return shape.rows <= HUGE.get(provider, shape.rows)


CASES = [
    pytest.param(shape, name, id=f"{shape.id}-{name}", marks=getattr(pytest.mark, kind))
    for shape in SHAPES
    for kind in ["gpu" if shape.device == "cuda" else "cpu"]
    for name in PROVIDERS
    if _runs(name, shape)
]


def _ready(name: str, given: Problem) -> Call:
    """The provider's call, once it has worked. A rival that does not work here is skipped."""
    provider = PROVIDERS[name]
    try:
        call = provider.make(given.x, given.table)
        call().sum().item()
    except Exception as error:
        if name in OWN:
            raise
        said = str(error).partition("\n")[0]
        pytest.skip(f"{name} fails here: {type(error).__name__}: {said}")
    return call


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_nearest(race: Race, shape: Shape, name: str) -> None:
    """cdlm's tokens are those of exact arithmetic; how often others' are not is noted."""
    given, provider = problem(shape), PROVIDERS[name]
    torch.set_float32_matmul_precision(provider.precision)
    ids = race(
        _ready(name, given),
        f"nearest token: {shape}",
        name,
        shape.device,
        graph=provider.graph,
        task="nearest",
        base=name == OURS,
        ours=name in OWN,
        dtype=provider.dtype,
        rows=shape.rows,
        words=shape.words,
        width=shape.width,
        floor=floor(shape),  # in seconds, of an H100
    )
    torch.set_float32_matmul_precision("highest")
    wrong = given.wrong(ids) if provider.tokens else 0
    race.note(**{"wrong": wrong} if provider.tokens else {})
    assert not (name in OWN and wrong), f"{wrong} wrong tokens of {shape.rows}"
