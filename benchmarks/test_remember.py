"""Rounding at every step of a denoising run: cdlm's memory of the steps before, or full scans."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from goals import FULL, MEMORY, remembering
from problems import BERT, SMALL, Shape, exact_tokens, problem, trajectory

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


def scan(provider: str, table: Tensor, path: list[Tensor]) -> Callable[[], Tensor]:
    """Round every estimate of a trajectory. -> steps N; with the memory it begins empty."""
    from cdlm.kernels import Remember, nearest_token, prepare_table

    prepared = prepare_table(table)
    if provider == FULL:
        return lambda: torch.stack([nearest_token(x, prepared) for x in path])

    def call() -> Tensor:
        memory = Remember(prepared)
        return torch.stack([memory(x) for x in path])

    return call


def unchanged(table: Tensor, path: list[Tensor]) -> float:
    """The share of row-steps at which the memory saw no new token."""
    from cdlm.kernels import Remember, prepare_table

    memory, count = Remember(prepare_table(table)), 0
    for x in path:
        memory(x)
        count += int(memory.unchanged)
    return count / (len(path) * len(path[0]))


def _race(race: Race, group: str, device: str, provider: str, path: list[Tensor], table: Tensor):
    found = race(
        scan(provider, table, path),
        group,
        provider,
        device,
        task="remembering",
        base=provider == MEMORY,
        ours=provider == MEMORY,
        dtype="fp32",
        rows=len(path) * len(path[0]),
        words=table.shape[0],
        width=table.shape[1],
        steps=len(path),
        unchanged=unchanged(table, path),
    )
    wrong = sum(
        int((ids != exact_tokens(x, table)).sum()) for ids, x in zip(found, path, strict=True)
    )
    race.note(wrong=wrong)
    assert not wrong, f"{wrong} wrong tokens of {found.numel()}"


@pytest.mark.parametrize(("shape", "steps", "provider"), CASES)
def test_remember(race: Race, shape: Shape, steps: int, provider: str) -> None:
    """On the trajectory of an almost ideal denoiser; every token of every step is right."""
    path, table = trajectory(shape, steps), problem(shape).table
    _race(race, remembering(shape, steps), shape.device, provider, path, table)


@pytest.mark.cpu
@pytest.mark.skipif(not RUN, reason="CDLM_BENCH_RUN names no trained run")
@pytest.mark.parametrize("provider", [MEMORY, FULL])
@pytest.mark.parametrize("steps", [10, 50])
def test_remember_trained(race: Race, steps: int, provider: str) -> None:
    """On what a trained run's sampler really rounds, clamping at every step."""
    from captioners import estimates

    path, table = estimates(RUN, steps)
    group = f"{steps} denoising steps: trained run, V={len(table):,}, E={table.shape[1]}"
    _race(race, group, "cpu", provider, path, table)
