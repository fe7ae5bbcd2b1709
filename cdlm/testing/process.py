"""Laws of what turns captions into noise and noise into a loss: embedding to loss."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.testing import assert_close

from cdlm.parts.losses import Prior
from cdlm.protocols import Embedding, Loss, Noise, Schedule, Target, Timesteps, Variance
from cdlm.records import Condition, Guess, Level
from cdlm.testing.examples import (
    DIMS,
    LENGTHS,
    SOME,
    B,
    batch,
    gradients,
    guess,
    noised,
    quarter_circle,
    rng,
    saying,
    stir,
)
from cdlm.testing.oracles import step_back

TIMES = torch.linspace(0, 1, 1001, dtype=torch.float64)

# -------------------------------------------------------------------------------------- schedule


def check_schedule_preserves_variance(schedule: Schedule) -> None:
    """alpha and sigma lie in [0, 1], and alpha^2 + sigma^2 = 1, at every t and both ends."""
    level = schedule(TIMES)
    for name, value in (("alpha", level.alpha), ("sigma", level.sigma)):
        assert bool(((value >= 0) & (value <= 1)).all()), f"{name} leaves [0, 1]"
    total = level.alpha.square() + level.sigma.square()
    assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def check_schedule_loses_signal(schedule: Schedule) -> None:
    """The signal-to-noise ratio falls strictly with t: mostly text at 0, mostly noise at 1."""
    level = schedule(TIMES)
    ratio = (level.alpha.square() / level.sigma.square()).detach()  # infinite where sigma is 0
    assert bool((ratio[1:] < ratio[:-1]).all()), "the signal-to-noise ratio does not fall strictly"
    assert float(ratio[0]) > 1 > float(ratio[-1]), "it does not go from text to noise"


def check_schedule_takes_any_shape(schedule: Schedule) -> None:
    """Every t counts by itself: a scalar, a row or a square of them give the same levels."""
    t = TIMES[1:-1:111]
    row, square = schedule(t), schedule(t.view(3, 3))
    one = torch.stack([schedule(value).alpha for value in t])
    assert square.alpha.shape == square.sigma.shape == (3, 3)
    assert_close(square.alpha.flatten(), row.alpha, rtol=0, atol=1e-12)
    assert_close(square.sigma.flatten(), row.sigma, rtol=0, atol=1e-12)
    assert_close(one, row.alpha, rtol=0, atol=1e-12)


def check_schedule_keeps_the_type(schedule: Schedule) -> None:
    """float32 in, float32 out, and the same for float64; they agree to 1e-4; t is not written."""
    t = TIMES[::100]
    before = t.clone()
    wide, narrow = schedule(t), schedule(t.float())
    assert wide.alpha.dtype == wide.sigma.dtype == torch.float64, "float64 is not kept"
    assert narrow.alpha.dtype == narrow.sigma.dtype == torch.float32, "float32 is not kept"
    assert_close(narrow.alpha.double(), wide.alpha, rtol=0, atol=1e-4)
    assert_close(narrow.sigma.double(), wide.sigma, rtol=0, atol=1e-4)
    assert torch.equal(t, before), "it writes into t"


def check_schedule_learns_or_is_fixed(schedule: Schedule) -> None:
    """A gradient of the levels reaches every weight, if it has any."""
    weights = list(schedule.parameters()) if isinstance(schedule, nn.Module) else []
    level = schedule(TIMES[1:-1:100])
    assert level.alpha.requires_grad == bool(weights), "a gradient without weights, or the reverse"
    if weights:
        found = gradients((level.alpha / level.sigma).log(), weights)
        assert all(g is not None for g in found), "a weight has no gradient"


# ----------------------------------------------------------------------------------------- noise


def check_noise_is_normal(noise: Noise) -> None:
    """Over many draws every number has mean 0 and variance 1, and no two of a caption agree."""
    x0 = torch.zeros(4, DIMS.length, DIMS.width)
    draw = rng()
    drawn = torch.stack([noise(x0, draw) for _ in range(4000)])
    assert drawn.shape[1:] == x0.shape, f"shape {tuple(drawn.shape[1:])}, not that of x0"
    assert float(drawn.mean(0).abs().max()) < 0.08, "a mean is not 0"
    assert float((drawn.var(0) - 1).abs().max()) < 0.12, "a variance is not 1"
    flat = drawn[:, 0].flatten(1)
    apart = torch.corrcoef(flat.T) - torch.eye(flat.shape[1])
    assert float(apart.abs().max()) < 0.1, "numbers of one caption go together"


def check_noise_repeats(noise: Noise) -> None:
    """The same generator gives the same noise, another one another; x0 stands as before."""
    x0 = torch.ones(B, DIMS.length, DIMS.width)
    one, two, other = (noise(x0, rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(one, two), "the draw comes from elsewhere than rng"
    assert not torch.equal(one, other), "the draw ignores rng"
    assert bool((x0 == 1).all()), "it writes into x0"


def check_noise_knows_nothing_of_the_caption(noise: Noise) -> None:
    """Another x0 of the same shape gets the same noise."""
    shape = (B, DIMS.length, DIMS.width)
    one, two = noise(torch.zeros(shape), rng()), noise(torch.ones(shape), rng())
    assert torch.equal(one, two), "the noise depends on x0"


# -------------------------------------------------------------------------------------- variance


def _spread(variance: Variance) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    z = noised(torch.float32)
    if isinstance(variance, nn.Module):
        stir(variance).eval()
    given = (z.x0 + 0.1, z.x_t, z.t)
    return variance(*given), given


def check_variance_is_a_spread(variance: Variance) -> None:
    """0 to 1, for each number or for all; nothing is written."""
    found, (x0_hat, x_t, _) = _spread(variance)
    assert found.shape in (x0_hat.shape, torch.Size()), f"shape {tuple(found.shape)}"
    assert bool(((found >= 0) & (found <= 1)).all()), "outside 0 to 1"
    z = noised(torch.float32)
    assert torch.equal(x0_hat, z.x0 + 0.1) and torch.equal(x_t, z.x_t), "it writes into its inputs"


def check_variance_counts_each_caption_alone(variance: Variance) -> None:
    """A caption's spread depends neither on the rest of the batch nor on its place."""
    found, (x0_hat, x_t, t) = _spread(variance)
    if found.ndim:
        assert_close(variance(x0_hat[SOME], x_t[SOME], t[SOME]), found[SOME], rtol=1e-5, atol=1e-6)


