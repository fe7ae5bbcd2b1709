"""Very many rows, the hardest among them, without one wrong token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from goals import OURS
from problems import (
    BERT,
    SMALL,
    WIDTHS,
    Shape,
    exact_tokens,
    problem,
    trajectory,
    undecided,
    vectors,
    words,
)
from torch import Generator, Tensor

if TYPE_CHECKING:
    from conftest import Race


@dataclass
class Count:
    """What was checked so far."""

    rows: int = 0
    wrong: int = 0

    def add(self, ids: Tensor, x: Tensor, table: Tensor) -> None:
        self.rows += len(ids)
        self.wrong += int((ids != exact_tokens(x, table)).sum())


def many_rows(device: str, total: int, at_once: int, width: int) -> Count:
    """Fresh rows again and again, 1 in 16 between two words; a fresh table every 16 times."""
    from cdlm.kernels import nearest_token, prepare_table

    rng, seen, turn = Generator(device).manual_seed(2), Count(), 0
    while seen.rows < total:
        if turn % 16 == 0:
            table = words(Shape(device, at_once, BERT, width), rng)
            prepared = prepare_table(table)
        near = undecided(at_once // 16, table, rng)
        x = torch.cat([near, vectors(at_once - len(near), table, rng)])
        seen.add(nearest_token(x, prepared), x, table)
        turn += 1
    return seen


def many_steps(shape: Shape, steps: int, total: int) -> Count:
    """Whole trajectories, each other noise and through a fresh memory."""
    from cdlm.kernels import Remember, prepare_table

    seen, table = Count(), problem(shape).table
    prepared = prepare_table(table)
    while seen.rows < total:
        memory = Remember(prepared)
        for x in trajectory(shape, steps, seed=seen.rows).steps:
            seen.add(memory(x), x, table)
    return seen


def _note(race: Race, seen: Count, width: int, task: str) -> None:
    race.note(task=task, ours=True, rows=seen.rows, wrong=seen.wrong, width=width)
    assert not seen.wrong, f"{seen.wrong} wrong tokens of {seen.rows:,}"


@pytest.mark.gpu
@pytest.mark.parametrize("width", WIDTHS)
def test_exact_rows(race: Race, width: int) -> None:
    """A quarter of 10^7 rows at each width; the time is mostly that of the check."""
    total, at_once = (200, 64) if SMALL else (2_500_000, 65_536)
    seen = race.once(
        lambda: many_rows("cuda", total, at_once, width),
        f"exactness: cuda, E={width}",
        OURS,
        "cuda",
    )
    _note(race, seen, width, "exact")


@pytest.mark.cpu
def test_exact_steps(race: Race) -> None:
    """10^6 rows of denoising steps, as many words as Flickr8k has."""
    shape = Shape("cpu", 64, 200, 16) if SMALL else Shape("cpu", 2_048, 2_600, 64)
    steps, total = (10, 640) if SMALL else (200, 1_000_000)
    seen = race.once(
        lambda: many_steps(shape, steps, total), "exactness: cpu, remembering", OURS, "cpu"
    )
    _note(race, seen, shape.width, "exact")
