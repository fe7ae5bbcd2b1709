"""Each way to draw noise levels against its density, and what importance learns from losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cdlm.parts.timesteps import Importance, LogitNormal, Shared, Stratified, Uniform
from cdlm.testing.examples import rng


@pytest.mark.parametrize("kind", [Uniform, Shared, Stratified])
def test_steps_are_those_of_the_table(kind: type) -> None:
    """k / T with every k from 1 to T, and no other."""
    draw = rng()
    t = torch.cat([kind(steps=10)(8, draw)[0] for _ in range(400)])
    assert sorted(set((10 * t).tolist())) == pytest.approx(range(1, 11))


def test_shared_is_one_level_for_all() -> None:
    t, _ = Shared()(64, rng())
    assert len(set(t.tolist())) == 1


def test_stratified_has_one_in_every_stratum() -> None:
    t, _ = Stratified(least=1e-9)(32, rng())
    assert sorted((32 * t).long().tolist()) == list(range(32))
    t, _ = Stratified(steps=32)(32, rng())  # so a batch of T captions has every step once
    assert sorted((32 * t).tolist()) == list(range(1, 33))


def test_logit_normal_has_its_median_and_quartiles() -> None:
    t, _ = LogitNormal(mean=0.5, std=2.0)(100_000, rng())
    logits = torch.logit(t.double())
    found = torch.quantile(logits, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0.5 - 1.349, 0.5, 0.5 + 1.349], abs=0.05)


def steep(t: Tensor) -> Tensor:
    """A loss that is 4 at high noise and 1 at low."""
    return torch.where(t > 0.5, 4.0, 1.0)


def warmed(**options: int) -> Importance:
    timesteps, draw = Importance(bins=4, history=5, **options), rng()
    for _ in range(60):
        t, _ = timesteps(16, draw)
        timesteps.observe(t, steep(t))
    return timesteps


def test_importance_is_uniform_until_every_bin_has_its_history() -> None:
    timesteps = Importance(bins=4, history=3)
    timesteps.observe(torch.full((100,), 0.9), torch.full((100,), 50.0))
    assert timesteps.shares().tolist() == pytest.approx([0.25] * 4)


def test_importance_draws_by_the_root_of_the_second_moment() -> None:
    """Losses 1, 1, 4, 4: shares .1 .1 .4 .4, with the thousandth that stays uniform."""
    shares = warmed().shares().tolist()
    assert shares == pytest.approx([0.999 * p + 0.001 / 4 for p in (0.1, 0.1, 0.4, 0.4)])


@pytest.mark.parametrize("steps", [0, 100])
def test_importance_keeps_the_mean_loss(steps: int) -> None:
    t, weight = warmed(steps=steps)(50_000, rng(7))
    assert float((weight * steep(t)).mean()) == pytest.approx(2.5, rel=0.03)
    assert float(weight.mean()) == pytest.approx(1, rel=0.03)


def test_importance_forgets_what_is_old_and_ignores_what_is_no_number() -> None:
    timesteps = warmed()
    for value in (2.0, math.inf, math.nan):
        for k in range(4):
            timesteps.observe(torch.full((9,), k / 4 + 0.1), torch.full((9,), value))
    assert timesteps.shares().tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize(("bins", "steps"), [(10, 10), (7, 10), (3, 1000), (10, 0)])
def test_importance_fills_every_bin(bins: int, steps: int) -> None:
    """The losses of a bin's own times come back to it, on the edges of the bins too."""
    timesteps, draw = Importance(bins=bins, history=5, steps=steps), rng()
    for _ in range(200):
        t, _ = timesteps(16, draw)
        timesteps.observe(t, steep(t))
    assert int(timesteps.counts.min()) >= 5
    shares = timesteps.shares()
    assert float(shares[-1] / shares[0]) == pytest.approx(4, rel=0.02)


def test_importance_needs_a_step_for_every_bin() -> None:
    with pytest.raises(ValueError, match=r"bins = 50 .* steps = 20"):
        Importance(bins=50, steps=20)


def test_importance_of_losses_that_are_all_0_is_uniform() -> None:
    timesteps = Importance(bins=4, history=1)
    timesteps.observe(torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.zeros(4))
    assert timesteps.shares().tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("steps", [0, 1000])
def test_importance_never_goes_beyond_pure_noise(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The largest float32 below 1, in the last bin, is rounded up to that bin's end."""
    largest = 1 - 2.0**-24
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), largest))
    t, _ = Importance(bins=50, steps=steps)(1000, rng())
    assert float(t.max()) == 1


def test_importance_goes_on_after_a_checkpoint() -> None:
    before, after = warmed(), Importance(bins=4, history=5)
    after.load_state_dict(before.state_dict())
    assert torch.equal(before.shares(), after.shares())