def check_variance_learns_or_is_fixed(variance: Variance) -> None:
    """Gradients reach every trainable weight, if it has any; else its output has none."""
    found, _ = _spread(variance)
    weights = list(variance.parameters()) if isinstance(variance, nn.Module) else []
    assert found.requires_grad == bool(weights), "a gradient without weights, or the reverse"
    assert all(g is not None for g in gradients(found, weights)), "a weight has no gradient"


# ------------------------------------------------------------------------------------- timesteps

MANY = 20_000


def check_timesteps_stay_inside(timesteps: Timesteps) -> None:
    """B times in (0, 1], where 1 is pure noise, and B weights, finite and not negative."""
    for size in (1, 7, MANY):
        t, weight = timesteps(size, rng())
        assert t.shape == weight.shape == (size,), f"{size} asked for, {tuple(t.shape)} given"
        assert bool(((t > 0) & (t <= 1)).all()), "a time outside (0, 1]"
        assert bool((weight.isfinite() & (weight >= 0)).all()), "a weight that is no weight"


def check_timesteps_repeat(timesteps: Timesteps) -> None:
    """The same generator gives the same draw, another one another."""
    (first, _), (again, _) = timesteps(64, rng(5)), timesteps(64, rng(5))
    assert torch.equal(first, again), "the draw comes from elsewhere than rng"
    assert not torch.equal(first, timesteps(64, rng(6))[0]), "the draw ignores rng"


