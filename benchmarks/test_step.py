"""Rounding and the sampler's update, fused and apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from goals import ALONE, APART, FUSED, stepping
from problems import BERT, SHAPES, SMALL, WIDTHS, Shape, problem
from torch import Tensor

if TYPE_CHECKING:
    from conftest import Race

A, B, SIGMA = 0.7, 0.25, 0.1  # of the update a e + b x_t + sigma noise
WAYS = (ALONE, FUSED, APART)
CHOSEN = SHAPES if SMALL else [
    *(Shape("cpu", 512, BERT, width) for width in WIDTHS),
    *(Shape("cuda", rows, BERT, width) for rows in (8_192, 65_536) for width in WIDTHS),
]  # fmt: skip
CASES = [
    pytest.param(
        shape,
        way,
        id=f"{shape.id}-{way}",
        marks=pytest.mark.gpu if shape.device == "cuda" else pytest.mark.cpu,
    )
    for shape in CHOSEN
    for way in WAYS
]


def update(way: str, x: Tensor, x_t: Tensor, table: Tensor) -> Callable[[], Tensor]:
    """The call of one way. -> the ids N."""
    from cdlm.kernels import nearest_token, prepare_table, round_and_step

    prepared, seed = prepare_table(table), torch.zeros(1, dtype=torch.long, device=x.device)
    if way == ALONE:
        return lambda: nearest_token(x, prepared)
    if way == FUSED:
        return lambda: round_and_step(x, x_t, prepared, A, B, SIGMA, seed)[1]

    def apart() -> Tensor:
        ids = nearest_token(x, prepared)
        torch.add(A * table[ids] + B * x_t, torch.randn_like(x), alpha=SIGMA)
        return ids

    return apart


@pytest.mark.parametrize(("shape", "way"), CASES)
def test_step(race: Race, shape: Shape, way: str) -> None:
    """Both give the tokens of rounding alone."""
    given = problem(shape)
    x_t = given.x.flip(0).contiguous()
    ids = race(
        update(way, given.x, x_t, given.table),
        stepping(shape),
        way,
        shape.device,
        graph=True,
        task="step",
        base=way == ALONE,
        ours=True,
        dtype="fp32",
        rows=shape.rows,
        words=shape.words,
        width=shape.width,
    )
    wrong = given.wrong(ids)
    race.note(wrong=wrong)
    assert not wrong, f"{wrong} wrong tokens of {shape.rows}"
