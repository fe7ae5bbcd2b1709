"""What each target asks for, and how errors in the answer move x0."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from cdlm.parts.schedules import Cosine
from cdlm.parts.targets import X0, Earlier, Eps, V
from cdlm.protocols import Target
from cdlm.testing.examples import noised, quarter_circle, rng

Z = noised()
LEVEL = quarter_circle(Z.t).over(Z.x0)


def test_each_asks_for_what_it_is_called() -> None:
    assert torch.equal(X0().encode(Z, quarter_circle), Z.x0)
    assert torch.equal(Eps().encode(Z, quarter_circle), Z.eps)
    assert_close(V().encode(Z, quarter_circle), LEVEL.alpha * Z.eps - LEVEL.sigma * Z.x0)


def test_the_velocity_is_at_right_angles_to_the_state() -> None:
    """|x_t|^2 + |v|^2 = |x0|^2 + |eps|^2."""
    v = V().encode(Z, quarter_circle)
    assert_close(Z.x_t.square() + v.square(), Z.x0.square() + Z.eps.square())


@pytest.mark.parametrize(
    ("target", "factor"),
    [
        (X0(), torch.ones_like(LEVEL.alpha)),
        (Eps(), LEVEL.sigma / LEVEL.alpha),  # |d eps|^2 = SNR |d x0|^2
        (V(), LEVEL.sigma),  # |d v|^2 = (SNR + 1) |d x0|^2
    ],
    ids=["x0", "eps", "v"],
)
def test_an_error_of_the_answer_in_x0(target: Target, factor: torch.Tensor) -> None:
    error = 1e-3 * torch.randn(Z.x0.shape, generator=rng(1), dtype=torch.float64)
    y = target.encode(Z, quarter_circle)
    x0 = target.decode(y + error, Z.x_t, Z.t, quarter_circle)
    assert_close((x0 - Z.x0).abs(), factor * error.abs(), rtol=1e-6, atol=1e-12)


def test_the_earlier_state_has_the_same_noise_or_none_of_its_own() -> None:
    s = (Z.t - 0.05).clamp(min=0)
    then = quarter_circle(s).over(Z.x0)
    same = Earlier(gap=0.05).encode(Z, quarter_circle)
    assert_close(same, then.alpha * Z.x0 + then.sigma * Z.eps)
    mean = Earlier(gap=0.05, coupling="posterior_mean").encode(Z, quarter_circle)
    a_t, a_s = LEVEL.alpha.square(), then.alpha.square()  # Ho et al. 2020, eq. 7
    of_x0 = a_s.sqrt() * (1 - a_t / a_s) / (1 - a_t)
    of_x_t = (a_t / a_s).sqrt() * (1 - a_s) / (1 - a_t)
    assert_close(mean, of_x0 * Z.x0 + of_x_t * Z.x_t)


@pytest.mark.parametrize("coupling", ["same_noise", "posterior_mean"])
def test_within_the_gap_of_clean_text_the_answer_is_x0(coupling: str) -> None:
    target = Earlier(gap=0.5, coupling=coupling)  # type: ignore[arg-type]
    early = Z.t < 0.5
    assert_close(target.encode(Z, quarter_circle)[early], Z.x0[early], rtol=0, atol=1e-9)


def test_a_small_gap_is_badly_conditioned() -> None:
    """An error of the answer is 5 to 30 times as large in x0: the notes' x_{t-30} of 1000."""
    y = Earlier(gap=0.03).encode(Z, Cosine())
    middle = (Z.t > 0.2) & (Z.t < 0.9)
    moved = Earlier(gap=0.03).decode(y + 1e-3, Z.x_t, Z.t, Cosine()) - Earlier(gap=0.03).decode(
        y, Z.x_t, Z.t, Cosine()
    )
    factor = moved[middle] / 1e-3
    assert float(factor.min()) > 5 and float(factor.max()) < 40


@pytest.mark.parametrize("target", [X0(), Eps(), V(), Earlier()], ids=["x0", "eps", "v", "t-k"])
def test_at_pure_noise_the_default_schedule_is_still_decodable(target: Target) -> None:
    t, x_t = torch.ones(1), torch.randn(1, 2, 3, generator=rng())
    x0 = target.decode(torch.randn(1, 2, 3, generator=rng(1)), x_t, t, Cosine())
    assert bool(x0.isfinite().all())