def check_timesteps_weigh_one(timesteps: Timesteps) -> None:
    """The mean weight is 1 to 5 %, so that the choice does not scale the learning rate."""
    _, weight = timesteps(MANY, rng())
    assert_close(weight.mean(), weight.new_tensor(1.0), rtol=0, atol=0.05)


def check_timesteps_weigh_fairly(timesteps: Timesteps) -> None:
    """Weighted means over t are those over a uniform t, so that only the variance changes.

    mean(w t) = 1/2 and mean(w (1 - cos 2 pi t)) = 1, over 2,000 batches of 16, to 5 % and 8 %,
    while it is told of losses that are ten times as large at high noise.
    One whose density is meant as a weighting breaks this by design: waive it and say so.
    """
    draw, drawn = rng(), []
    for _ in range(2000):
        drawn.append(timesteps(16, draw))
        t = drawn[-1][0]
        timesteps.observe(t, torch.where(t > 0.5, 10.0, 1.0))
    t, weight = (torch.cat(it) for it in zip(*drawn, strict=True))
    level, wave = (weight * t).mean(), (weight * (1 - torch.cos(2 * torch.pi * t))).mean()
    assert abs(float(level) - 0.5) < 0.025, f"the mean of w t is {float(level):.3f}, not 0.5"
    assert abs(float(wave) - 1) < 0.08, f"the middle counts {float(wave):.2f} times"


def check_timesteps_bear_losses(timesteps: Timesteps) -> None:
    """After many losses of any size, none and huge ones too, it draws as lawfully as before."""
    for scale in (1.0, 0.0, 1e-6, 1e6):
        t, _ = timesteps(MANY, rng())
        timesteps.observe(t, scale * torch.rand(MANY, generator=rng()))
        check_timesteps_stay_inside(timesteps)
        check_timesteps_weigh_one(timesteps)


# ---------------------------------------------------------------------------------------- target


def check_target_inverts(target: Target) -> None:
    """decode undoes encode at every noise level from 0.02 to 0.98, in float64 to 1e-9."""
    z = noised()
    y = target.encode(z, quarter_circle)
    assert y.shape == z.x0.shape
    x0 = target.decode(y, z.x_t, z.t, quarter_circle)
    assert_close(x0, z.x0, rtol=0, atol=1e-9)


def check_target_counts_each_caption_alone(target: Target) -> None:
    """A caption's answer, and what it implies, do not depend on the rest of the batch."""
    z = noised()
    part = replace(z, x0=z.x0[7:9], eps=z.eps[7:9], x_t=z.x_t[7:9], t=z.t[7:9])
    y = target.encode(part, quarter_circle)
    assert_close(y, target.encode(z, quarter_circle)[7:9], rtol=0, atol=1e-12)
    said = torch.randn(z.x0.shape, generator=rng(3), dtype=z.x0.dtype)
    whole = target.decode(said, z.x_t, z.t, quarter_circle)
    alone = target.decode(said[7:9], part.x_t, part.t, quarter_circle)
    assert_close(alone, whole[7:9], rtol=0, atol=1e-12)


def check_target_listens(target: Target) -> None:
    """Another answer implies another x0, and a gradient reaches the answer."""
    z = noised()
    y = target.encode(z, quarter_circle).clone().requires_grad_()
    (found,) = gradients(target.decode(y, z.x_t, z.t, quarter_circle), [y])
    assert found is not None and bool((found != 0).any((1, 2)).all()), "the answer is ignored"


def check_target_writes_nothing(target: Target) -> None:
    """What it is given stands as before."""
    z = noised()
    before = deepcopy(z)
    y = target.encode(z, quarter_circle).clone()
    said = y.clone()
    target.decode(said, z.x_t, z.t, quarter_circle)
    for name in ("x0", "eps", "x_t", "t"):
        assert torch.equal(getattr(z, name), getattr(before, name)), f"it writes into {name}"
    assert torch.equal(said, y), "it writes into the answer"


