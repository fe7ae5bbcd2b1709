"""The nearest word, against the distances themselves."""

from __future__ import annotations

import pytest
import torch

from cdlm.kernels import nearest
from cdlm.kernels.nearest import nearest_token
from cdlm.testing.examples import rng


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=rng(seed))


@pytest.mark.parametrize(("n", "v", "e"), [(1, 1, 1), (7, 3, 5), (100, 1000, 16), (64, 500, 256)])
def test_it_is_the_least_distance(n: int, v: int, e: int) -> None:
    x, table = draw(n, e, seed=1), draw(v, e, seed=2)
    expected = torch.cdist(x.double(), table.double()).argmin(1)
    assert torch.equal(nearest_token(x, table), expected)


def test_long_rows_do_not_win_by_their_length() -> None:
    """A dot product alone would always choose the longest."""
    table = torch.tensor([[1.0, 0.0], [100.0, 0.0]])
    assert nearest_token(torch.tensor([[2.0, 0.0]]), table).tolist() == [0]


def test_every_word_is_nearest_to_itself() -> None:
    table = draw(300, 16)
    assert torch.equal(nearest_token(table, table), torch.arange(300))


def test_the_size_of_a_piece_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, table = draw(50, 8, seed=1), draw(40, 8, seed=2)
    whole = nearest_token(x, table)
    monkeypatch.setattr(nearest, "ROWS", 7)
    assert torch.equal(nearest_token(x, table), whole)


def test_half_precision_is_widened_and_float64_is_kept() -> None:
    """The words differ by less than bfloat16 can tell, then by less than float32 can."""
    table = torch.tensor([[1.0], [1.0 + 2**-10]])
    x = torch.tensor([[1.0]], dtype=torch.bfloat16)
    assert nearest_token(x, table).tolist() == [0]
    fine = torch.tensor([[1.0], [1.0 + 2**-20]], dtype=torch.float64)
    assert nearest_token(fine, fine).tolist() == [0, 1]
    assert nearest_token(fine.float(), fine.float()).tolist() == [0, 0]
