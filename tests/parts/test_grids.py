"""The times of each grid, and asymmetric time as Bit Diffusion writes it down."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cdlm.parts.grids import LogSnr, Quadratic, Uniform
from cdlm.parts.samplers import Ddim
from cdlm.parts.schedules import Cosine, Linear
from cdlm.protocols import Schedule
from cdlm.records import Estimate, State
from cdlm.testing.examples import quarter_circle, rng


def test_each_has_its_times() -> None:
    assert [t for t, _ in Uniform()(4, quarter_circle)] == [1, 0.75, 0.5, 0.25]
    assert [t for t, _ in Quadratic()(4, quarter_circle)] == [1, 0.5625, 0.25, 0.0625]


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), quarter_circle])
def test_log_snr_is_even(schedule: Schedule) -> None:
    """Steps of equal size in log(alpha / sigma), but for the last, to 0."""
    times = torch.tensor([t for t, _ in LogSnr(clean=0.01)(12, schedule)], dtype=torch.float64)
    level = schedule(times)
    ratio = (level.alpha / level.sigma).log().clamp(-10, 10)
    assert_close(ratio.diff(), ratio.diff().mean().expand(11), rtol=1e-4, atol=1e-4)
    assert float(times[-1]) == pytest.approx(0.01)


def test_without_td_each_step_ends_where_the_next_begins() -> None:
    for grid in (Uniform(), Quadratic(), LogSnr()):
        pairs = grid(9, quarter_circle)
        assert [s for _, s in pairs] == [t for t, _ in pairs[1:]] + [0.0]


@pytest.mark.parametrize("td", [0, 1, 2.5, 8])
def test_asymmetric_time_is_that_of_bit_diffusion(td: float) -> None:
    """Chen et al. 2022, algorithm 2, written out: t_now = 1 - i / N, t_next = max(1 - (i + 1 + td)
    / N, 0), and a DDIM step between the two, gamma = alpha^2."""

    def network(x: Tensor, t: float) -> Tensor:
        return torch.tanh(2 * x) * (1 - t / 2)

    def gamma(t: float) -> float:
        return math.cos(math.pi / 2 * t) ** 2

    n, x = 10, torch.randn(3, 2, 4, generator=rng(), dtype=torch.float64)
    state = State(x=x, t=1.0)
    for i, (t, s) in enumerate(Uniform(td=td / n)(n, quarter_circle)):
        now, after = 1 - i / n, max(1 - (i + 1 + td) / n, 0.0)
        said = network(x, now)
        eps = (x - math.sqrt(gamma(now)) * said) / math.sqrt(1 - gamma(now))
        x = math.sqrt(gamma(after)) * said + math.sqrt(1 - gamma(after)) * eps
        state = Ddim().step(
            State(x=state.x, t=t),
            s,
            lambda x, t: Estimate(x0_hat=network(x, t)),
            quarter_circle,
            rng(),
        )
        assert_close(state.x, x)
