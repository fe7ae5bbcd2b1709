"""Laws of the way back: rounding, grid, sampler, constraint, selection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from cdlm.errors import CdlmError
from cdlm.kernels import nearest_word
from cdlm.parts.tokenizers import Bpe, Words
from cdlm.protocols import (
    Constraint,
    Denoise,
    Grid,
    Rounding,
    Sampler,
    Schedule,
    Selection,
    Tokenizer,
)
from cdlm.records import State
from cdlm.sample import captions
from cdlm.testing.examples import CAPTIONS, DIMS, SOME, B, Codes, begun, quarter_circle, rng
from cdlm.testing.oracles import constant, drawn, gaussian, points
from cdlm.testing.whole import captioner

TIMES = (1.0, 0.5, 0.02)

# -------------------------------------------------------------------------------------- rounding


def _estimate() -> Tensor:
    return torch.randn(B, DIMS.length, DIMS.width, generator=rng())


def check_rounding_counts_each_caption_alone(rounding: Rounding) -> None:
    """B L E in and out, of one type; no caption depends on the rest of the batch."""
    x, embedding = _estimate(), Codes()
    nearest = partial(nearest_word, table=embedding.table())
    for t in TIMES:
        out = rounding(x, t, embedding, nearest)
        assert out.shape == x.shape and out.dtype == x.dtype, f"{out.dtype} {tuple(out.shape)}"
        assert_close(rounding(x[SOME], t, embedding, nearest), out[SOME], rtol=1e-5, atol=1e-5)


def check_rounding_keeps_words(rounding: Rounding) -> None:
    """Whoever stands on a word stays nearest to that word, at every time."""
    embedding = Codes()
    words = embedding.table()[None].detach()
    nearest = partial(nearest_word, table=words[0])
    for t in TIMES:
        out = rounding(words, t, embedding, nearest)
        found = torch.cdist(out, words).argmin(-1)[0]
        assert torch.equal(found, torch.arange(DIMS.vocab)), "it turns a word into another"


def check_rounding_repeats_and_writes_nothing(rounding: Rounding) -> None:
    """Twice the same, and its inputs stand as before."""
    x, embedding = _estimate(), Codes()
    old, table = x.clone(), embedding.table().clone()
    nearest = partial(nearest_word, table=table)
    one, two = (rounding(x, 0.3, embedding, nearest) for _ in range(2))
    assert torch.equal(one, two), "two calls differ"
    assert torch.equal(x, old), "it writes into the estimate"
    assert torch.equal(embedding.table(), table), "it writes into the embedding"


# ------------------------------------------------------------------------------------------ grid


def check_grid_walks_from_noise_to_text(grid: Grid) -> None:
    """As many (t, s) as steps; t falls strictly from 1, each s < t, the last s is 0."""
    for steps in (1, 2, 7, 50):
        pairs = grid(steps, quarter_circle)
        assert len(pairs) == steps, f"{len(pairs)} pairs for {steps} steps"
        assert pairs[0][0] == 1 and pairs[-1][1] == 0, f"from {pairs[0][0]} to {pairs[-1][1]}"
        assert all(0 <= s < t <= 1 for t, s in pairs), "a step that does not go towards text"
        times = [t for t, _ in pairs]
        assert all(t > later for t, later in pairwise(times)), "times do not fall"


def check_grid_never_runs_behind(grid: Grid) -> None:
    """No step ends at a higher noise than the next one takes it to have."""
    for steps in (2, 7, 50):
        ends = pairwise(grid(steps, quarter_circle))
        assert all(s <= t + 1e-12 for (_, s), (t, _) in ends), "x is noisier than it is told to be"


def check_grid_repeats(grid: Grid) -> None:
    """Twice the same: plain numbers."""
    one, two = (grid(9, quarter_circle) for _ in range(2))
    assert one == two, "two calls differ"
    assert all(type(time) is float for pair in one for time in pair), "not plain numbers"


# --------------------------------------------------------------------------------------- sampler

CROWD = (256, 4, 8)  # B L E: 8,192 numbers, of which a variance is known to 1.6 %


def check_sampler_has_steps_and_order(sampler: Sampler) -> None:
    """`steps` is at least 1, `order` at least 0, and both are whole numbers."""
    assert type(sampler.steps) is int and sampler.steps >= 1, f"steps = {sampler.steps}"
    assert type(sampler.order) is int and sampler.order >= 0, f"order = {sampler.order}"


def check_sampler_arrives_at_the_estimate(sampler: Sampler) -> None:
    """Where the estimate of x0 is always the same, that is where it ends; also in one step."""
    x0 = torch.randn(4, 2, 3, generator=rng(1), dtype=torch.float64)
    for steps in (1, 2, 10):
        end = drawn(sampler, constant(x0), steps, (4, 2, 3))
        assert_close(end, x0, rtol=0, atol=1e-6)


def check_sampler_keeps_the_books(sampler: Sampler) -> None:
    """The new state says its time s and its estimate; the old one stands as before."""
    x = torch.randn(4, 2, 3, generator=rng(), dtype=torch.float64)
    before = x.clone()
    after = sampler.step(State(x=x, t=1.0), 0.7, gaussian(quarter_circle), quarter_circle, rng())
    assert after.t == 0.7, f"asked for s = 0.7, the state says {after.t}"
    assert after.x0_hat is not None, "the state has no x0_hat"
    assert after.x.shape == after.x0_hat.shape == x.shape
    assert torch.equal(x, before), "it writes into the old state"


def check_sampler_repeats(sampler: Sampler) -> None:
    """All its randomness comes from rng: the same one gives the same samples."""
    oracle = gaussian(quarter_circle)
    one = drawn(sampler, oracle, 7, (4, 2, 3), seed=3)
    torch.manual_seed(1)  # would move a sampler that draws from the global generator
    assert torch.equal(one, drawn(sampler, oracle, 7, (4, 2, 3), seed=3)), "two runs differ"


def check_sampler_recovers_a_gaussian(sampler: Sampler) -> None:
    """With the ideal denoiser of N(1, I / 4), 400 steps give that mean and variance, to 5 %.

    Of order 0, by its own word, a sampler never arrives: it must miss one of them.
    """
    x = drawn(sampler, gaussian(quarter_circle, 0.5, 1.0), 400, CROWD)
    mean, variance = float(x.mean()), float(x.var())
    arrives = abs(mean - 1) < 0.05 and abs(variance - 0.25) < 0.0125
    found = f"mean {mean:.3f} and variance {variance:.3f} of 1 and 0.25"
    _as_declared(sampler, arrives, found)


def _as_declared(sampler: Sampler, arrives: bool, found: str) -> None:
    """Who declares an order above 0 arrives at the data's distribution; order 0 does not."""
    word = "never arrives at the data" if sampler.order == 0 else "arrives at the data"
    assert arrives == (sampler.order > 0), f"order {sampler.order} {word}; it gives {found}"


