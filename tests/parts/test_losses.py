"""The losses against their formulas."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from cdlm.gaussian import corrupt
from cdlm.parts.losses import (
    L1,
    Anchor,
    AnchorRounding,
    Huber,
    Length,
    Match,
    MinSnr,
    Mse,
    Prior,
    Rounding,
    Vlb,
    step_kl,
)
from cdlm.parts.targets import Eps, V
from cdlm.records import Guess, Level
from cdlm.testing.examples import DIMS, LENGTHS, guess, noised, quarter_circle, rng, saying
from cdlm.testing.oracles import step_back

Z = guess()


def off_by(amount: float) -> Guess:
    return saying(Z, Z.wanted + amount)


def test_the_truth_costs_nothing() -> None:
    for loss in (Mse(), L1()):
        assert torch.equal(loss(off_by(0.0)), torch.zeros(len(LENGTHS)))


def test_an_error_costs_its_square_or_its_size_however_long_the_caption() -> None:
    assert_close(Mse()(off_by(0.5)), torch.full((3,), 0.25))
    assert_close(L1()(off_by(-0.5)), torch.full((3,), 0.5))


def test_a_caption_is_averaged_over_its_scored_positions() -> None:
    """An error at one of a caption's positions counts one over their number."""
    error = torch.zeros_like(Z.wanted)
    error[:, 0] = 1.0
    assert_close(Mse()(saying(Z, Z.wanted + error)), 1 / torch.tensor(LENGTHS))


def test_rounding_is_cross_entropy() -> None:
    logits = Z.embedding.logits(Z.x0_hat)
    nats = -logits.log_softmax(-1).gather(-1, Z.batch.ids[..., None])[..., 0]
    expected = torch.stack([row[:n].mean() for row, n in zip(nats, LENGTHS, strict=True)])
    assert_close(Rounding()(Z), expected)


def test_rounding_of_no_opinion_is_the_log_of_the_vocabulary() -> None:
    blank = saying(Z, torch.zeros_like(Z.got))
    assert_close(Rounding()(blank), torch.full((3,), math.log(DIMS.vocab)))


def test_rounding_looks_at_x0_and_the_others_at_the_answer() -> None:
    other_x0 = replace(Z, x0_hat=Z.wanted)
    other_answer = replace(Z, got=Z.wanted)
    assert torch.equal(Mse()(other_x0), Mse()(Z)) and torch.equal(L1()(other_x0), L1()(Z))
    assert torch.equal(Rounding()(other_answer), Rounding()(Z))
    assert not torch.equal(Rounding()(other_x0), Rounding()(Z))


def test_huber_is_square_inside_and_straight_outside() -> None:
    assert_close(Huber(delta=1.0)(off_by(0.5)), torch.full((3,), 0.125))
    assert_close(Huber(delta=0.2)(off_by(-3.0)), torch.full((3,), 0.2 * (3 - 0.1)))


@pytest.mark.parametrize("gamma", [0.5, 5.0, 1e9])
def test_min_snr_weighs_the_errors_of_all_targets_alike(gamma: float) -> None:
    """min(SNR, gamma) of x0, / SNR of eps, / (SNR + 1) of v: Hang et al. 2023, section 3.4."""
    z, said = noised(), torch.randn(49, DIMS.length, DIMS.width, generator=rng(3)).double()
    base = replace(Z, noised=z, mask=torch.ones(49, DIMS.length, dtype=torch.bool))
    level = quarter_circle(z.t)
    snr = (level.alpha / level.sigma).square()
    for target, share in ((Eps(), snr), (V(), snr + 1)):
        x0_hat = target.decode(said, z.x_t, z.t, quarter_circle)
        error = (said - target.encode(z, quarter_circle)).square().mean((1, 2))
        got = MinSnr(gamma=gamma)(replace(base, x0_hat=x0_hat))
        assert_close(got, snr.clamp(max=gamma) / share * error)


def test_rounding_of_x0_looks_at_the_embedding_alone() -> None:
    assert torch.equal(Rounding(of="x0")(off_by(3.0)), Rounding(of="x0")(Z))
    at_home = saying(Z, Z.noised.x0)
    assert_close(Rounding(of="x0")(Z), Rounding()(at_home))


def test_anchors_ask_the_network_at_the_first_step() -> None:
    asked: list[tuple[Tensor, Tensor]] = []

    def think(x_t: Tensor, t: Tensor) -> Tensor:
        asked.append((x_t, t))
        return Z.noised.x0 + 0.5

    z = replace(Z, think=think)
    assert_close(Anchor(t=0.01)(z), torch.full((3,), 0.25))
    assert_close(Anchor(norm="l1")(z), torch.full((3,), 0.5))
    assert_close(AnchorRounding()(z), Rounding()(saying(z, Z.noised.x0 + 0.5)))
    level = quarter_circle(torch.tensor(0.01))
    assert_close(asked[0][0], level.alpha * Z.noised.x0 + level.sigma * Z.noised.eps)
    assert torch.equal(asked[0][1], torch.full((3,), 0.01))


