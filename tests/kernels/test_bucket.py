"""The Triton kernels: on a GPU where there is one, else line by line under Triton's interpreter."""

from __future__ import annotations

import hard_vectors as hard
import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("triton", reason="Triton is for Linux on x86-64 and ARM")
from cdlm.kernels import Remember, gpu, prepare_table, remember
from cdlm.kernels.configs import Config, config_for, default, tune
from cdlm.kernels.exact import reference
from cdlm.kernels.nearest import vectors
from cdlm.kernels.noise import noise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # see conftest.py
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN, in the interpreter
SMALL = Config(block_m=16, block_n=64, block_e=16, warps=4, stages=2, across=2)


def small(monkeypatch: pytest.MonkeyPatch, block_e: int = 16) -> None:
    """Tiles so small that a few rows and words make many of them."""
    config = Config(**{**vars(SMALL), "block_e": block_e})
    monkeypatch.setattr(gpu, "config_for", lambda *_: config)


@pytest.mark.parametrize(
    ("count", "rows", "width", "dtype"),
    [
        (30, 17, 16, torch.float32),
        (257, 9, 5, torch.bfloat16),
        (700, 8, 33, torch.float16),
        (300, 5, 270, torch.float32),
    ],
)
def test_the_kernels_give_the_tokens_of_the_reference(
    count: int, rows: int, width: int, dtype: torch.dtype
) -> None:
    """Odd sizes, three types, near-ties, exact ties and twins, with the tiles of an H100."""
    table = hard.words(count, width).to(DEVICE)
    x = hard.near(table.cpu(), rows).to(DEVICE, dtype)
    assert torch.equal(gpu.nearest(x, prepare_table(table)), reference(x.float(), table))


@pytest.mark.parametrize("across", [1, 2])
def test_small_tiles_and_a_vocabulary_in_pieces(
    across: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "config_for", lambda *_: Config(16, 64, 16, 4, 2, across))
    table = hard.words(1500, 12).to(DEVICE)
    x = hard.near(table.cpu(), 12).to(DEVICE)
    assert gpu.splits(len(x), prepare_table(table), SMALL) > 1
    assert torch.equal(gpu.nearest(x, prepare_table(table)), reference(x, table))


def test_rows_that_are_not_finite_have_token_0(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    table = hard.words(90, 7).to(DEVICE)
    x = hard.not_finite(hard.near(table.cpu(), 8)).to(DEVICE)
    found = gpu.nearest(x, prepare_table(table))
    assert found[:3].tolist() == [0, 0, 0]
    assert torch.equal(found, reference(x, table))


@pytest.mark.parametrize("limits", [(1, 2), (8, 1), (1, 32)])
def test_rows_that_half_precision_cannot_decide_are_looked_through(
    limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words so close together that every row is put on the list, whoever looks through it."""
    small(monkeypatch)
    monkeypatch.setattr(gpu, "SLOTS", limits[0])
    monkeypatch.setattr(gpu, "PIECES", limits[1])
    rng = torch.Generator().manual_seed(0)
    table = (1 + 1e-4 * torch.randn(150, 6, generator=rng)).to(DEVICE)
    table[100] = 500.0  # so that the scale of fp16 is no help
    x = table[torch.randint(150, (4,), generator=rng)] + 1e-6
    assert torch.equal(gpu.nearest(x, prepare_table(table)), reference(x, table))


def test_all_words_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    table = torch.full((20, 4), 0.25, device=DEVICE)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert gpu.nearest(x, prepare_table(table)).tolist() == [0, 0, 0]


def test_the_step_is_taken_with_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the noise that a CPU draws, up to the rounding of float32; NaN stays NaN."""
    small(monkeypatch)
    table = hard.words(90, 7).to(DEVICE)
    x0_hat, x_t = hard.near(table.cpu(), 9).to(DEVICE), hard.near(table.cpu(), 9, 5).to(DEVICE)
    x0_hat[4, 2] = torch.nan
    seed = torch.tensor([2**40 + 7], device=DEVICE)
    step = gpu.Step(x_t, torch.empty_like(x_t), seed, 0.8, 0.3, 0.5)
    ids = gpu.nearest(x0_hat, prepare_table(table), step)
    assert torch.equal(ids, reference(x0_hat, table))
    expected = 0.8 * vectors(x0_hat, table, ids) + 0.3 * x_t + 0.5 * noise(seed, x_t.shape)
    assert_close(step.x_s, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_remembering_by_what_the_kernels_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    monkeypatch.setattr(remember, "_search", gpu.search)
    table = hard.words(900, 12).to(DEVICE)
    memory, scanned = Remember(prepare_table(table)), 0
    start, goal = hard.near(table.cpu(), 8, 2).to(DEVICE), hard.near(table.cpu(), 8).to(DEVICE)
    for share in (0.0, 0.02, 0.5, 0.52, 0.54):
        x = torch.lerp(start, goal, share)
        assert torch.equal(memory(x), reference(x, table))
        scanned += memory.scanned
    assert 8 < scanned < 40


# ------------------------------------------------------------------------------------------- tiles


def test_the_quickest_tiles_are_remembered(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDLM_CACHE", str(tmp_path))
    device = torch.device("cpu")
    assert config_for(32, 100, device) == default(32, 90)

    def seconds(config: Config) -> float:
        if config.block_n == 256:
            raise RuntimeError("out of resource: shared memory")
        return abs(config.block_m - 64) + config.stages

    best = tune(32, 100, device, seconds)
    assert (best.block_m, best.stages, best.block_n) == (64, 2, 128)
    assert config_for(32, 100, device) == best
    assert config_for(32, 100_000, device) == default(32, 90)
    monkeypatch.undo()
    config_for.__globals__["_tuned"].cache_clear()
