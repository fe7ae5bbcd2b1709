"""Training: a step comes from (seed, step) alone, so a resumed run is the same run, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from cdlm.compose import Parts
from cdlm.errors import CdlmError
from cdlm.gaussian import corrupt
from cdlm.network import withhold
from cdlm.parts.denoisers.transformer import Transformer
from cdlm.parts.embeddings import Learned
from cdlm.parts.guidance import Plain, Scale
from cdlm.parts.lengths import Histogram
from cdlm.parts.losses import Mse, Rounding
from cdlm.parts.timesteps import Importance
from cdlm.recipe import TrainTable
from cdlm.records import Event, Guess
from cdlm.sample import captions
from cdlm.testing.examples import CAPTIONS, DIMS, batch, rng
from cdlm.testing.whole import captioner, data, network, plan, trained
from cdlm.train import (
    Learner,
    learner,
    pace,
    restore,
    snapshot,
    train,
)

PLAN = plan(steps=12, batch=2, accumulate=2, ema=0.9, warmup=3, checkpoint_every=5)


def restless() -> Parts:
    """A captioner in which all that can vary does: dropout, withheld images, counted lengths."""
    torch.manual_seed(0)
    return captioner(
        network=network(denoiser=Transformer(layers=1, heads=2, dropout=0.2, dims=DIMS)),
        guidance=Scale(drop=0.3),
        length=Histogram(dims=DIMS),
    )


def watchful() -> Parts:
    """A restless one whose noise levels follow the losses that it has seen."""
    return replace(restless(), timesteps=Importance(bins=2, history=2))


def copied(tensors: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {part: {n: v.clone() for n, v in named.items()} for part, named in tensors.items()}


def run(
    parts: Parts, work: Learner, seed: int = 0, first: int = 0, plan: TrainTable = PLAN
) -> Iterator[Event]:
    return train(parts, work, data(parts), plan, seed, first)


def same(one: dict[str, dict[str, Tensor]], two: dict[str, dict[str, Tensor]]) -> None:
    assert one.keys() == two.keys()
    for part, named in one.items():
        assert named.keys() == two[part].keys()
        for name, value in named.items():
            assert torch.equal(value, two[part][name]), name


# ------------------------------------------------------------------------- captions not trained on


def test_looking_at_unseen_captions_changes_nothing() -> None:
    """Not even the noise levels that follow the losses, nor the lengths that are counted."""
    table = replace(PLAN, validate_every=4)
    plain, looking = watchful(), watchful()
    one, other = (learner(parts, table, "cpu") for parts in (plain, looking))
    list(train(plain, one, data(plain), table, 0))
    said = list(train(looking, other, data(looking), table, 0, unseen=data(looking)))
    same(snapshot(one), snapshot(other))
    steps = [event.step for event in said if event.name == "validation_loss"]
    assert steps == [4, 8, 12]
    assert other.model.training


def test_the_validation_loss_is_that_of_the_averaged_weights() -> None:
    parts = restless()
    table = plan(steps=3, batch=2, validate_every=3, ema=0.5)
    work = learner(parts, table, "cpu")
    events = list(train(parts, work, data(parts), table, 0, unseen=data(parts)))
    said = {e.name: e.value for e in events if e.name.startswith("validation_loss")}
    work.model.load_state_dict(work.average)
    work.model.eval()
    noise = rng(0)
    with torch.no_grad():
        batches = [data(parts).batch(k, 2, seed=0) for k in range(math.ceil(len(CAPTIONS) / 2))]
        losses = [parts.process.loss(parts, it, noise) for it in batches]
    terms = [float(sum(it.values())) for it in losses]
    assert said.pop("validation_loss") == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert set(said) == {f"validation_loss/{name}" for name in losses[0]}


# ---------------------------------------------------------------------------------- what it learns


def test_one_caption_is_learned_in_seconds_and_comes_back() -> None:
    parts = captioner()
    table = plan(steps=150, lr=1e-2, log_every=150)
    one = data(parts)
    rows = torch.zeros(1, dtype=torch.long)
    one = replace(one, ids=one.ids[rows], mask=one.mask[rows], owner=one.owner[rows])
    events = {e.name: e.value for e in train(parts, learner(parts, table, "cpu"), one, table, 0)}
    assert events["loss"] < 0.05
    parts.modules().eval()
    for seed in range(3):
        (said,) = captions(parts, one.features[:1], rng(seed))
        assert said.caption == CAPTIONS[0]


# --------------------------------------------------------------------------------------- repeating


def test_two_runs_of_one_seed_are_equal_and_another_seed_is_not() -> None:
    def losses(seed: int) -> tuple[list[float], dict[str, dict[str, Tensor]]]:
        parts = restless()
        work = learner(parts, PLAN, "cpu")
        values = [e.value for e in run(parts, work, seed) if e.name == "loss"]
        return values, copied(snapshot(work))

    one, two, other = losses(1), losses(1), losses(2)
    assert one[0] == two[0] and len(one[0]) == PLAN.steps
    same(one[1], two[1])
    assert not set(one[0]) & set(other[0])


def test_a_run_resumed_at_any_step_is_the_undisturbed_run() -> None:
    parts = watchful()
    work = learner(parts, PLAN, "cpu")
    states = {0: copied(snapshot(work))}
    whole: dict[int, float] = {}
    for event in run(parts, work):
        if event.name == "loss":
            whole[event.step] = event.value
        if event.name == "step":
            states[event.step] = copied(snapshot(work))
    for first in range(PLAN.steps):
        torch.rand(first + 1)  # the global generator stands elsewhere after a restart
        parts = watchful()
        again = learner(parts, PLAN, "cpu")
        restore(again, states[first])
        rest = {e.step: e.value for e in run(parts, again, first=first) if e.name == "loss"}
        assert rest == {step: value for step, value in whole.items() if step > first}
        same(snapshot(again), states[PLAN.steps])
    shares = parts.timesteps.shares()  # type: ignore[attr-defined]  # Importance's
    assert shares[0] != shares[1], "noise levels never followed the losses"


def test_without_its_snapshot_a_resumed_run_is_another() -> None:
    """The control of the test above."""
    parts = restless()
    work = learner(parts, PLAN, "cpu")
    whole = {e.step: e.value for e in run(parts, work) if e.name == "loss"}
    parts = restless()
    rest = {
        e.step: e.value
        for e in run(parts, learner(parts, PLAN, "cpu"), first=6)
        if e.name == "loss"
    }
    assert rest and all(rest[step] != whole[step] for step in rest)


def test_the_gradient_of_accumulated_batches_is_the_mean_of_theirs() -> None:
    parts = captioner()
    table = plan(steps=1, batch=2, accumulate=2)
    events = {e.name: e.value for e in run(parts, learner(parts, table, "cpu"), plan=table)}
    again = captioner()
    draws = rng()  # of (seed 0, step 0), through both batches
    losses = [
        sum(again.process.loss(again, data(again).batch(k, 2, 0), draws).values(), torch.zeros(()))
        for k in (0, 1)
    ]
    mean = torch.stack(losses).mean()
    mean.backward()
    norm = torch.stack(
        [p.grad.norm() for p in again.modules().parameters() if p.grad is not None]
    ).norm()
    assert events["loss"] == pytest.approx(mean.item(), rel=1e-5)
    assert events["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_timesteps_hear_of_every_loss_at_its_time() -> None:
    class Listening:
        def __call__(self, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            self.t = 0.1 + 0.8 * torch.rand(size, generator=rng)
            return self.t, torch.full((size,), 5.0)

        def observe(self, t: Tensor, loss: Tensor) -> None:
            self.heard = t, loss

    ear = Listening()
    parts = captioner(timesteps=ear)
    terms = parts.process.loss(parts, batch(), rng())
    t, loss = ear.heard
    assert torch.equal(t, ear.t) and not loss.requires_grad
    total = sum(value.item() for value in terms.values())
    assert total == pytest.approx(5.0 * loss.mean().item(), rel=1e-5)  # heard without the weight


# ----------------------------------------------------------------------------------- what may fail


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_step(poison: float) -> None:
    parts = restless()
    work = learner(parts, PLAN, "cpu")
    captions = data(parts)
    before = copied(snapshot(work))
    captions.features.fill_(poison)
    events = train(parts, work, captions, PLAN, seed=0)
    with pytest.raises(CdlmError, match="training stopped before step 1") as caught:
        list(events)
    assert "mse nan" in str(caught.value)
    after = snapshot(work)
    for part, named in before.items():
        for name, value in named.items():
            if not name.endswith("counts"):  # seen captions, not weights
                assert torch.equal(after[part][name], value), name


def test_what_is_frozen_does_not_move() -> None:
    parts = captioner(embedding=Learned(frozen=True, dims=DIMS), guidance=Scale(drop=0.5))
    before = {n: p.clone() for n, p in parts.modules().named_parameters()}
    trained(parts)
    moved = {n for n, p in parts.modules().named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before) - {"embedding.weight"}


# ------------------------------------------------------------------------------------- the details


def test_events_come_when_the_plan_says() -> None:
    parts = captioner()
    table = plan(steps=7, log_every=3, checkpoint_every=5)
    events = list(run(parts, learner(parts, table, "cpu"), plan=table))
    steps = {name: [e.step for e in events if e.name == name] for name in {e.name for e in events}}
    logged = [3, 6, 7]  # the last step too
    assert steps == {
        "loss": logged, "loss/mse": logged, "loss/rounding": logged, "gradient_norm": logged,
        "learning_rate": logged, "checkpoint": [5, 7], "step": [1, 2, 3, 4, 5, 6, 7],
    }  # fmt: skip


def test_the_loss_is_the_sum_of_its_weighted_terms() -> None:
    def terms(**weights: float) -> dict[str, float]:
        chosen = {
            "mse": Mse(weight=weights["mse"]),
            "rounding": Rounding(weight=weights["rounding"]),
        }
        with torch.no_grad():
            parts = captioner(loss=chosen)
            values = parts.process.loss(parts, batch(), rng())
        return {name: float(value) for name, value in values.items()}

    one, other = terms(mse=1.0, rounding=1.0), terms(mse=0.5, rounding=3.0)
    assert other["mse"] == pytest.approx(0.5 * one["mse"], rel=1e-5)
    assert other["rounding"] == pytest.approx(3 * one["rounding"], rel=1e-5)
    events = trained(captioner())
    assert events["loss"] == pytest.approx(events["loss/mse"] + events["loss/rounding"], rel=1e-5)


def test_pace_warms_up_and_falls() -> None:
    table = TrainTable(steps=100, warmup=10, decay="cosine")
    rising = [pace(step, table) for step in range(10)]
    assert rising == pytest.approx([0.1 * (i + 1) for i in range(10)])
    falling = [pace(step, table) for step in range(10, 100)]
    assert falling[0] == 1 and falling[45] == pytest.approx(0.5) and 0 < falling[-1] < 0.001
    assert all(a > b for a, b in pairwise(falling))
    straight = TrainTable(steps=100, warmup=10, decay="linear")
    assert [pace(s, straight) for s in (10, 55, 99)] == pytest.approx([1, 0.5, 1 / 90])
    partly = TrainTable(steps=100, warmup=0, decay="linear", lr_end=0.5)
    assert [pace(s, partly) for s in (0, 50)] == pytest.approx([1, 0.75])
    level = TrainTable(steps=100, warmup=0, decay="constant")
    assert {pace(s, level) for s in range(100)} == {1.0}


def test_only_the_network_multiplies_in_half_precision() -> None:
    """The loss, the rounding and all weights stay in float32."""

    class Watching(Mse):
        def __call__(self, guess: Guess) -> Tensor:
            assert not torch.is_autocast_enabled("cpu")
            assert {guess.got.dtype, guess.x0_hat.dtype, guess.wanted.dtype} == {torch.float32}
            return super().__call__(guess)

    parts = captioner(loss={"mse": Watching(), "rounding": Rounding()})
    seen = set()
    parts.network.write.register_forward_hook(lambda module, given, said: seen.add(said.dtype))
    work = learner(parts, plan(), "cpu")
    table = plan(precision="bfloat16")
    rough = [e.value for e in run(parts, work, plan=table) if e.name == "loss"]
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in work.model.state_dict().values()} == {torch.float32}
    parts = captioner()
    work = learner(parts, plan(), "cpu")
    exact = [e.value for e in run(parts, work, plan=plan()) if e.name == "loss"]
    assert rough != exact and rough == pytest.approx(exact, rel=0.02)


def test_a_compiled_network_trains_and_saves_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Traced as always, but run without a C++ compiler."""
    calls = []

    trace = partial(torch.compile, backend="eager", fullgraph=True)

    def compiled(network: nn.Module) -> nn.Module:
        calls.append(network)
        return trace(network)

    monkeypatch.setattr(torch, "compile", compiled)
    ended = []
    for switch in (False, True):
        parts, table = captioner(), plan(compile=switch)
        work = learner(parts, table, "cpu")
        list(run(parts, work, plan=table))
        ended.append(copied(snapshot(work)))
        assert calls == ([parts.network] if switch else [])
    same(*ended)


