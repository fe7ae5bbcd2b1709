"""Every law can fail: for each of them here stands a component that breaks it."""

from __future__ import annotations

import copy
import math
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL.Image import Image
from torch import Tensor, nn

from cdlm.errors import CdlmError
from cdlm.gaussian import Gaussian
from cdlm.objective import ProcessLoss
from cdlm.parts import grids, schedules
from cdlm.parts.conditioning import TimeAdd
from cdlm.parts.datasets.shapes.dataset import Shapes
from cdlm.parts.denoisers.transformer import Transformer
from cdlm.parts.embeddings import Learned
from cdlm.parts.guidance import Plain, Scale
from cdlm.parts.lengths import Generated, Histogram
from cdlm.parts.losses import Mse, Vlb
from cdlm.parts.metrics.common import mean
from cdlm.parts.metrics.text import ExactMatch
from cdlm.parts.rounding import Free
from cdlm.parts.samplers import Ddim, Ddpm
from cdlm.parts.selections import First
from cdlm.parts.self_conditioning import Last
from cdlm.parts.targets import X0, Eps
from cdlm.parts.timesteps import Importance, Uniform
from cdlm.parts.tokenizers import Words
from cdlm.parts.views import Crops
from cdlm.records import Drawn, Level, State
from cdlm.registry import KINDS
from cdlm.testing import laws
from cdlm.testing.examples import CAPTIONS, DIMS, IDS, quarter_circle

EVEN = grids.Uniform()
BROKEN: dict[str, dict[str, Callable[[], Any]]] = {kind: {} for kind in KINDS}


