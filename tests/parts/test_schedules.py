"""The schedules against published values of alpha_bar = alpha^2 at t = k / T."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cdlm.parts.schedules import Cosine, Discrete, Learned, Linear, Sigmoid, Sqrt, published
from cdlm.protocols import Schedule

T = 1000
COSINE = {  # offset 0.008; Nichol & Dhariwal 2021, eq. 17
    1: 0.9999587158, 10: 0.9993687184, 100: 0.9720927371, 250: 0.8470121613, 500: 0.4938435904,
    750: 0.1442721024, 900: 0.02409172414, 990: 2.428572e-4, 999: 2.428767e-6,
}  # fmt: skip


def alpha_bar(schedule: Schedule, k: Tensor, steps: int = T) -> Tensor:
    return schedule(k.double() / steps).alpha.square()


@pytest.mark.parametrize(("k", "expected"), COSINE.items())
def test_cosine_without_a_floor_is_the_published_one(k: int, expected: float) -> None:
    got = alpha_bar(Cosine(offset=0.008, floor=0.0), torch.tensor(k))
    assert float(got) == pytest.approx(expected, rel=1e-6)


def test_cosine_ends_at_its_floor() -> None:
    one = torch.ones((), dtype=torch.float64)
    assert float(Cosine(floor=0.0)(one).alpha) == pytest.approx(0, abs=1e-12)
    assert float(Cosine(floor=0.02)(one).alpha) == pytest.approx(0.02)


def test_linear_is_the_limit_of_the_discrete_one() -> None:
    """log(1 - beta) = -beta - beta^2 / 2 - ...; all beta^2 / 2 together are 0.067, and half a step
    of beta is at most 0.01."""
    beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
    discrete = torch.cumprod(1 - beta, 0)
    assert_close(float(discrete[99]), 0.89701815, rtol=1e-7, atol=0)  # the published values
    assert_close(float(discrete[-1]), 4.0358298e-5, rtol=1e-7, atol=0)
    gap = alpha_bar(Linear(), torch.arange(1, T + 1)).log() - discrete.log()
    assert float(gap.abs().max()) < 0.08


def test_linear_rates_add_up() -> None:
    """-d log(alpha^2) / dt goes from `least` to `most` in a straight line."""
    t = torch.linspace(0.05, 1, 11, dtype=torch.float64, requires_grad=True)
    total = -Linear(least=0.3, most=7.0)(t).alpha.square().log().sum()
    (rate,) = torch.autograd.grad(total, t)
    assert_close(rate, 0.3 + 6.7 * t.detach())


@pytest.mark.parametrize(
    ("k", "released"), {1000: 0.29578031, 100: 0.78401, 1999: 2.0204e-4}.items()
)
def test_sqrt_follows_the_released_one(k: int, released: float) -> None:
    """Diffusion-LM's, T = 2000, starts at alpha_bar = 1 where ours keeps its 0.99, and falls below
    0 where ours ends at `floor`: they differ by less than 3e-4."""
    schedule, start = Sqrt(), alpha_bar(Sqrt(), torch.tensor(0))
    got = alpha_bar(schedule, torch.tensor(k), steps=2000) / start
    assert float(got) == pytest.approx(released, abs=3e-4)


def test_sqrt_ends_at_its_floor() -> None:
    assert float(alpha_bar(Sqrt(floor=0.01), torch.tensor(T))) == pytest.approx(0.01)


@pytest.mark.parametrize("kind", [Cosine, Linear, Sqrt, Sigmoid, Discrete, Learned])
def test_noise_divides_the_ratio_of_signal_to_noise(kind: type) -> None:
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    plain, noisy = kind()(t), kind(noise=4.0)(t)
    assert_close(noisy.alpha / noisy.sigma, plain.alpha / plain.sigma / 4)


def test_float32_is_precise_near_the_clean_end() -> None:
    """1 - alpha^2 loses digits as alpha nears 1; sigma must keep three of them at t = 1e-3."""
    t = torch.tensor([1e-3, 1e-2, 1e-1])
    for schedule in (Cosine(), Linear(), Sqrt(), Sigmoid(), Discrete()):
        assert_close(schedule(t).sigma.double(), schedule(t.double()).sigma, rtol=2e-3, atol=0)


LINEAR = {1: 0.9999, 100: 0.89701815, 500: 0.078587243, 1000: 4.0358298e-5}
SQRT = {1: 0.98535869, 100: 0.78401, 1000: 0.29578031, 1999: 2.0204e-4, 2000: 2.0204e-7}


@pytest.mark.parametrize(
    ("table", "steps", "values"),
    [
        ("cosine", 1000, COSINE | {1000: 2.42877e-9}),
        ("linear", 1000, LINEAR),
        ("sqrt", 2000, SQRT),  # as released
    ],
)
def test_the_tables_are_the_published_ones(
    table: str, steps: int, values: dict[int, float]
) -> None:
    schedule = Discrete(table=table, steps=steps)  # type: ignore[arg-type]
    for k, expected in values.items():
        assert float(alpha_bar(schedule, torch.tensor(k), steps)) == pytest.approx(expected, 2e-5)


@pytest.mark.parametrize("steps", [100, 200, 1000, 2000])
@pytest.mark.parametrize("table", ["linear", "cosine", "sqrt"])
def test_a_table_of_any_length_ends_in_noise(table: str, steps: int) -> None:
    """As the continuous one does; and every step adds noise."""
    found = published(table, steps)
    assert len(found) == steps + 1 and float(found[0]) == 1 and 0 < float(found[-1]) < 1e-4
    assert bool((found[1:] < found[:-1]).all())


def test_a_linear_table_of_few_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 20"):
        Discrete(table="linear", steps=20)


def test_sigmoid_is_half_way_at_half_time() -> None:
    """The logistic curve is symmetric around 0, whatever its temperature."""
    for tau in (0.3, 1.0, 3.0):
        got = alpha_bar(Sigmoid(tau=tau, floor=1e-12), torch.tensor(T // 2))
        assert float(got) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="below end"):
        Sigmoid(start=1.0, end=1.0)


def log_snr(schedule: Schedule, t: Tensor) -> Tensor:
    level = schedule(t)
    return 2 * (level.alpha / level.sigma).log()


def test_the_learned_curve_keeps_its_ends_and_can_bend() -> None:
    """It starts nearly straight, and steps down a gradient as far as one asks."""
    schedule, t = Learned(clean=8.0, noisy=-6.0), torch.linspace(0, 1, 11).double()
    assert_close(log_snr(schedule, t), 8 - 14 * t, rtol=0, atol=0.8)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (log_snr(schedule, t[5:6]) - 5).square().sum().backward()
        optimizer.step()
    bent = log_snr(schedule, t).detach()
    assert float(bent[5]) == pytest.approx(5, abs=0.1)
    assert [float(it) for it in bent[[0, -1]]] == pytest.approx([8, -6], abs=1e-4)
    assert bool((bent[1:] < bent[:-1]).all())
