"""The reference itself, against rational numbers."""

from __future__ import annotations

from fractions import Fraction

import hard_vectors as hard
import pytest
import torch
from torch import Tensor

from cdlm.kernels.exact import reference, settle


def by_fractions(x: Tensor, table: Tensor) -> list[int]:
    """The lowest id at the least squared distance, in rational arithmetic."""

    def distance(point: list[float], word: list[float]) -> Fraction:
        pairs = zip(point, word, strict=True)
        return sum(((Fraction(p) - Fraction(w)) ** 2 for p, w in pairs), Fraction(0))

    rows = table.tolist()
    return [min(range(len(rows)), key=lambda v: (distance(p, rows[v]), v)) for p in x.tolist()]


@pytest.mark.parametrize(("count", "width"), [(1, 1), (40, 3), (60, 17)])
def test_it_is_the_least_distance_of_rational_numbers(count: int, width: int) -> None:
    table = hard.words(count, width)
    x = hard.near(table, 40)
    assert reference(x, table).tolist() == by_fractions(x, table)


def test_whole_numbers_tie_and_the_lowest_id_wins() -> None:
    rng = torch.Generator().manual_seed(0)
    table = torch.randint(-2, 3, (50, 4), generator=rng).float()
    x = torch.randint(-4, 5, (200, 4), generator=rng) / 2
    assert reference(x, table).tolist() == by_fractions(x, table)


def test_what_float64_cannot_tell_apart_is_told_apart() -> None:
    """1 + 2^-60 is no float64; the two words' scores differ by just that much."""
    table = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0**-30, 0.0]])
    for sign, nearest in ((1, 1), (-1, 0)):
        x = torch.tensor([[2.0**40, 2.0**-31 + sign * 2.0**-54, 0.0]])
        assert reference(x, table).tolist() == by_fractions(x, table) == [nearest]


def test_float64_inputs_are_decided_in_full() -> None:
    table = torch.tensor([[1.0], [1.0 + 2**-50]], dtype=torch.float64)
    assert reference(table, table).tolist() == [0, 1]


def test_rows_that_are_not_finite_have_token_0() -> None:
    x = hard.not_finite(torch.ones(5, 2))
    assert reference(x[:3], hard.words(9, 2)).tolist() == [0, 0, 0]


def test_candidates_are_settled_in_any_order() -> None:
    table, x = torch.tensor([[0.0], [1.0], [1.0], [5.0]]), torch.tensor([[0.9], [4.0], [7.0]])
    row, word = torch.tensor([1, 0, 0, 0, 1]), torch.tensor([3, 2, 0, 1, 1])
    assert settle(x, table, row, word, radius=5.0).tolist() == [1, 3, 0]