def check_sampler_recovers_points(sampler: Sampler) -> None:
    """With the ideal denoiser of six points, it ends at each as often as its share says.

    Chi-square of 2,000 samples, 5 degrees of freedom, below its 99.9 % point; not at order 0.
    """
    shares = torch.tensor([0.30, 0.25, 0.20, 0.10, 0.10, 0.05], dtype=torch.float64)
    places = 3 * torch.eye(6, dtype=torch.float64)
    x = drawn(sampler, points(quarter_circle, places, shares), 100, (1, 2000, 6))[0]
    counts = torch.cdist(x, places).argmin(1).bincount(minlength=6)
    chi_square = float(((counts - 2000 * shares).square() / (2000 * shares)).sum())
    wanted = [round(2000 * float(share)) for share in shares]
    _as_declared(sampler, chi_square < 20.5, f"{counts.tolist()} of {wanted}")


def check_sampler_converges_at_its_order(sampler: Sampler) -> None:
    """With the ideal denoiser of N(0, I / 4), twice the steps divide the error by 2^order.

    From t = 1 to 0.1, against the closed form. Of samplers that draw nothing, and of order 0 none.
    """
    shape, oracle, until = (1, 1, 8), gaussian(quarter_circle, 0.5), 0.1
    if sampler.order == 0 or not torch.equal(
        drawn(sampler, oracle, 4, shape, until=until),
        drawn(_Reseeded(sampler), oracle, 4, shape, until=until),
    ):
        return
    level = quarter_circle(torch.tensor(until, dtype=torch.float64))
    exact = (level.alpha.square() / 4 + level.sigma.square()).sqrt() * torch.randn(
        shape, generator=rng(), dtype=torch.float64
    )
    errors = [
        float((drawn(sampler, oracle, steps, shape, until=until) - exact).abs().max())
        for steps in (40, 80, 160)
    ]
    for rough, fine in pairwise(errors):
        found = math.log2(rough / fine)
        assert abs(found - sampler.order) < 0.3, f"it converges at order {found:.2f}"


@dataclass
class _Reseeded:
    """A sampler that gets other random numbers."""

    sampler: Sampler
    steps: int = 1
    order: int = 0

    def step(self, state: State, s: float, denoise: Denoise, schedule: Schedule, _: Any) -> State:
        return self.sampler.step(state, s, denoise, schedule, rng(99))


def check_sampler_ends_at_words(sampler: Sampler) -> None:
    """With the ideal denoiser of six points of unequal shares, every sample ends at one of them."""
    shares = torch.tensor([0.30, 0.25, 0.20, 0.10, 0.10, 0.05], dtype=torch.float64)
    places = 4 * torch.eye(6, dtype=torch.float64)
    x = drawn(sampler, points(quarter_circle, places, shares), 100, (64, 2, 6))
    distance = torch.cdist(x, places.expand(len(x), -1, -1))
    assert float(distance.min(-1).values.max()) < 0.05, "a sample ends between the points"


# ------------------------------------------------------------------------------------ constraint


def _words() -> Tokenizer:
    tokenizer = Words()
    tokenizer.fit(CAPTIONS)
    return tokenizer