# ------------------------------------------------------------------------- the variational bound


def level(t: float) -> Level:
    return quarter_circle(torch.tensor(t, dtype=torch.float64))


X0, X0_HAT, X_T = (torch.randn(5, 4, 3, generator=rng(i), dtype=torch.float64) for i in range(3))


@pytest.mark.parametrize("spread", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.8), (0.3, 0.299), (0.02, 0.01)])
def test_a_step_s_kl_is_that_of_two_gaussians(t: float, s: float, spread: float) -> None:
    """Against torch's closed form, and a Monte-Carlo estimate of 200,000 draws."""
    now, then = level(t), level(s)
    q = step_back(X0, X_T, now, then, 0.0)
    p = step_back(X0_HAT, X_T, now, then, spread)
    got = step_kl(X0, X0_HAT, now, then, torch.tensor(spread, dtype=torch.float64))
    assert_close(got, kl_divergence(q, p), rtol=1e-6, atol=1e-9)
    assert bool((got >= 0).all())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = q.sample((200_000,))[:, 0, 0, 0]
    one = [Normal(it.loc[0, 0, 0], it.scale[0, 0, 0]) for it in (q, p)]
    gain = one[0].log_prob(draws) - one[1].log_prob(draws)
    error = float(gain.std()) / 200_000**0.5
    assert float(gain.mean()) == pytest.approx(float(got[0, 0, 0]), abs=5 * error + 1e-9)


def test_at_fixed_variance_it_is_half_the_fall_of_snr_times_the_error() -> None:
    now, then = level(0.5), level(0.4)
    fall = (then.alpha / then.sigma).square() - (now.alpha / now.sigma).square()
    got = step_kl(X0, X0_HAT, now, then, torch.tensor(0.0).double())
    assert_close(got, fall / 2 * (X0 - X0_HAT).square())


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_float32_tells_a_thousandth_of_a_step_to_one_percent(spread: float) -> None:
    """There the two variances differ by parts in a thousand, and exp(x) - 1 - x by rounding."""
    found = []
    for kind in (torch.float32, torch.float64):
        t = (torch.arange(2, 1001).double() / 1000).to(kind)[:, None]
        now, then = quarter_circle(t), quarter_circle(t - 0.001)
        x0, off = (torch.randn(999, 8, generator=rng(i), dtype=torch.float64) for i in (1, 2))
        told = torch.tensor(spread, dtype=kind)
        found.append(step_kl(x0.to(kind), (x0 + 0.1 * off).to(kind), now, then, told).sum(1))
        assert bool((step_kl(x0.to(kind), x0.to(kind), now, then, told) >= 0).all())
    assert_close(found[0].double(), found[1], rtol=0.01, atol=0)


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_the_terms_sum_to_the_bound(steps: int) -> None:
    """For x0 ~ N(0, 1) the ideal network says alpha x_t, off by sigma^2 in the mean square, and
    spread 1 is the true way back: then the bound is exact, and is the entropy of x0.
    Prior -log sigma_T^2 / 2, entropy of x0 given x_1 log(2 pi e sigma_1^2) / 2, and the steps."""
    times = [1 / steps + i * (0.9 - 1 / steps) / (steps - 1) for i in range(steps)]  # t_1 to t_T
    levels = [level(t) for t in times]
    one = torch.ones((), dtype=torch.float64)
    terms = [step_kl(now.sigma, 0 * one, now, then, one) for then, now in pairwise(levels)]
    assert min(map(float, terms)) >= 0
    prior = -levels[-1].sigma.square().log() / 2
    decoder = (2 * math.pi * math.e * levels[0].sigma.square()).log() / 2
    assert float(sum(terms) + prior + decoder) == pytest.approx(
        math.log(2 * math.pi * math.e) / 2, abs=1e-9
    )


class Corners(torch.nn.Module):
    """Four words at the corners of E = 4, whose nearest one is all but certain."""

    def logits(self, x: Tensor) -> Tensor:
        return 20 * x