# ------------------------------------------------------------------------------------- embedding


def _trainable(embedding: Embedding) -> list[nn.Parameter]:
    assert isinstance(embedding, nn.Module), "an embedding is an nn.Module"
    return [weight for weight in embedding.parameters() if weight.requires_grad]


def check_embedding_agrees_with_its_table(embedding: Embedding) -> None:
    """`table` V E holds the vector that `__call__` gives every word; `logits` has V scores."""
    ids = batch().ids
    x, table = embedding(ids), embedding.table()
    assert table.shape == (DIMS.vocab, DIMS.width), f"table is {tuple(table.shape)}, not V E"
    assert torch.equal(x, table[ids]), "table()[ids] is not embedding(ids)"
    assert embedding.logits(x).shape == (*ids.shape, DIMS.vocab), "logits are not B L V"


def check_embedding_tells_words_apart(embedding: Embedding) -> None:
    """No two words share a vector; where all are equally long, each scores highest for itself."""
    table = embedding.table().detach().double()
    apart = torch.cdist(table, table) + torch.eye(len(table)) * 1e9
    assert float(apart.min()) > 1e-3, "two words have the same vector"
    norms = table.norm(dim=1)
    if float(norms.max() - norms.min()) < 1e-4 * float(norms.mean()):
        best = embedding.logits(embedding.table()[None]).argmax(-1)[0]
        assert torch.equal(best, torch.arange(len(table))), "a word scores below another for itself"


def check_embedding_has_unit_variance(embedding: Embedding) -> None:
    """The mean square of all coordinates lies in 0.5 to 2, as the schedules take for granted."""
    square = float(embedding.table().detach().square().mean())
    assert 0.5 < square < 2, f"mean square {square:.3g}"


def check_embedding_learns_or_is_frozen(embedding: Embedding) -> None:
    """Gradients reach every trainable weight, through the vectors and through the scores."""
    weights = _trainable(embedding)
    x = torch.randn(1, 4, DIMS.width, generator=rng())
    for out in (embedding(torch.arange(DIMS.vocab)[None]), embedding.logits(x)):
        if weights:
            found = gradients(out, weights)
            assert all(g is not None and bool(g.any()) for g in found), "a weight has no gradient"
        else:
            assert not out.requires_grad, "nothing is trainable, yet its output has a gradient"


# ------------------------------------------------------------------------------------------ loss


def check_loss_is_one_number_a_caption(loss: Loss) -> None:
    """-> B finite numbers; `weight` is not negative."""
    value = loss(guess())
    assert value.shape == (len(LENGTHS),), f"shape {tuple(value.shape)}, not B"
    assert bool(value.isfinite().all()), f"not finite: {value.tolist()}"
    assert loss.weight >= 0, f"weight {loss.weight}"


def check_loss_prefers_the_truth(loss: Loss) -> None:
    """For no caption does it cost more to say the truth than to say noise."""
    z = guess()
    truth, noise = loss(saying(z, z.wanted)), loss(z)
    assert bool((truth <= noise).all()), f"truth costs {truth.tolist()}, noise {noise.tolist()}"


def check_loss_is_never_negative(loss: Loss) -> None:
    """Errors, nats and divergences are at least 0, at every noise level and for any answer."""
    for t in (0.001, 0.3, 0.999):
        z = guess()
        z = replace(z, noised=replace(z.noised, t=torch.full_like(z.noised.t, t)))
        for said in (z.got, z.wanted, 100 * z.got):
            value = loss(saying(z, said))
            assert bool((value >= 0).all()), f"at t = {t} it is {value.tolist()}"


def check_loss_is_nothing_for_the_truth(loss: Loss) -> None:
    """Who says the truth pays nothing.

    Cross-entropies break this by design, for a word's score is never certain: waive it and say so.
    """
    z = guess()
    value = loss(saying(z, z.wanted))
    assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-6)