def check_constraint_says_yes_or_no_to_each_word(constraint: Constraint) -> None:
    """-> L V, bool."""
    tokenizer = _words()
    allowed = constraint.allowed(tokenizer, DIMS.length)
    wanted = (DIMS.length, len(tokenizer))
    assert tuple(allowed.shape) == wanted, f"shape {tuple(allowed.shape)}, not L V = {wanted}"
    assert allowed.dtype == torch.bool, f"{allowed.dtype}, not bool"


def check_constraint_leaves_a_word_everywhere(constraint: Constraint) -> None:
    """Every place has a word that is allowed, and something is barred."""
    allowed = constraint.allowed(_words(), DIMS.length)
    assert bool(allowed.any(1).all()), "a place without any word"
    assert not bool(allowed.all()), "it bars nothing"


def check_constraint_allows_a_caption(constraint: Constraint) -> None:
    """Some caption that ends can be said: an end token with a word before it, all allowed."""
    tokenizer = _words()
    allowed = constraint.allowed(tokenizer, DIMS.length)
    plain = allowed.clone()
    plain[:, [tokenizer.pad, tokenizer.end]] = False
    fits = [
        bool(plain[:i].any(1).all()) and bool(allowed[i, tokenizer.end])
        for i in range(1, len(allowed))
    ]
    assert any(fits), "no caption that ends is allowed"


def check_constraint_reads_pieces_too(constraint: Constraint) -> None:
    """With a tokenizer of pieces, and a longer caption, it gives L V too, or says why it can't."""
    tokenizer = Bpe(vocabulary=30)
    tokenizer.fit(CAPTIONS)
    try:
        allowed = constraint.allowed(tokenizer, 32)
    except CdlmError:
        return
    assert tuple(allowed.shape) == (32, len(tokenizer)), f"shape {tuple(allowed.shape)}, not L V"
    assert bool(allowed.any(1).all()), "a place without any word"


def check_constraint_repeats(constraint: Constraint) -> None:
    """Twice the same."""
    one, two = (constraint.allowed(_words(), DIMS.length) for _ in range(2))
    assert torch.equal(one, two), "two calls differ"


def check_constraint_is_obeyed(constraint: Constraint) -> None:
    """Captions sampled under it, read back as a person has them, have allowed words only."""
    parts = captioner(constraint=[constraint])
    shape = (40, DIMS.image_tokens, DIMS.image_width)
    said = [it.caption for it in captions(parts, torch.randn(shape, generator=rng()), rng())]
    ids, mask = parts.tokenizer.encode(said, DIMS.length)
    allowed = constraint.allowed(parts.tokenizer, DIMS.length)
    for text, row, seen in zip(said, ids, mask, strict=True):
        assert bool((allowed.gather(1, row[:, None])[:, 0] | ~seen).all()), f'"{text}" is sampled'


# ------------------------------------------------------------------------------------- selection


class _Letters:
    """An encoder of captions by their letters, for candidates to be compared with features."""

    def texts(self, captions: Sequence[str]) -> Tensor:
        rows = [[text.count(chr(97 + i)) for i in range(DIMS.image_width)] for text in captions]
        return torch.tensor(rows, dtype=torch.float32)[:, None]


def _candidates(selection: Selection) -> tuple[list[list[str]], Tensor, Any]:
    """Some for each image; the selection has been shown training captions, if it asks for them."""
    count = begun(selection).count
    texts = [[CAPTIONS[(i + j) % len(CAPTIONS)] for j in range(count)] for i in range(B)]
    features = torch.randn(B, DIMS.image_tokens, DIMS.image_width, generator=rng())
    return texts, features, _Letters()


def check_selection_chooses_a_candidate(selection: Selection) -> None:
    """One position below `count` for each image; `count` is at least 1; also for empty texts."""
    assert selection.count >= 1, f"count = {selection.count}"
    texts, features, encoder = _candidates(selection)
    texts[0] = [""] * selection.count
    chosen = selection(texts, features, encoder)
    assert len(chosen) == B, f"{len(chosen)} choices for {B} images"
    assert all(type(i) is int and 0 <= i < selection.count for i in chosen), f"chosen: {chosen}"


def check_selection_ignores_the_order(selection: Selection) -> None:
    """The same text is chosen whatever the order of the candidates."""
    texts, features, encoder = _candidates(selection)
    turned = [row[::-1] for row in texts]
    one, two = (selection(rows, features, encoder) for rows in (texts, turned))
    said = [row[i] for row, i in zip(texts, one, strict=True)]
    again = [row[i] for row, i in zip(turned, two, strict=True)]
    assert said == again, f"{said}, but {again} in the other order"


def check_selection_counts_each_image_alone(selection: Selection) -> None:
    """What is chosen for an image does not depend on the others."""
    texts, features, encoder = _candidates(selection)
    chosen = selection(texts, features, encoder)
    for i in range(B):
        assert selection(texts[i : i + 1], features[i : i + 1], encoder) == chosen[i : i + 1]