def test_with_the_ideal_network_the_bound_is_the_entropy_of_the_words() -> None:
    """Four equally likely words cost log 4 nats: more by what T steps lose, less by nothing.

    The ideal network says the mean of what the words may be, softmax(alpha x_t / sigma^2).
    """
    count, draw = 3000, rng()
    ids = torch.arange(count) % 4
    x0 = torch.eye(4).double()[ids][:, None]
    base = replace(
        Z,
        batch=replace(Z.batch, ids=ids[:, None]),
        mask=torch.ones(count, 1, dtype=torch.bool),
        spread=torch.zeros(()),
        embedding=Corners(),
    )
    found = []
    for steps in (25, 200):
        total = Prior()(
            replace(base, noised=replace(Z.noised, x0=x0, t=torch.ones(count).double()))
        )
        for k in range(1, steps + 1):
            t = torch.full((count,), k / steps, dtype=torch.float64)
            z = corrupt(x0, torch.randn(x0.shape, generator=draw).double(), t, quarter_circle)
            here = quarter_circle(t).over(x0)
            x0_hat = (here.alpha * z.x_t / here.sigma.square()).softmax(-1)
            total += Vlb(steps=steps)(replace(base, noised=z, x0_hat=x0_hat)) / steps
        found.append(float(total.mean()))
    rough, fine = found
    assert fine == pytest.approx(math.log(4), abs=0.03)
    assert rough > fine > math.log(4) - 0.01


def test_vlb_is_one_term_times_their_number_or_the_words() -> None:
    z = replace(Z, noised=replace(Z.noised, t=torch.tensor([0.5, 0.01, 0.9])))
    got, words = Vlb(steps=100)(z), Rounding()(z)
    assert_close(got[1], 100 * words[1])
    now, then = (quarter_circle(torch.tensor(t)) for t in (0.5, 0.49))
    fall = (then.alpha / then.sigma).square() - (now.alpha / now.sigma).square()
    error = (Z.x0_hat[0] - Z.noised.x0[0]).square().sum(-1)[: LENGTHS[0]].mean()
    assert_close(got[0], 100 * fall / 2 * error, rtol=1e-3, atol=0)


def test_hybrid_teaches_the_variance_alone() -> None:
    spread = torch.full_like(Z.got, 0.5).requires_grad_()
    said = Z.got.clone().requires_grad_()
    z = replace(saying(Z, said), spread=spread)
    for hybrid, expected in ((True, False), (False, True)):
        found = torch.autograd.grad(
            Vlb(steps=50, hybrid=hybrid)(z).sum(), [spread, said], allow_unused=True
        )
        assert found[0] is not None and bool(found[0].any())
        assert (found[1] is not None) == expected


def test_prior_is_the_kl_to_pure_noise() -> None:
    def floor(t: Tensor) -> Level:
        return Level(torch.full_like(t, 0.6), torch.full_like(t, 0.8))

    got = Prior()(replace(Z, schedule=floor))
    q, p = Normal(0.6 * Z.noised.x0, 0.8), Normal(0.0, 1.0)
    nats = kl_divergence(q, p).sum(-1)
    expected = torch.stack([row[:n].mean() for row, n in zip(nats, LENGTHS, strict=True)])
    assert_close(got, expected)
    assert float(Prior()(Z).max()) < 1e-6  # the quarter circle ends in pure noise


# ---------------------------------------------------------------------- what teaches other parts


def test_match_is_contrastive_both_ways() -> None:
    table = Z.guidance.similarity(Z.x0_hat, Z.noised.t, Z.mask, Z.condition.features)  # type: ignore[attr-defined]
    both = (-table.log_softmax(1).diagonal() - table.log_softmax(0).diagonal()) / 2
    assert_close(Match()(Z), both)


def test_match_does_not_call_captions_of_one_image_wrong_nor_use_withheld_images() -> None:
    """With captions 0 and 1 of one image, or 2 withheld, one rival is left; then none."""
    twins = Z.condition.features[[0, 0, 2]]
    shared = replace(Z, condition=replace(Z.condition, features=twins))
    table = Z.guidance.similarity(Z.x0_hat, Z.noised.t, Z.mask, twins)  # type: ignore[attr-defined]
    first = -table[0, [0, 2]].log_softmax(0)[0], -table[[0, 2], 0].log_softmax(0)[0]
    assert_close(Match()(shared)[0], sum(first) / 2)
    keep = torch.tensor([True, True, False])
    alone = replace(shared, condition=replace(shared.condition, keep=keep))
    assert_close(Match()(alone), torch.zeros(3))


def test_match_takes_features_that_differ_in_one_number_for_two_images() -> None:
    near = Z.condition.features[[0, 0, 2]].clone()
    near[1, -1, -1] += 1e-3
    close = replace(Z, condition=replace(Z.condition, features=near))
    table = Z.guidance.similarity(Z.x0_hat, Z.noised.t, Z.mask, near)  # type: ignore[attr-defined]
    both = (-table.log_softmax(1).diagonal() - table.log_softmax(0).diagonal()) / 2
    assert_close(Match()(close), both)


def test_length_is_cross_entropy_of_the_place_of_the_end() -> None:
    logits = Z.length.logits(Z.condition)  # type: ignore[attr-defined]
    last = torch.tensor(LENGTHS) - 1
    assert_close(Length()(Z), -logits.log_softmax(1)[torch.arange(3), last])
