"""Rounding at every step of a denoising run: cdlm's memory of the steps before, or full scans."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from goals import FULL, MEMORY, remembering
from problems import BERT, SMALL, Shape, Walk, trajectory
from torch import Tensor

if TYPE_CHECKING:
    from conftest import Race

RUN = os.environ.get("CDLM_BENCH_RUN", "")  # the folder of a trained run


def _cases() -> list[tuple[Shape, int]]:
    if SMALL:
        return [(Shape("cpu", 32, 700, 64), 10)]
    cpu = {width: Shape("cpu", 512, BERT, width) for width in (64, 128, 768)}
    steps = [(cpu[64], 10), (cpu[64], 50), (cpu[64], 200), (cpu[128], 50), (cpu[768], 50)]
    return [*steps, *((Shape("cuda", 2_048, BERT, width), 50) for width in (64, 128, 768))]


CASES = [
    pytest.param(
        shape,
        steps,
        provider,
        id=f"{shape.id}-{steps}-{provider}",
        marks=pytest.mark.gpu if shape.device == "cuda" else pytest.mark.cpu,
    )
    for shape, steps in _cases()
    for provider in (MEMORY, FULL)
]


def scan(provider: str, walk: Walk) -> Callable[[], Tensor]:
    """Round every estimate of a run. -> steps N; the memory is empty at its beginning."""
    from cdlm.kernels import Remember, nearest_token, prepare_table

    prepared = prepare_table(walk.table)
    if provider == FULL:
        return lambda: torch.stack([nearest_token(x, prepared) for x in walk.steps])

    def call() -> Tensor:
        memory = Remember(prepared)
        return torch.stack([memory(x) for x in walk.steps])

    return call


def _race(race: Race, group: str, device: str, provider: str, walk: Walk) -> None:
    count = walk.wanted.numel()
    same = int((walk.wanted[1:] == walk.wanted[:-1]).sum())
    found = race(
        scan(provider, walk),
        group,
        provider,
        device,
        task="remembering",
        base=provider == MEMORY,
        ours=provider == MEMORY,
        dtype="fp32",
        rows=count,
        words=walk.table.shape[0],
        width=walk.table.shape[1],
        unchanged=same / count,  # the share of tokens that are as in the step before
    )
    wrong = int((found != walk.wanted).sum())
    race.note(wrong=wrong)
    assert not wrong, f"{wrong} wrong tokens of {count}"


@pytest.mark.parametrize(("shape", "steps", "provider"), CASES)
def test_remember(race: Race, shape: Shape, steps: int, provider: str) -> None:
    """On the trajectory of an almost ideal denoiser; every token of every step is right."""
    _race(race, remembering(shape, steps), shape.device, provider, trajectory(shape, steps))


@pytest.mark.cpu
@pytest.mark.skipif(not RUN, reason="CDLM_BENCH_RUN names no trained run")
@pytest.mark.parametrize("provider", [MEMORY, FULL])
@pytest.mark.parametrize("steps", [10, 50])
def test_remember_trained(race: Race, steps: int, provider: str) -> None:
    """On what a trained run's sampler really rounds, clamping at every step."""
    from captioners import estimates

    walk = estimates(RUN, steps)
    words, width = walk.table.shape
    group = f"{steps} denoising steps: trained run, V={words:,}, E={width}"
    _race(race, group, "cpu", provider, walk)
