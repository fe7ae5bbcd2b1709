"""The nearest word by every path on a CPU, against the reference, and as torch operations."""

from __future__ import annotations

import hard_vectors as hard
import pytest
import torch
from torch import Tensor

from cdlm.kernels import (
    Remember,
    cpu,
    nearest_token,
    nearest_word,
    prepare_table,
    round_and_step,
    words,
)
from cdlm.kernels.exact import reference

SHAPES = [(1, 1, 1), (2, 3, 5), (15, 40, 16), (17, 9, 3), (300, 70, 16), (1000, 600, 33),
          (5000, 40, 520), (2049, 33, 1024)]  # fmt: skip


@pytest.mark.parametrize("scores", [cpu.SCORES, 500], ids=["few", "blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("count", "rows", "width"), SHAPES)
def test_every_path_gives_the_token_of_the_reference(
    count: int,
    rows: int,
    width: int,
    dtype: torch.dtype,
    scores: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where few scores are looked at all at once, and where they are looked at by blocks."""
    monkeypatch.setattr(cpu, "SCORES", scores)
    table = hard.words(count, width)
    x = hard.near(table, rows).to(dtype)
    expected = reference(x.float(), table)
    assert torch.equal(nearest_token(x, table), expected)
    assert torch.equal(nearest_token(x, prepare_table(table)), expected)


@pytest.mark.parametrize("scores", [cpu.SCORES, 500], ids=["few", "blocks"])
def test_rows_without_any_doubt(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One candidate for every row, found in another order than that of the rows."""
    monkeypatch.setattr(cpu, "SCORES", scores)
    table = 10 * torch.randn(896, 24, generator=torch.Generator().manual_seed(0))
    wanted = torch.randperm(896, generator=torch.Generator().manual_seed(1))[:200]
    assert torch.equal(nearest_token(table[wanted] + 0.1, table), wanted)


def test_tables_of_equal_words_have_token_0() -> None:
    for table in (torch.zeros(100, 8), torch.ones(100, 8), torch.full((3, 600), 2.5)):
        x = torch.randn(50, table.shape[1], generator=torch.Generator().manual_seed(0))
        assert nearest_token(x, table).tolist() == [0] * 50


@pytest.mark.parametrize("scores", [cpu.SCORES, 500], ids=["few", "blocks"])
def test_rows_that_are_not_finite_have_token_0_and_others_are_not_disturbed(
    scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "SCORES", scores)
    table = hard.words(200, 16)
    x = hard.near(table, 40)
    bad = hard.not_finite(x)
    found, expected = nearest_token(bad, table), nearest_token(x, table)
    assert found[:3].tolist() == [0, 0, 0]
    assert torch.equal(found[3:5], reference(bad[3:5], table))
    assert torch.equal(found[5:], expected[5:])


@pytest.mark.parametrize("size", [2.0**-100, 2.0**-40, 2.0**40, 2.0**100])
def test_the_size_of_the_numbers_changes_nothing(
    size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "SCORES", 500)
    table = hard.words(300, 12)
    x = hard.near(table, 64)
    assert torch.equal(nearest_token(x * size, table * size), nearest_token(x, table))


def test_words_far_from_the_origin_are_told_apart() -> None:
    table = hard.words(300, 12) + 1000
    x = hard.near(table, 64)
    assert torch.equal(nearest_token(x, table), reference(x, table))


@pytest.mark.parametrize("name", ["ROWS", "SCORES", "CHUNK"])
def test_the_size_of_the_pieces_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = hard.words(500, 8)
    x, whole = hard.near(table, 50), nearest_token(hard.near(table, 50), table)
    monkeypatch.setattr(cpu, name, 37)
    assert torch.equal(nearest_token(x, table), whole)


@pytest.mark.parametrize(("count", "width"), [(40, 16), (600, 33), (300, 520)])
def test_bfloat16_where_it_pays_changes_no_token(
    count: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "LARGE", 1)
    monkeypatch.setattr(words, "_bfloat16_pays", lambda: True)
    table = hard.words(count, width)
    x, prepared = hard.near(table, 80), prepare_table(table)
    assert cpu.block_maxima(x, prepared).error.min() > 1e-4  # coarser than float32
    assert torch.equal(nearest_token(x, prepared), reference(x, table))
    memory = Remember(prepared)
    for share in (0.0, 0.01, 0.4, 0.41):
        moved = torch.lerp(x, x.flip(0), share)
        assert torch.equal(memory(moved), reference(moved, table))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_coarser_matrix_products_cost_time_but_no_token(precision: str) -> None:
    """torch may be told to multiply float32 in fewer bits; the margin of error follows."""
    table = hard.words(400, 32)
    x, before = hard.near(table, 100), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(nearest_token(x, table), reference(x, table))
    finally:
        torch.set_float32_matmul_precision(before)


def test_any_leading_shape() -> None:
    table, x = hard.words(30, 6), hard.near(hard.words(30, 6), 24)
    flat = nearest_token(x, table)
    assert torch.equal(nearest_token(x.view(2, 3, 4, 6), table), flat.view(2, 3, 4))
    assert nearest_token(x[:0], table).shape == (0,)
    assert nearest_token(x[0], table) == flat[0]


def test_float64_is_kept() -> None:
    table = torch.tensor([[1.0], [1.0 + 2**-40]], dtype=torch.float64)
    assert nearest_token(table, table).tolist() == [0, 1]
    assert nearest_token(table.float(), table.float()).tolist() == [0, 0]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="5 wide, the words 4"):
        nearest_token(torch.zeros(3, 5), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"V x E.*this one is 0 x 4"):
        prepare_table(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="word 1 of the table is not finite"):
        nearest_token(torch.zeros(3, 1), torch.tensor([[0.0], [torch.nan]]))
    with pytest.raises(ValueError, match="word 0 of the table is not finite"):
        prepare_table(torch.tensor([[torch.inf], [0.0]]))


def test_a_prepared_table_does_not_see_later_changes() -> None:
    table = hard.words(20, 4)
    x, prepared = hard.near(table, 8), prepare_table(table)
    expected = nearest_token(x, table)
    table.zero_()
    assert torch.equal(nearest_token(x, prepared), expected)


def test_the_vectors_of_the_words_keep_what_is_no_number_in_sight() -> None:
    table = hard.words(20, 4)
    x = hard.near(table, 8)
    assert torch.equal(nearest_word(x, table), table[nearest_token(x, table)])
    assert nearest_word(hard.not_finite(x), table)[:3].isnan().any(1).all()


# ----------------------------------------------------------------------------------- the fused step


def stepped(sigma: float, seed: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    table = hard.words(50, 6)
    x0_hat, x_t = (
        hard.near(table, 4000).view(20, 200, 6),
        hard.near(table, 4000, 5).view(20, 200, 6),
    )
    x_s, ids = round_and_step(x0_hat, x_t, table, 0.8, 0.3, sigma, seed)
    return table, x0_hat, x_t, x_s, ids


def test_rounding_and_the_step_in_one_are_the_two_after_each_other() -> None:
    table, x0_hat, x_t, x_s, ids = stepped(0.0)
    assert torch.equal(ids, nearest_token(x0_hat, table))
    assert torch.equal(x_s, 0.8 * table[ids] + 0.3 * x_t)


def test_the_noise_is_normal_and_belongs_to_seed_and_place() -> None:
    still, drawn = stepped(0.0)[3], stepped(0.5)[3]
    z = (drawn - still) / 0.5
    assert abs(float(z.mean())) < 0.03 and abs(float(z.std()) - 1) < 0.02
    assert abs(float((z.flatten()[1:] * z.flatten()[:-1]).mean())) < 0.03
    assert torch.equal(stepped(0.5)[3], drawn)
    assert not torch.equal(stepped(0.5, seed=8)[3], drawn)


def test_a_row_that_is_not_finite_stays_so() -> None:
    table = hard.words(50, 6)
    x0_hat = hard.not_finite(hard.near(table, 10))
    x_s, ids = round_and_step(x0_hat, torch.zeros_like(x0_hat), table, 1.0, 0.0, 0.0, 0)
    assert ids[:3].tolist() == [0, 0, 0] and x_s[:3].isnan().any(1).all()
    assert x_s[3:].isfinite().all()


# ------------------------------------------------------------------------------ as torch operations


def test_torch_knows_the_operations() -> None:
    table, seed = hard.words(30, 6), torch.tensor([3])
    prepared, x = prepare_table(table), hard.near(table, 8)
    flat = ([prepared.words, prepared.bias], [prepared.radius])
    ops = torch.ops.cdlm
    torch.library.opcheck(ops.nearest_token.default, (x, table))
    torch.library.opcheck(ops.nearest_word.default, (x, *flat))
    torch.library.opcheck(ops.round_and_step.default, (x, x, *flat, 0.5, 0.5, 0.1, seed))


def test_a_compiled_graph_holds_them_whole() -> None:
    table = hard.words(60, 6)
    prepared = prepare_table(table)

    def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
        ids = nearest_token(x * 1.0, prepared)
        return ids, round_and_step(x, x, prepared, 0.5, 0.5, 0.0, torch.zeros(1).long())[0]

    whole = torch.compile(rounded, fullgraph=True, backend="aot_eager")
    for rows in (8, 12, 40):
        x = hard.near(table, rows)
        for one, two in zip(whole(x), rounded(x), strict=True):
            assert torch.equal(one, two)


# -------------------------------------------------------------------------------------- remembering


@pytest.mark.parametrize(("count", "width"), [(1, 2), (20, 4), (700, 24), (300, 520)])
def test_remembered_tokens_are_those_of_a_scan(count: int, width: int) -> None:
    """Rows that settle, rows that wander, and one that is not finite for a while."""
    table = hard.words(count, width)
    memory, rng = Remember(prepare_table(table)), torch.Generator().manual_seed(3)
    start, goal = 2 * torch.randn(60, width, generator=rng), hard.near(table, 60)
    for step in range(25):
        x = torch.lerp(start, goal, min(1, step / 15))
        x[::5] += 0.2 * torch.randn(12, width, generator=rng)
        x[7] = torch.nan if step == 9 else x[7]
        assert torch.equal(memory(x), reference(x, table)), f"step {step}"
    assert memory.scanned < 60 or count == 1


def test_it_counts_what_did_not_change() -> None:
    table = torch.tensor([[0.0], [10.0]])
    memory = Remember(prepare_table(table))
    for x, unchanged in (([1.0, 9.0], 0), ([2.0, 8.0], 2), ([6.0, 8.0], 1), ([6.0, 8.0], 2)):
        memory(torch.tensor(x)[:, None])
        assert memory.unchanged == unchanged
    assert memory.scanned == 0


def test_it_remembers_vectors_of_any_shape() -> None:
    table = hard.words(40, 5)
    x, memory = hard.near(table, 24).view(2, 3, 4, 5), Remember(prepare_table(table))
    for moved in (x, x + 0.01):
        assert torch.equal(memory(moved), nearest_token(moved, table))


def test_other_rows_begin_anew() -> None:
    table = hard.words(40, 5)
    memory = Remember(prepare_table(table))
    for rows in (10, 10, 4):
        x = hard.near(table, rows, seed=rows)
        assert torch.equal(memory(x), reference(x, table))


def test_half_of_the_way_to_the_nearest_other_word() -> None:
    table = hard.words(300, 9)
    gaps = prepare_table(table).half_gaps(torch.arange(300))
    far = torch.cdist(table.double(), table.double()).fill_diagonal_(torch.inf).amin(1) / 2
    assert (gaps <= far).all() and (gaps > far - 1e-2).all()
    assert prepare_table(table[:1]).half_gaps(torch.tensor([0])) == torch.inf
