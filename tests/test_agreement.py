"""Schedules and samplers give what diffusers' schedulers give, for the same noise and network.

Theirs count steps k = T-1..0 with alpha_bar[k]; ours is the time t = (k + 1) / T.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cdlm.gaussian import corrupt
from cdlm.parts.samplers import Ddim, Ddpm, DpmSolver
from cdlm.parts.schedules import Discrete, published
from cdlm.parts.targets import X0, Eps, V
from cdlm.protocols import Sampler, Target
from cdlm.records import Estimate, State
from cdlm.testing.examples import rng

diffusers = pytest.importorskip("diffusers")

T = 1000
SHAPE = (4, 3, 5)
TABLES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
SCHEDULE = Discrete(table="cosine", steps=T)


def theirs(name: str, **options: object) -> object:
    """One of diffusers' schedulers, in float64, on the cosine table, told x0, with no clipping."""
    usual = {
        "num_train_timesteps": T, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample",
    }  # fmt: skip
    kept = {} if "Multistep" in name else {"clip_sample": False}
    scheduler = getattr(diffusers, name)(**(usual | kept | options))
    exact = published("cosine", T)[1:]  # theirs are float32, and round
    assert_close(scheduler.alphas_cumprod, exact.float(), rtol=2e-3, atol=1e-9)
    scheduler.alphas_cumprod = exact
    return scheduler


def network(x: Tensor, t: float) -> Tensor:
    """Some x0 that depends on x and t, and is not linear in either."""
    return torch.tanh(1.5 * x + 0.3) * (1 - 0.4 * t) + 0.1 * torch.sin(7 * x)


def noise(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=rng(seed), dtype=torch.float64)


def ours(sampler: Sampler, times: list[float], spread: float = 0.0, seed: int = 3) -> list[Tensor]:
    """Every state after the first noise. The generator draws float64 noise as theirs does."""
    state, draw, states = State(x=noise(), t=times[0]), rng(seed), []

    def denoise(x: Tensor, t: float) -> Estimate:
        return Estimate(x0_hat=network(x, t), spread=spread)

    for s in times[1:]:
        state = sampler.step(state, s, denoise, SCHEDULE, draw)
        states.append(state.x)
    return states


def steps(n: int) -> list[int]:
    """Their steps, evenly spaced from the last to 0: T-1, ..., T/n-1."""
    return [T - 1 - i * (T // n) for i in range(n)]


def times(n: int) -> list[float]:
    return [(k + 1) / T for k in steps(n)] + [0.0]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("size", [100, 200, 1000, 2000])
def test_the_tables_are_theirs(table: str, size: int) -> None:
    """float32 products of T factors: to 2e-3 near the end."""
    options = {"num_train_timesteps": size, "beta_schedule": TABLES[table]}
    if table == "linear":
        options |= {"beta_start": 0.1 / size, "beta_end": 20.0 / size}
    got = diffusers.DDPMScheduler(**options).alphas_cumprod
    assert_close(published(table, size)[1:], got.double(), rtol=2e-3, atol=1e-9)


LEVELS = torch.tensor([0, 9, 499, 999])  # their steps, one for each row of SHAPE


def test_corruption_and_velocity_are_theirs() -> None:
    scheduler, x0, eps = theirs("DDPMScheduler"), noise(1), noise(2)
    z = corrupt(x0, eps, (LEVELS + 1).double() / T, SCHEDULE)
    assert_close(z.x_t, scheduler.add_noise(x0, eps, LEVELS), rtol=1e-10, atol=1e-10)
    velocity = scheduler.get_velocity(x0, eps, LEVELS)
    assert_close(V().encode(z, SCHEDULE), velocity, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("target", "named"),
    [(X0(), "sample"), (Eps(), "epsilon"), (V(), "v_prediction")],
    ids=["x0", "eps", "v"],
)
def test_an_answer_implies_the_same_x0(target: Target, named: str) -> None:
    """Under eps at pure noise, where it is 20,000 times the answer, too."""
    scheduler, x, said = theirs("DDIMScheduler", prediction_type=named), noise(1), noise(2)
    scheduler.set_timesteps(T)
    found = target.decode(said, x, (LEVELS + 1).double() / T, SCHEDULE)
    for row, k in enumerate(LEVELS.tolist()):
        one = slice(row, row + 1)
        implied = scheduler.step(said[one], k, x[one]).pred_original_sample
        assert_close(found[one], implied, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [4, 10, 50])
def test_ddim_takes_the_same_steps(n: int, eta: float) -> None:
    scheduler, x, draw = theirs("DDIMScheduler"), noise(), rng(3)
    scheduler.set_timesteps(n)
    for k, found in zip(steps(n), ours(Ddim(eta=eta), times(n)), strict=True):
        said = network(x, (k + 1) / T)
        x = scheduler.step(said, k, x, eta=eta, generator=draw).prev_sample
        assert_close(found, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("spread", "variance"), [(0.0, "fixed_small"), (1.0, "fixed_large"), (0.3, "learned_range")]
)
@pytest.mark.parametrize("n", [4, 10, 50])
def test_ddpm_takes_the_same_steps(n: int, spread: float, variance: str) -> None:
    """But for the last, to clean text, where theirs draws noise unless its step is 0.

    Where the variance is learned, their network says it as a number from -1 to 1 beside x0.
    """
    scheduler, x, draw = theirs("DDPMScheduler", variance_type=variance), noise(), rng(3)
    scheduler.set_timesteps(timesteps=steps(n))
    for k, found in zip(steps(n)[:-1], ours(Ddpm(), times(n), spread), strict=False):
        said = network(x, (k + 1) / T)
        if variance == "learned_range":
            said = torch.cat([said, torch.full_like(said, 2 * spread - 1)], 1)
        x = scheduler.step(said, k, x, generator=draw).prev_sample
        assert_close(found, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("n", [4, 10, 50])
def test_dpm_solver_takes_the_same_steps(n: int, order: int) -> None:
    """Theirs ends at sigma = 0 by a step of order 1, as ours does.

    It computes in float32, whatever it is given, and so is near ours to 1e-6.
    """
    scheduler, x = theirs(
        "DPMSolverMultistepScheduler", solver_order=order, final_sigmas_type="zero",
        timestep_spacing="trailing",
    ), noise()  # fmt: skip
    scheduler.set_timesteps(n)
    assert scheduler.timesteps.tolist() == steps(n)
    sampler = DpmSolver(order=order)  # type: ignore[arg-type]
    for k, found in zip(scheduler.timesteps, ours(sampler, times(n)), strict=True):
        x = scheduler.step(network(x, (int(k) + 1) / T), k, x).prev_sample
        assert_close(found, x, rtol=5e-6, atol=5e-6)
