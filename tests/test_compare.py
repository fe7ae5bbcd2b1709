"""What of a difference is noise: against theory, and against what is drawn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cdlm.compare import (
    HIGHER,
    LOWER,
    NOISE,
    ONE_SEED,
    SAME,
    Result,
    difference,
    over_seeds,
    read_draws,
    resampled,
    t_975,
    write_draws,
)
from cdlm.parts.metrics.coco import Bleu, CiderD, RougeL
from cdlm.parts.metrics.text import ExactMatch
from cdlm.records import Tally
from cdlm.testing.examples import answers


def of_verdicts(right: np.ndarray) -> Tally:
    rows = np.stack([right, np.ones(len(right))], axis=1).astype(np.float64)
    return Tally(rows, lambda sums: {"right": sums[..., 0] / sums[..., 1]})


def result(name: str, right: np.ndarray, images: str = "a") -> Result:
    from cdlm.compare import Draws

    draws = Draws(images, resampled(of_verdicts(right)))
    return Result(Path(name), {"right": float(right.mean())}, draws)


def verdicts(share: float, seed: int, count: int = 500) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < share


# -------------------------------------------------------------------------------------- the parts


def test_the_quantiles_are_students() -> None:
    """P(|T| < t) = 0.95, by integrating the density."""
    for freedom in (1, 2, 5, 20, 21, 40):
        x = np.linspace(0, t_975(freedom), 200_001)
        log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
        density = (
            math.exp(log)
            / math.sqrt(freedom * math.pi)
            * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
        )
        assert 2 * np.trapezoid(density, x) == pytest.approx(0.95, abs=5e-5), freedom


def test_the_interval_over_seeds_holds_the_mean_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = over_seeds(draw.normal(3, 2, size=3).tolist()) or (0.0, 0.0)
        held += low <= 3 <= high
    assert held / 2000 == pytest.approx(0.95, abs=0.015)
    assert over_seeds([0.5]) is None


def test_resampled_shares_have_the_binomials_spread() -> None:
    right = verdicts(0.3, 1)
    found = resampled(of_verdicts(right))["right"]
    assert found.mean() == pytest.approx(right.mean(), abs=0.003)
    spread = math.sqrt(right.mean() * (1 - right.mean()) / len(right))
    assert found.std() == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("metric", [Bleu(), ExactMatch(), RougeL(), CiderD()])
def test_a_metric_is_the_score_of_its_summed_rows(metric) -> None:
    given = answers()
    assert metric.tally(given).total() == pytest.approx(metric(given), abs=1e-9)


# ------------------------------------------------------------------------------------- the verdict


def test_a_difference_beyond_images_and_seeds_counts() -> None:
    pairs = [[(result("a", verdicts(0.8, s)), result("b", verdicts(0.5, s + 9)))] for s in range(3)]
    found = difference(pairs, "right")
    assert found is not None
    assert found.verdict == HIGHER
    assert found.value == pytest.approx(0.3, abs=0.05)
    turned = difference([[(b, a)] for [(a, b)] in pairs], "right")
    assert turned is not None
    assert (turned.verdict, turned.value) == (LOWER, pytest.approx(-found.value))


def test_equal_recipes_are_rarely_told_apart() -> None:
    """Of many comparisons of two that are alike, few are called real."""
    real = 0
    for trial in range(100):
        pairs = [
            [
                (
                    result("a", verdicts(0.5, 1000 * trial + s, 100)),
                    result("b", verdicts(0.5, 1000 * trial + s + 500, 100)),
                )
            ]
            for s in range(3)
        ]
        found = difference(pairs, "right")
        assert found is not None
        real += found.verdict != NOISE
    assert real <= 5


def test_pairing_finds_what_unpaired_scores_hide() -> None:
    """One in twenty captions got better, none worse: paired, that is no chance."""
    worse = verdicts(0.5, 3)
    better = worse | verdicts(0.1, 4)
    found = difference([[(result("a", better), result("b", worse))]], "right")
    assert found is not None
    assert found.verdict == HIGHER + ONE_SEED
    alone = result("a", better).draws.scores["right"]
    assert np.percentile(alone, 2.5) < worse.mean()


def test_seeds_that_disagree_are_noise_however_many_images() -> None:
    high, low = verdicts(0.9, 1, 5000), verdicts(0.4, 2, 5000)
    pairs = [
        [(result("a", high), result("b", low))],
        [(result("a", low), result("b", high))],
        [(result("a", high), result("b", low))],
    ]
    found = difference(pairs, "right")
    assert found is not None
    assert found.verdict == NOISE


def test_runs_on_other_images_are_not_paired() -> None:
    found = difference(
        [[(result("a", verdicts(0.9, 1)), result("b", verdicts(0.1, 2), "b"))]], "right"
    )
    assert found is not None
    assert (found.images, found.verdict) == (None, NOISE)


def test_one_run_does_not_differ_from_itself() -> None:
    one = result("a", verdicts(0.5, 1))
    found = difference([[(one, one)]], "right")
    assert found is not None
    assert (found.value, found.verdict) == (0, SAME)


def test_what_is_not_there_is_not_compared() -> None:
    one = result("a", verdicts(0.5, 1))
    assert difference([], "right") is None
    assert difference([[(one, one)]], "wrong") is None


def test_draws_come_back_as_they_were_kept(tmp_path: Path) -> None:
    given = answers()
    write_draws(tmp_path / "draws", [ExactMatch(), Bleu()], given)
    found = read_draws(tmp_path / "draws")
    assert list(found.scores) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "exact_match"]
    wanted = resampled(ExactMatch().tally(given))["exact_match"]
    np.testing.assert_array_equal(found.scores["exact_match"], wanted)
    assert read_draws(tmp_path / "gone").scores == {}
    (tmp_path / "draws").write_bytes(b"torn")
    assert read_draws(tmp_path / "draws").scores == {}
