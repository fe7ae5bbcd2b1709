"""The tools of the benchmarks: exact tokens, floors, goals, and the page made of stored timings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from goals import FULL, GOALS, MEMORY, OURS, Goal, Row, floor, grouped, nearest, ratio, remembering
from problems import BERT, Shape, exact_tokens, trajectory, undecided, words
from providers import diffusion_lm
from torch import Generator, Tensor

ROOT = Path(__file__).parent.parent
SMALL = Shape("cpu", 64, 500, 16)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def scored(x: Tensor, table: Tensor) -> Tensor:
    """Tokens as the inputs' own arithmetic finds them."""
    return torch.addmm(-0.5 * table.square().sum(1), x, table.T).argmax(1)


# --------------------------------------------------------------------------------- exact tokens


def test_exact_tokens_are_float64s_where_float64_can_tell() -> None:
    table, x = words(SMALL, rng()), torch.randn(300, 16, generator=rng(1))
    assert torch.equal(table[exact_tokens(x, table)], table[scored(x.double(), table.double())])


def test_of_equal_words_the_lowest_id_counts() -> None:
    table = torch.randn(50, 8, generator=rng()).repeat(2, 1)
    assert exact_tokens(table, table).tolist() == [*range(50)] * 2


def test_between_two_words_exact_arithmetic_decides() -> None:
    """x is nearer to the second word by 2^-80 of its distance, which float64 can't see."""
    x = torch.tensor([[1.0, 2.0**-40]])
    table = torch.tensor([[0.0, 0.0], [2.0, 2.0**-40 + 2.0**-62]])
    assert exact_tokens(x, table).tolist() == [1]
    assert exact_tokens(x * torch.tensor([1.0, -1.0]), table).tolist() == [0]


def test_clamped_distances_make_ties() -> None:
    """Diffusion-LM's way finds wrong words where distances vanish beside lengths."""
    table = 1e4 + torch.randn(400, 8, generator=rng())
    assert not torch.equal(diffusion_lm(table, table), exact_tokens(table, table))
    easy = torch.eye(6)
    assert diffusion_lm(easy, easy).tolist() == list(range(6))


def test_undecided_rows_mislead_float32() -> None:
    table = words(Shape("cpu", 1, 500, 64), rng())
    x = undecided(200, table, rng(1))
    assert (scored(x, table) != exact_tokens(x, table)).sum() > 10


def test_a_trajectory_settles_on_words_and_moves_less_in_more_steps() -> None:
    paths = [trajectory(SMALL, steps).steps for steps in (10, 40)]
    assert [len(path) for path in paths] == [10, 40]
    moves = [(path[1] - path[0]).norm() for path in paths]
    assert moves[1] < moves[0] / 2
    table = words(SMALL, rng())
    ids = [exact_tokens(x, table) for x in paths[1][-3:]]
    assert (ids[0] == ids[2]).float().mean() > 0.95


# ------------------------------------------------------------------------------ floors and goals


@pytest.mark.parametrize(("width", "microseconds"), [(16, 259), (64, 324), (128, 648), (768, 3889)])
def test_the_floor_is_the_product_or_the_search(width: int, microseconds: float) -> None:
    found = floor(Shape("cuda", 65_536, BERT, width))
    assert found * 1e6 == pytest.approx(microseconds, rel=0.002)
    assert floor(Shape("cuda", 2_048, BERT, width)) == pytest.approx(found / 32)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(None, "not measured"), (1.9, "missed"), (2, "met"), (2.9, "met"), (3, "stretch")],
)
def test_a_goal_judges(value: float | None, verdict: str) -> None:
    assert Goal("cpu", "", 2, 3, lambda groups: value).verdict(value) == verdict
    down = Goal("cpu", "", -2, -3, lambda groups: value, at_most=True)
    assert down.verdict(None if value is None else -value) == verdict


def test_a_ratio_needs_both() -> None:
    rows = [Row("g", "slow", 6.0), Row("g", "fast", 3.0), Row("g", "fast", 2.0)]
    assert ratio("g", "slow", "fast")(grouped(rows)) == 3.0
    assert ratio("g", "slow", "other")(grouped(rows)) is None
    assert all(goal.measure({}) is None for goal in GOALS)


# -------------------------------------------------------------------------------------- the page


def timing(group: str, provider: str, seconds: float, **facts: Any) -> dict[str, Any]:
    info = {"provider": provider, "task": "nearest", "kind": "cpu", "ours": False} | facts
    return {"group": group, "extra_info": info, "stats": {"min": seconds}}


def stored(small: bool = False) -> dict[str, Any]:
    group, steps = nearest("cpu", 512, 64), remembering(Shape("cpu", 512, BERT, 64), 50)
    machine = {
        "processor": "A CPU", "gpu": None, "threads": 1, "versions": {"torch": "2"}, "small": small
    }  # fmt: skip
    return {
        "datetime": "2026-01-02T03:04:05",
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "machine_info": {"cdlm": machine},
        "benchmarks": [
            timing(group, OURS, 0.03, base=True, ours=True, wrong=0, rows=512, floor=1e-5),
            timing(group, "Diffusion-LM", 0.3, wrong=2, rows=512),
            timing(steps, MEMORY, 1.0, base=True),
            timing(steps, FULL, 1.5),
        ],
    }


def results(folder: Path, timings: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    (folder / "cpu.json").write_text(json.dumps(timings))
    script = ROOT / "benchmarks" / "results.py"
    argv = [sys.executable, str(script), str(folder / "cpu.json"), "--into", str(folder / "out")]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_results_are_a_page_and_a_plot(tmp_path: Path) -> None:
    done = results(tmp_path, stored())
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out/RESULTS.md").read_text()
    assert "| vs Diffusion-LM's code, N=512, E=64 | 9x | 14x | 10x | met |" in page
    assert "| remembering vs full scans, 50 steps, E=64 | 2x | 3x | 1.5x | missed |" in page
    assert "| vs Diffusion-LM's code, N=512, E=16 | 15x | 25x |  | not measured |" in page
    assert "A CPU" in page and "0123456789ab" in page and "torch 2" in page
    assert "2 of 512" in page
    assert (tmp_path / "out/RESULTS.png").read_bytes().startswith(b"\x89PNG")


def test_tiny_shapes_make_no_page(tmp_path: Path) -> None:
    done = results(tmp_path, stored(small=True))
    assert done.returncode == 1 and "CDLM_BENCH=small" in done.stderr
    assert not (tmp_path / "out").exists()