def test_corruption_is_alpha_signal_and_sigma_noise() -> None:
    parts = captioner()
    x0, eps = (torch.randn(3, 6, 8, generator=rng(seed)) for seed in (0, 1))
    z = corrupt(x0, eps, torch.tensor([0.1, 0.5, 0.9]), parts.schedule)
    for i, t in enumerate((0.1, 0.5, 0.9)):
        level = parts.schedule(torch.tensor(t))
        expected = level.alpha * x0[i] + level.sigma * eps[i]
        torch.testing.assert_close(z.x_t[i], expected)


def test_images_are_withheld_from_their_share_of_captions() -> None:
    """A tenth of 10,000, to 5 standard errors; from none at 0."""
    many = replace(batch(), features=torch.zeros(10_000, 1, 1))
    assert bool(withhold(many, 0.0, rng()).keep.all())
    share = 1 - float(withhold(many, 0.1, rng()).keep.float().mean())
    assert share == pytest.approx(0.1, abs=0.015)


def test_matrices_decay_and_vectors_do_not() -> None:
    work = learner(captioner(guidance=Plain()), plan(weight_decay=0.5), "cpu")
    decayed, kept = work.optimizer.param_groups
    assert decayed["weight_decay"] == 0.5 and kept["weight_decay"] == 0
    assert {p.ndim > 1 for p in decayed["params"]} == {True}
    assert {p.ndim > 1 for p in kept["params"]} == {False}


def test_at_zero_the_average_is_the_weights() -> None:
    parts, table = captioner(), plan(ema=0.0)
    work = learner(parts, table, "cpu")
    list(run(parts, work, plan=table))
    for name, value in work.model.state_dict().items():
        assert torch.equal(work.average[name], value), name


def test_the_average_keeps_what_the_plan_says_once_there_is_a_history() -> None:
    """mean <- keep mean + (1 - keep) weights, keep = min(ema, (1 + step) / (10 + step))."""
    parts, table = captioner(), plan(ema=0.2, steps=5)
    work = learner(parts, table, "cpu")
    mean = {name: value.clone() for name, value in work.average.items()}
    for event in run(parts, work, plan=table):
        if event.name == "step":
            keep = min(0.2, event.step / (9 + event.step))
            for name, value in work.model.state_dict().items():
                mean[name] = keep * mean[name] + (1 - keep) * value
    for name, value in mean.items():
        torch.testing.assert_close(work.average[name], value)