def check_loss_is_the_divergence_of_a_step(loss: Loss) -> None:
    """One that provides `vlb` is T KL(q(x_s | x_t, x0) || p(x_s | x_t)), with s = t - 1 / T.

    `steps` is its T. As torch.distributions has it for the two Gaussians, at three spreads, in
    float64 to 1e-6; at the first step, t = 1 / T, it is T times -log p(words | x0_hat).
    """
    if "vlb" not in getattr(loss, "provides", ()):
        return
    z, steps = _exact(guess()), _steps(loss)
    t = torch.tensor([1, steps // 2 + 1, steps]).double() / steps
    later = t.clamp(min=2 / steps)  # the first caption's, which has no such step, is not used
    now, then = (_ending_early(time).over(z.got) for time in (later, later - 1 / steps))
    x_t = now.alpha * z.noised.x0 + now.sigma * z.noised.eps
    for spread in (0.0, 0.4, 1.0):
        q = step_back(z.noised.x0, x_t, now, then)
        p = step_back(z.got, x_t, now, then, spread)
        found = _at(z, x_t, t, z.got, spread)
        wanted = _per_token(kl_divergence(q, p).sum(-1), z.mask)
        wanted = torch.where(t < 1.5 / steps, -_log_words(found), wanted)
        assert_close(loss(found), steps * wanted, rtol=1e-6, atol=1e-9)


def check_loss_sums_to_the_bound(loss: Loss) -> None:
    """One that provides `vlb`: its T terms and the prior are the bound on -log p(words).

    That is E[log q(x_1 ... x_T | x0) - log p(x_T ... x_1, words)], here over 600 noisings, drawn
    step by step; the mean difference lies within 5 standard errors.
    """
    if "vlb" not in getattr(loss, "provides", ()):
        return
    z, steps, draw = _exact(_rows(guess(), [0, 1, 2] * 200)), _steps(loss), rng()
    x, then = z.noised.x0, Level(*torch.tensor([1.0, 0.0]).double())
    terms, bound = Prior()(replace(z, schedule=_ending_early)), torch.zeros(len(x)).double()
    for k in range(1, steps + 1):
        t = torch.full((len(x),), k / steps, dtype=torch.float64)
        now = _ending_early(t[0])
        before, x, log_q = _noisier(x, then, now, draw)
        found = _at(z, x, t, (z.noised.x0 + x) / 2, 0.4)  # any network will do
        terms = terms + loss(found) / steps
        log_p = _log_words(found)
        if k > 1:
            back = step_back(found.x0_hat, x, now, then, 0.4).log_prob(before)
            log_p = _per_token(back.sum(-1), z.mask)
        bound, then = bound + _per_token(log_q, z.mask) - log_p, now
    bound = bound - _per_token(Normal(0.0, 1.0).log_prob(x).sum(-1), z.mask)
    _must_agree_on_average(terms.detach(), bound.detach())


def _must_agree_on_average(terms: Tensor, bound: Tensor) -> None:
    apart = terms - bound
    error = float(apart.std()) / len(apart) ** 0.5
    assert abs(float(apart.mean())) < 5 * error, (
        f"terms and prior sum to {float(terms.mean()):.3f} nats, but the bound is "
        f"{float(bound.mean()):.3f}, give or take {error:.3f}"
    )


def _noisier(x: Tensor, then: Level, now: Level, draw: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_s, the x_t drawn from it, and log q(x_t | x_s) B L."""
    kept = now.alpha / then.alpha
    forward = Normal(kept * x, (1 - kept.square()).sqrt())
    drawn = forward.mean + forward.stddev * torch.randn(x.shape, generator=draw).double()
    return x, drawn, forward.log_prob(drawn).sum(-1)


def _steps(loss: Loss) -> int:
    """The T of one that provides `vlb`."""
    steps = getattr(loss, "steps", None)
    assert isinstance(steps, int) and steps > 1, "it provides vlb, but has no `steps` above 1"
    return steps


def _ending_early(t: Tensor) -> Level:
    """A schedule that ends before pure noise, so that the prior counts."""
    return quarter_circle(0.9 * t)


def _exact(z: Guess) -> Guess:
    """The guess in float64."""
    corrupt = {n: getattr(z.noised, n).double() for n in ("x0", "eps", "x_t", "t")}
    said = {n: getattr(z, n).double() for n in ("wanted", "got", "x0_hat")}
    embedding = deepcopy(z.embedding).double()  # type: ignore[attr-defined]
    return replace(z, **said, noised=replace(z.noised, **corrupt), embedding=embedding)


def _at(z: Guess, x_t: Tensor, t: Tensor, x0_hat: Tensor, spread: float) -> Guess:
    """The guess of a network that makes x0_hat of this x_t."""
    corrupt = replace(z.noised, x_t=x_t, t=t)
    told = replace(saying(z, x0_hat), noised=corrupt, schedule=_ending_early)
    return replace(told, spread=torch.tensor(spread, dtype=torch.float64))


def _per_token(nats: Tensor, mask: Tensor) -> Tensor:
    """B L -> B: the mean over the scored positions."""
    return (nats * mask).sum(1) / mask.sum(1)


def _log_words(z: Guess) -> Tensor:
    """log p(words | x0_hat) per token. -> B."""
    scores = F.log_softmax(z.embedding.logits(z.x0_hat), -1)
    return _per_token(scores.gather(-1, z.batch.ids[..., None])[..., 0], z.mask)


def check_loss_ignores_masked_positions(loss: Loss) -> None:
    """What stands where `mask` is False changes nothing."""
    z = guess()
    hidden = ~z.mask
    junk = 100 * torch.randn(z.got.shape, generator=rng(7))

    def spoil(x: Tensor) -> Tensor:
        return torch.where(hidden[..., None], junk, x)

    corrupt = replace(z.noised, x0=spoil(z.noised.x0), x_t=spoil(z.noised.x_t))
    other = replace(
        saying(z, spoil(z.got)),
        wanted=spoil(z.wanted),
        noised=corrupt,
        batch=replace(z.batch, ids=z.batch.ids.masked_fill(hidden, DIMS.vocab - 1)),
    )
    assert_close(loss(other), loss(z), rtol=1e-6, atol=1e-6)


def check_loss_counts_each_caption_alone(loss: Loss) -> None:
    """A caption's loss does not depend on the rest of the batch, nor on its place in it."""
    z = guess()
    assert_close(loss(_rows(z, SOME)), loss(z)[SOME], rtol=1e-6, atol=1e-6)


def check_loss_teaches(loss: Loss) -> None:
    """Its gradient reaches what the network said, or the embedding."""
    z = guess()
    z = replace(z, noised=replace(z.noised, x0=z.embedding(z.batch.ids)))
    said = z.got.clone().requires_grad_()
    inputs = [said, *_trainable(z.embedding)]
    found = gradients(loss(saying(z, said)), inputs)
    assert any(g is not None and bool(g.any()) for g in found), "there is no gradient"


def _rows(z: Guess, rows: list[int]) -> Guess:
    """The guess of some of its captions, in another order or several times."""
    said = {n: getattr(z, n)[rows] for n in ("mask", "wanted", "got", "x0_hat")}
    corrupt = {n: getattr(z.noised, n)[rows] for n in ("x0", "eps", "x_t", "t")}
    given = {n: getattr(z.batch, n)[rows] for n in ("ids", "mask", "features", "text")}
    references = [z.batch.references[i] for i in rows]
    batch = replace(z.batch, **given, references=references)
    condition = Condition(features=batch.features, keep=z.condition.keep[rows])
    fewer = replace(z, **said, noised=replace(z.noised, **corrupt), batch=batch)
    return replace(fewer, condition=condition, think=lambda x_t, t: said["got"])