def breaks(kind: str, law: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Note a way to make a component that breaks this law."""

    def note(make: Callable[[], Any]) -> Callable[[], Any]:
        BROKEN[kind][law] = make
        return make

    return note


def like(part: Any, **others: Any) -> Any:
    """A copy of a component, some of its attributes and methods replaced."""
    members = {
        name: (lambda f: lambda self, *a, **k: f(self, *a, **k))(value)
        if callable(value)
        else value
        for name, value in others.items()
    }
    changed = type(f"Broken{type(part).__name__}", (type(part),), members)
    other = copy.deepcopy(part)
    object.__setattr__(other, "__class__", changed)
    return other


# -------------------------------------------------------------------------------------- schedule


def _levels(alpha: Callable[[Tensor], Tensor], sigma: Callable[[Tensor], Tensor]) -> Any:
    return lambda t: Level(alpha(t), sigma(t))


breaks("schedule", "preserves_variance")(lambda: _levels(lambda t: 1 - t, lambda t: t))
breaks("schedule", "loses_signal")(
    lambda: _levels(lambda t: t.clamp(0.1, 0.9), lambda t: (1 - t.clamp(0.1, 0.9) ** 2).sqrt())
)
breaks("schedule", "takes_any_shape")(
    lambda: _levels(lambda t: quarter_circle(t.flatten()).alpha, lambda t: quarter_circle(t).sigma)
)
breaks("schedule", "keeps_the_type")(lambda: lambda t: quarter_circle(t.float()))
breaks("schedule", "learns_or_is_fixed")(
    lambda: like(schedules.Learned(), forward=lambda self, t: quarter_circle(t))
)
breaks("schedule", "works_in_a_captioner")(
    lambda: _levels(lambda t: t * math.nan, lambda t: t * math.nan)
)

# --------------------------------------------------------------------------------------- process


def _process(**others: Any) -> Any:
    return like(Gaussian(), **others)


def _teaching(change: Callable[[Any, Any, Any, Any], Any]) -> Any:
    """Its loss is that of the Gaussian process, called or changed in another way."""
    return _process(loss=lambda self, *given: change(Gaussian().loss, *given))


breaks("process", "gives_a_loss")(lambda: _teaching(lambda loss, *given: {"mse": torch.zeros(())}))
breaks("process", "repeats")(
    lambda: _teaching(
        lambda loss, parts, batch, rng: {
            name: term + torch.rand(()) for name, term in loss(parts, batch, rng).items()
        }
    )
)
breaks("process", "sees_the_image")(
    lambda: _teaching(
        lambda loss, parts, batch, rng: loss(
            parts, replace(batch, features=torch.zeros_like(batch.features)), rng
        )
    )
)
breaks("process", "learns")(
    lambda: _teaching(
        lambda loss, *given: {name: 3 + 1e-9 * term for name, term in loss(*given).items()}
    )
)
breaks("process", "obeys_constraints")(
    lambda: _process(
        words=lambda self, parts, *given: Gaussian().words(replace(parts, constraint=[]), *given),
        sample=lambda self, parts, *given: Gaussian().sample(replace(parts, constraint=[]), *given),
    )
)
breaks("process", "uses_what_it_does_not_go_without")(lambda: _process(without={"grid"}))
breaks("process", "lets_all_voices_speak")(lambda: _process(provides={"ensemble"}))
breaks("process", "knows_what_it_draws")(
    lambda: _process(
        provides={"draws"},
        draw=lambda self, parts, *given: Drawn(
            ids=torch.randint(2, DIMS.vocab, (3, DIMS.length)),
            mask=torch.ones(3, DIMS.length, dtype=torch.bool),
            order=torch.arange(DIMS.length).expand(3, -1),
        ),
    )
)
breaks("process", "finds_the_best")(
    lambda: _process(
        provides={"search"},
        searches=True,
        search=lambda self, parts, asked, mask, count: (
            State(x=torch.full((3 * count, DIMS.length), 2), t=t) for t in (1.0, 0.0)
        ),
    )
)
breaks("process", "works_in_a_captioner")(
    lambda: _teaching(lambda loss, *given: {"mse": math.nan * loss(*given)["mse"]})
)


@breaks("process", "goes_from_noise_to_text")
def _stuck() -> Any:
    """It says nothing of the last step."""
    return _process(sample=lambda self, *given: list(Gaussian().sample(*given))[:-1])


# ------------------------------------------------------------------------------------- objective


def _aiming(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Any:
    """Its terms are those of the process, changed."""
    return like(
        ProcessLoss(), __call__=lambda self, *given: change(ProcessLoss.__call__(self, *given))
    )


breaks("objective", "gives_terms")(
    lambda: _aiming(lambda terms: {name: it.detach() for name, it in terms.items()})
)
breaks("objective", "repeats")(
    lambda: _aiming(lambda terms: {name: it + torch.rand(()) for name, it in terms.items()})
)
breaks("objective", "works_in_a_captioner")(
    lambda: _aiming(lambda terms: {name: math.nan * it for name, it in terms.items()})
)

# ------------------------------------------------------------------------------------- timesteps


def _draws(draw: Callable[[int, Any], tuple[Tensor, Tensor]]) -> Any:
    return like(Uniform(), __call__=lambda self, batch, rng: draw(batch, rng))


def _rand(n: int, rng: Any) -> Tensor:
    return 0.001 + 0.998 * torch.rand(n, generator=rng)


breaks("timesteps", "stay_inside")(
    lambda: _draws(lambda n, rng: (2 * _rand(n, rng), torch.ones(n)))
)
breaks("timesteps", "repeat")(lambda: _draws(lambda n, rng: (torch.rand(n), torch.ones(n))))
breaks("timesteps", "weigh_one")(lambda: _draws(lambda n, rng: (_rand(n, rng), _rand(n, rng))))


def _unweighted(self: Any, n: int, rng: Any) -> tuple[Tensor, Tensor]:
    """It draws by losses and forgets to make up for it."""
    return Importance.forward(self, n, rng)[0], torch.ones(n)


breaks("timesteps", "weigh_fairly")(lambda: like(Importance(bins=4), forward=_unweighted))
breaks("timesteps", "works_in_a_captioner")(
    lambda: _draws(lambda n, rng: (_rand(n, rng), torch.full((n,), math.inf)))
)


@breaks("timesteps", "bear_losses")
def _shaken() -> Any:
    """Its weights become the last losses."""
    seen: list[Tensor] = []

    def call(self: Any, n: int, rng: Any) -> tuple[Tensor, Tensor]:
        weight = seen[-1].mean().expand(n) if seen else torch.ones(n)
        return _rand(n, rng), weight

    return like(Uniform(), __call__=call, observe=lambda self, t, loss: seen.append(loss))


# ---------------------------------------------------------------------------------------- target

breaks("target", "inverts")(lambda: like(Eps(), decode=lambda self, y, x_t, t, schedule: x_t - y))
breaks("target", "counts_each_caption_alone")(
    lambda: like(X0(), decode=lambda self, y, x_t, t, schedule: y - y.mean(0))
)
breaks("target", "listens")(lambda: like(X0(), decode=lambda self, y, x_t, t, schedule: y.detach()))
breaks("target", "writes_nothing")(
    lambda: like(X0(), decode=lambda self, y, x_t, t, schedule: y.mul_(2))
)
breaks("target", "works_in_a_captioner")(
    lambda: like(X0(), encode=lambda self, noised, schedule: noised.x0 / 0)
)

# ------------------------------------------------------------------------------------- embedding


def _learned(**others: Any) -> Any:
    torch.manual_seed(0)
    return like(Learned(dims=DIMS), **others)


def _equal_rows() -> Any:
    part = _learned()
    with torch.no_grad():
        part.weight[1] = part.weight[0]
    return part


breaks("embedding", "agrees_with_its_table")(
    lambda: _learned(forward=lambda self, ids: 2 * nn.functional.embedding(ids, self.table()))
)
breaks("embedding", "tells_words_apart")(_equal_rows)
breaks("embedding", "has_unit_variance")(lambda: _learned(table=lambda self: self.weight / 10))
breaks("embedding", "learns_or_is_frozen")(
    lambda: _learned(logits=lambda self, x: (x @ self.table().T).detach())
)
breaks("embedding", "works_in_a_captioner")(
    lambda: _learned(table=lambda self: self.weight * math.nan)
)

# ------------------------------------------------------------------------------------------ loss


def _loss(call: Callable[[Any], Tensor]) -> Any:
    return like(Mse(), __call__=lambda self, guess: call(guess))


def _square(guess: Any) -> Tensor:
    return (guess.got - guess.wanted).square().mean((1, 2))


breaks("loss", "is_one_number_a_caption")(lambda: _loss(lambda guess: _square(guess).mean()))
breaks("loss", "prefers_the_truth")(lambda: _loss(lambda guess: -_square(guess)))
breaks("loss", "is_never_negative")(lambda: _loss(lambda guess: _square(guess) - 1))
breaks("loss", "is_nothing_for_the_truth")(lambda: _loss(lambda guess: _square(guess) + 1))
breaks("loss", "ignores_masked_positions")(lambda: _loss(_square))
breaks("loss", "counts_each_caption_alone")(
    lambda: _loss(lambda guess: _square(guess) * torch.arange(len(guess.got)))
)
breaks("loss", "teaches")(lambda: _loss(lambda guess: _square(guess).detach()))
breaks("loss", "works_in_a_captioner")(lambda: _loss(lambda guess: _square(guess) / 0))


def _bound(change: Callable[[Any, Tensor], Tensor]) -> Any:
    whole = Vlb(steps=10)
    return like(whole, __call__=lambda self, guess: change(guess, whole(guess)))


breaks("loss", "is_the_divergence_of_a_step")(  # it takes the variance for the posterior's
    lambda: _bound(lambda guess, _: Vlb(steps=10)(replace(guess, spread=torch.zeros(()))))
)
breaks("loss", "sums_to_the_bound")(  # it gives one term, not their number times it
    lambda: _bound(lambda guess, nats: nats / 10)
)

# ---------------------------------------------------------------------------------- conditioning


def _time(forward: Callable[[Any, Any], Any], **others: Any) -> Any:
    """A mode that does what `forward` does with the stream and the condition."""
    return like(
        TimeAdd(dims=DIMS), forward=lambda self, stream, given: forward(stream, given), **others
    )


def _image(given: Any) -> Tensor:
    return given.features[:, :1, : DIMS.hidden].sum(-1, keepdim=True)


def _inplace(stream: Any, given: Any) -> Any:
    stream.h.add_(1.0)
    return replace(stream, h=stream.h.clone())


breaks("conditioning", "adds_its_tokens")(lambda: like(TimeAdd(dims=DIMS), extra=1))
breaks("conditioning", "writes_what_it_declares")(
    lambda: like(TimeAdd(dims=DIMS), writes={"tokens", "time"})
)
breaks("conditioning", "keeps_the_text_in_place")(
    lambda: _time(
        lambda s, _: replace(s, h=s.h.roll(1, 1), mask=s.mask.roll(1, 1), text=slice(0, 6)), extra=0
    )
)
breaks("conditioning", "hides_a_withheld_image")(
    lambda: _time(lambda s, given: replace(s, h=s.h + _image(given)))
)
breaks("conditioning", "tells_something")(lambda: _time(lambda s, _: replace(s, h=s.h + 1)))
breaks("conditioning", "counts_each_caption_alone")(
    lambda: _time(lambda s, _: replace(s, h=s.h + s.h.mean(0)))
)
breaks("conditioning", "teaches_every_weight")(lambda: _time(lambda s, _: replace(s, h=s.h + 1)))
breaks("conditioning", "repeats_and_writes_nothing")(lambda: _time(_inplace))
breaks("conditioning", "works_in_a_captioner")(
    lambda: _time(lambda s, _: replace(s, h=s.h * math.nan))
)

# -------------------------------------------------------------------------------------- denoiser


def _transformer(forward: Callable[..., Any] | None = None, **others: Any) -> Any:
    torch.manual_seed(0)
    part = Transformer(layers=1, heads=2, dims=DIMS)
    return like(part, **others, **({"forward": forward} if forward else {}))


def _with_idle_weight() -> Any:
    part = _transformer()
    part.idle = nn.Linear(2, 2)
    return part


def _first(h: Tensor) -> Tensor:
    """1 at the first position, 0 at all others."""
    return (torch.arange(h.shape[1]) == 0)[:, None].to(h)


def _writing(self: Any, stream: Any) -> Tensor:
    return stream.h.mul_(0.9)


breaks("denoiser", "keeps_the_shape")(
    lambda: _transformer(lambda self, s: Transformer.forward(self, s)[:, s.text])
)
breaks("denoiser", "never_leaks_padding")(
    lambda: _transformer(lambda self, s: s.h + s.h.mean(1, keepdim=True))
)
breaks("denoiser", "reads_what_it_declares")(lambda: _transformer(reads={"tokens", "time"}))
breaks("denoiser", "lets_time_through")(
    lambda: _transformer(lambda self, s: Transformer.forward(self, s) * _first(s.h))
)
breaks("denoiser", "hears_extra_tokens")(lambda: _transformer(lambda self, s: 2 * s.h))
breaks("denoiser", "counts_each_caption_alone")(
    lambda: _transformer(lambda self, s: s.h + s.h.mean(0))
)
breaks("denoiser", "teaches_every_weight")(_with_idle_weight)
breaks("denoiser", "repeats_and_writes_nothing")(lambda: _transformer(_writing))
breaks("denoiser", "works_in_a_captioner")(
    lambda: _transformer(lambda self, s: Transformer.forward(self, s) * math.nan)
)

# -------------------------------------------------------------------------------------- guidance


def _guided(rule: Callable[..., Tensor], part: Any = None) -> Any:
    return like(
        part or Plain(), forward=lambda self, with_, without, t, mask, given: rule(with_, without)
    )


breaks("guidance", "keeps_the_shape")(lambda: _guided(lambda with_, _: with_[:, 0]))
breaks("guidance", "keeps_what_both_say")(lambda: _guided(lambda with_, without: with_ + without))
breaks("guidance", "starts_as_the_plain_prediction")(
    lambda: _guided(lambda with_, without: 2 * with_ - without)
)
breaks("guidance", "hides_a_withheld_image")(
    lambda: like(Plain(), forward=lambda self, x, _, t, mask, given: x + given.features.mean())
)
breaks("guidance", "asks_for_both_if_both_count")(lambda: like(Scale(), both=lambda self, t: False))
breaks("guidance", "counts_each_caption_alone")(
    lambda: _guided(lambda with_, _: with_ - with_.mean(0))
)
breaks("guidance", "teaches_and_writes_nothing")(lambda: _guided(lambda with_, _: with_.mul_(2)))
breaks("guidance", "works_in_a_captioner")(lambda: _guided(lambda with_, _: with_ * math.nan))

# -------------------------------------------------------------------------------------- rounding


def _rounded(call: Callable[[Tensor, Any], Tensor]) -> Any:
    return like(Free(), __call__=lambda self, x, t, embedding, _: call(x, embedding))


breaks("rounding", "counts_each_caption_alone")(lambda: _rounded(lambda x, _: x - x.mean(0)))
breaks("rounding", "keeps_words")(lambda: _rounded(lambda x, _: -x))
breaks("rounding", "repeats_and_writes_nothing")(lambda: _rounded(lambda x, _: x.mul_(0.5)))
breaks("rounding", "works_in_a_captioner")(lambda: _rounded(lambda x, _: x[..., :1, :]))

# --------------------------------------------------------------------------------------- sampler


def _steps(step: Callable[..., State]) -> Any:
    return like(Ddim(), step=step)


def _late(self: Any, state: State, s: float, denoise: Any, schedule: Any, rng: Any) -> State:
    return replace(Ddim.step(self, state, s, denoise, schedule, rng), t=state.t)


def _global(self: Any, state: State, s: float, denoise: Any, schedule: Any, rng: Any) -> State:
    return Ddpm().step(state, s, denoise, schedule, torch.default_generator)


def _noiseless(self: Any, state: State, s: float, denoise: Any, schedule: Any, rng: Any) -> State:
    """Back to the estimate at every step, never re-noised: it seeks modes."""
    x0_hat = denoise(state.x, state.t).x0_hat
    return State(x=schedule(x0_hat.new_tensor(s)).alpha * x0_hat, t=s, x0_hat=x0_hat)


def _short(self: Any, state: State, s: float, denoise: Any, schedule: Any, rng: Any) -> State:
    after = Ddim.step(self, state, s, denoise, schedule, rng)
    return replace(after, x=0.9 * after.x)


breaks("sampler", "has_steps_and_order")(lambda: like(Ddim(), order=0.5))
breaks("sampler", "arrives_at_the_estimate")(lambda: _steps(_short))
breaks("sampler", "keeps_the_books")(lambda: _steps(_late))
breaks("sampler", "repeats")(lambda: _steps(_global))
breaks("sampler", "recovers_a_gaussian")(lambda: _steps(_noiseless))
breaks("sampler", "recovers_points")(lambda: _steps(_noiseless))
breaks("sampler", "converges_at_its_order")(lambda: like(Ddim(), order=2))
breaks("sampler", "ends_at_words")(lambda: _steps(_short))
breaks("sampler", "works_in_a_captioner")(lambda: _steps(lambda self, *given: None))

# ------------------------------------------------------------------------------------------ grid


def _trembling() -> Any:
    return lambda steps, schedule: [(t, s * random.random()) for t, s in EVEN(steps, schedule)]


breaks("grid", "walks_from_noise_to_text")(
    lambda: lambda steps, schedule: EVEN(steps, schedule)[::-1]
)
breaks("grid", "never_runs_behind")(
    lambda: lambda n, schedule: [(t, (s + t) / 2 if s else 0.0) for t, s in EVEN(n, schedule)]
)
breaks("grid", "repeats")(_trembling)
breaks("grid", "works_in_a_captioner")(lambda: lambda steps, schedule: [(1.0, None)])

# ------------------------------------------------------------------------------ noise and variance

breaks("noise", "is_normal")(lambda: lambda x0, rng: torch.rand(x0.shape, generator=rng))
breaks("noise", "repeats")(lambda: lambda x0, rng: torch.randn(x0.shape))
breaks("noise", "knows_nothing_of_the_caption")(
    lambda: lambda x0, rng: x0 + torch.randn(x0.shape, generator=rng)
)
breaks("noise", "works_in_a_captioner")(lambda: lambda x0, rng: x0 * math.nan)

breaks("variance", "is_a_spread")(lambda: lambda x0_hat, x_t, t: 2 * torch.ones_like(x_t))
breaks("variance", "counts_each_caption_alone")(
    lambda: lambda x0_hat, x_t, t: (x_t - x_t.mean(0)).sigmoid()
)
breaks("variance", "learns_or_is_fixed")(
    lambda: lambda x0_hat, x_t, t: torch.zeros((), requires_grad=True)
)
breaks("variance", "works_in_a_captioner")(lambda: lambda x0_hat, x_t, t: x_t[..., :0] @ x_t)

# ------------------------------------------------------------------------------ self_conditioning


def _recalling(**others: Any) -> Any:
    torch.manual_seed(0)
    return like(Last(dims=DIMS), **others)


def _idle() -> Any:
    part = _recalling()
    part.idle = nn.Linear(2, 2)
    return part


breaks("self_conditioning", "takes_zero_as_nothing")(
    lambda: _recalling(forward=lambda self, before, x_t: self.recall(x_t))
)
breaks("self_conditioning", "counts_each_caption_alone")(
    lambda: _recalling(forward=lambda self, before, x_t: self.recall(before - before.mean(0)))
)
breaks("self_conditioning", "practises_without_a_gradient")(
    lambda: _recalling(practise=lambda self, think, z, schedule, rng: think(z.x_t, z.t))
)
breaks("self_conditioning", "repeats")(
    lambda: _recalling(practise=lambda self, think, z, schedule, rng: torch.rand(z.x_t.shape))
)
breaks("self_conditioning", "teaches_every_weight")(_idle)
breaks("self_conditioning", "works_in_a_captioner")(
    lambda: _recalling(forward=lambda self, before, x_t: x_t * math.nan)
)

# ----------------------------------------------------------------------- constraint and selection


def _barring(change: Callable[[Tensor], Any]) -> Any:
    """A constraint that bars what `change` does to a table in which all is allowed."""

    def allowed(tokenizer: Any, length: int) -> Any:
        return change(torch.ones(length, len(tokenizer), dtype=torch.bool))

    return SimpleNamespace(allowed=allowed)


def _at_random(table: Tensor) -> Tensor:
    return table.index_fill(1, torch.randint(3, table.shape[1], (1,)), False)


def _padding_within(table: Tensor) -> Tensor:
    """Padding, which nobody sees, then one word: it is the first word of the caption."""
    table[:3] = False
    table[[0, 1, 2], [0, 4, 1]] = True
    return table


breaks("constraint", "says_yes_or_no_to_each_word")(lambda: _barring(lambda table: table[0]))
breaks("constraint", "leaves_a_word_everywhere")(lambda: _barring(lambda table: ~table))
breaks("constraint", "allows_a_caption")(
    lambda: _barring(lambda table: table.index_fill(1, torch.tensor([1]), False))
)
breaks("constraint", "reads_pieces_too")(
    lambda: _barring(lambda table: table if len(table) < 32 else table[:16])
)
breaks("constraint", "repeats")(lambda: _barring(_at_random))
breaks("constraint", "is_obeyed")(lambda: _barring(_padding_within))
breaks("constraint", "works_in_a_captioner")(lambda: _barring(lambda table: table[:, :2]))


def _choosing(choose: Callable[[list[list[str]], Tensor], list[int]]) -> Any:
    return like(
        First(), count=3, __call__=lambda self, texts, features, encoder: choose(texts, features)
    )


breaks("selection", "chooses_a_candidate")(lambda: _choosing(lambda texts, _: [3] * len(texts)))
breaks("selection", "ignores_the_order")(lambda: _choosing(lambda texts, _: [0] * len(texts)))
breaks("selection", "counts_each_image_alone")(
    lambda: _choosing(lambda texts, _: [len(texts) % 3] * len(texts))
)
breaks("selection", "works_in_a_captioner")(lambda: _choosing(lambda texts, _: [9] * len(texts)))

# ---------------------------------------------------------------------------------------- length


def _learns_always(self: Any, batch: Any) -> Tensor:
    self.counts += 1
    return batch.mask


breaks("length", "covers_the_caption")(
    lambda: like(Generated(dims=DIMS), mask=lambda self, batch: batch.mask & (batch.ids != 1))
)
breaks("length", "draws_positions")(
    lambda: like(Generated(dims=DIMS), draw=lambda self, given, rng: torch.rand(3, 6) < 0.5)
)
breaks("length", "draws_a_beginning")(
    lambda: like(
        Generated(dims=DIMS), draw=lambda self, given, rng: torch.arange(6).expand(3, 6) > 0
    )
)
breaks("length", "hides_a_withheld_image")(
    lambda: like(
        Generated(dims=DIMS),
        draw=lambda self, given, rng: torch.arange(6) <= given.features.sum((1, 2))[:, None] % 6,
    )
)
breaks("length", "learns_in_training_only")(lambda: like(Histogram(dims=DIMS), mask=_learns_always))
breaks("length", "works_in_a_captioner")(
    lambda: like(Generated(dims=DIMS), mask=lambda self, batch: batch.mask.fill_(0) / 0)
)

# ------------------------------------------------------------------------------------- tokenizer


def _words(**others: Any) -> Any:
    part = like(Words(), **others)
    part.fit(CAPTIONS)
    return part


def _coded(change: Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Any:
    return _words(encode=lambda self, texts, n: change(self, *Words.encode(self, texts, n)))


def _growing(self: Any, captions: Any) -> None:
    """The more often it is fitted, the further its words move."""
    self.fits = getattr(self, "fits", 0) + 1
    Words.fit(self, [*captions, *["grass"] * 9 * (self.fits - 1)])


breaks("tokenizer", "gives_captions_back")(
    lambda: _words(decode=lambda self, ids: [text.upper() for text in Words.decode(self, ids)])
)
breaks("tokenizer", "ends_and_pads")(lambda: _coded(lambda self, ids, mask: (ids, mask | True)))
breaks("tokenizer", "cuts_long_captions")(
    lambda: _coded(lambda self, ids, mask: (ids.where(mask.sum(1, True) < 4, self.pad), mask))
)
breaks("tokenizer", "stops_at_the_end")(
    lambda: _words(decode=lambda self, ids: [str(row) for row in ids.tolist()])
)
breaks("tokenizer", "reads_any_ids")(
    lambda: _words(decode=lambda self, ids: [None if 2 in row else "" for row in ids.tolist()])
)
breaks("tokenizer", "repeats")(lambda: _words(fit=_growing))
breaks("tokenizer", "survives_saving")(lambda: _words(load=lambda self, path: None))
breaks("tokenizer", "works_in_a_captioner")(
    lambda: _words(decode=lambda self, ids: [None] * len(ids))
)

# --------------------------------------------------------------------------------------- dataset


def _shapes(change: Callable[[Any, str], Any]) -> Any:
    """Small drawn scenes whose splits were changed in place."""

    def split(self: Any, name: str) -> Any:
        found = Shapes.split(self, name)
        change(found, name)
        return found

    return like(Shapes(train=6, held_out=4), split=split)


def _set(**values: Any) -> Callable[[Any, str], None]:
    return lambda split, name: vars(split).update(values)


def _counting() -> Callable[[Any, str], None]:
    calls: list[str] = []

    def change(split: Any, name: str) -> None:
        calls.append(name)
        split.fingerprint = str(len(calls))

    return change


breaks("dataset", "captions_every_image")(lambda: _shapes(_set(captions=[[" "]] * 6)))
breaks("dataset", "keeps_splits_apart")(
    lambda: _shapes(lambda split, name: split.ids.__setitem__(0, "a photo in every split"))
)
breaks("dataset", "names_its_splits")(lambda: _shapes(_set(fingerprint="the same")))
breaks("dataset", "weighs_every_image")(lambda: _shapes(_set(weights=[0.0] * 6)))
breaks("dataset", "is_judged_on_photos")(lambda: _shapes(_set(pictured=[False] * 6)))
breaks("dataset", "repeats")(lambda: _shapes(_counting()))
breaks("dataset", "gives_the_images_asked_for")(
    lambda: _shapes(
        lambda split, name: vars(split).update(images=lambda rows, f=split.images: f(sorted(rows)))
    )
)


@breaks("dataset", "refuses_unknown_splits")
def _lenient() -> Any:
    return like(Shapes(train=6, held_out=4), split=lambda self, name: Shapes.split(self, "train"))


# --------------------------------------------------------------------------------------- encoder


def _encoder(features: Callable[[], Tensor], **others: Any) -> Any:
    usual = {
        "needs": {"images"},
        "shape": lambda: (1, 4),
        "identity": lambda: {"encoder": "fixed"},
        "lookup": lambda ids: features()[[IDS.index(name) for name in ids]],
    }
    return SimpleNamespace(**(usual | others))


def _fixed() -> Tensor:
    return torch.arange(16.0).view(4, 1, 4)


breaks("encoder", "gives_its_shape")(lambda: _encoder(_fixed, shape=lambda: (4, 1)))
breaks("encoder", "repeats")(lambda: _encoder(lambda: torch.rand(4, 1, 4)))
breaks("encoder", "sees_each_image_alone")(
    lambda: _encoder(_fixed, lookup=lambda ids: _fixed()[: len(ids)])
)
breaks("encoder", "reads_captions_if_it_says_so")(
    lambda: _encoder(_fixed, provides={"texts"}, texts=lambda texts: torch.zeros(len(texts), 1, 4))
)
breaks("encoder", "knows_itself")(lambda: _encoder(_fixed, identity=dict))

# ----------------------------------------------------------------------------------------- views


def _views(look: Callable[[Image, random.Random], Sequence[Image]], **others: Any) -> Any:
    return like(Crops(count=2), __call__=lambda self, image, rng: look(image, rng), **others)


breaks("views", "gives_its_count")(lambda: _views(lambda image, rng: [image]))
breaks("views", "repeats")(
    lambda: _views(lambda image, rng: [image.rotate(random.random() * 360), image])
)
breaks("views", "knows_itself")(lambda: like(Crops(), identity=lambda self: {}))

# ---------------------------------------------------------------------------------------- metric


def _metric(call: Callable[[Any], dict[str, Any]] | None = None, **others: Any) -> Any:
    given = {"__call__": lambda self, answers: call(answers)} if call else {}
    return like(ExactMatch(), **{"tally": lambda self, answers: None, **given, **others})


breaks("metric", "gives_finite_numbers")(lambda: _metric(lambda answers: {"score": math.nan}))
breaks("metric", "ignores_the_order")(
    lambda: _metric(lambda answers: {"score": float(len(answers.captions[0]))})
)
breaks("metric", "tally_adds_up")(
    lambda: _metric(lambda answers: {"score": 0.4}, tally=lambda *_: mean({"score": [0.5] * 8}))
)
breaks("metric", "marks_each_caption")(lambda: _metric(marks=lambda self, answers: [True]))
breaks("metric", "tells_right_from_wrong")(lambda: _metric(lambda answers: {"score": 1.0}))

# --------------------------------------------------------------------------------------- launcher


class Careless:
    """Starts a process, and does one thing wrong."""

    def __init__(self, **changed: Any) -> None:
        self.changed = changed

    def start(self, command: list[str], log: Path) -> Any:
        usual: dict[str, Any] = {"cwd": None, "mode": "ab", "codes": lambda code: code}
        how = usual | self.changed
        with log.open(how["mode"]) as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=how["cwd"])
        stop = process.kill if how.get("kills") else process.terminate
        return SimpleNamespace(code=lambda: how["codes"](process.poll()), stop=stop)


breaks("launcher", "tells_the_exit_code")(lambda: Careless(codes=lambda code: code and 0))
breaks("launcher", "does_not_wait")(lambda: Careless(codes=lambda code: code or 0))
breaks("launcher", "keeps_what_is_printed")(lambda: Careless(mode="wb"))
breaks("launcher", "starts_in_the_current_folder")(lambda: Careless(cwd="/"))
breaks("launcher", "stops_gently")(lambda: Careless(kills=True))

# ----------------------------------------------------------------------------------------- tests

CASES = [(kind, law) for kind in KINDS for law in laws(kind)]


@pytest.mark.parametrize(("kind", "law"), CASES, ids=["-".join(case) for case in CASES])
def test_a_component_that_breaks_the_law_is_caught(kind: str, law: str) -> None:
    check, component = laws(kind)[law], BROKEN[kind][law]()
    whole = law == "works_in_a_captioner"  # there, whatever goes wrong may come out as it is
    others = (CdlmError, LookupError, RuntimeError, TypeError, AttributeError) if whole else ()
    with pytest.raises((AssertionError, *others)):
        check(component)
