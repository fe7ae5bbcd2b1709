"""Sampling: what a caption does and does not depend on."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cdlm.compose import Parts
from cdlm.errors import CdlmError
from cdlm.gaussian import to_allowed
from cdlm.kernels import prepare_table
from cdlm.network import Network
from cdlm.parts.conditioning import FeatureAdd
from cdlm.parts.constraints import Size
from cdlm.parts.denoisers.distilbert import DistilBert
from cdlm.parts.grids import Uniform
from cdlm.parts.guidance import Scale
from cdlm.parts.lengths import Histogram
from cdlm.parts.rounding import Clamp
from cdlm.parts.samplers import Ddim, Ddpm
from cdlm.protocols import Conditioning, Denoiser, Schedule
from cdlm.records import Condition, State, Stream
from cdlm.sample import captions, sample, to_possible, words
from cdlm.testing.examples import CAPTIONS, DIMS, LENGTHS, batch, condition, mask, rng, stir
from cdlm.testing.whole import captioner, data, network

EVERYWHERE = torch.ones(3, DIMS.length, dtype=torch.bool)


def ready(**others: object) -> Parts:
    parts = captioner(**others)
    parts.modules().eval()
    return parts


def states(parts: Parts, seed: int = 0, steps: int = 4, seen: Tensor = EVERYWHERE) -> list[State]:
    return list(sample(parts, condition(), seen, steps, rng(seed)))


def test_every_state_from_noise_to_text_is_given() -> None:
    found = states(ready(), steps=5)
    assert [state.t for state in found] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    assert found[0].x0_hat is None and all(state.x0_hat is not None for state in found[1:])
    assert {state.x.shape for state in found} == {(3, DIMS.length, DIMS.width)}
    assert not any(state.x.requires_grad for state in found)


def test_equal_seeds_give_equal_states_and_others_do_not() -> None:
    parts = ready(sampler=Ddpm(), guidance=Scale())
    one, two, other = (states(parts, seed)[-1].x for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_the_steps_asked_for_come_before_the_samplers_own() -> None:
    asked: list[int] = []

    def grid(steps: int, schedule: Schedule) -> list[tuple[float, float]]:
        asked.append(steps)
        return Uniform()(steps, schedule)

    parts = ready(sampler=Ddim(steps=3), grid=grid)
    captions(parts, condition().features, rng())
    captions(parts, condition().features, rng(), steps=1)
    assert asked == [3, 1]


def test_words_behind_the_end_do_not_change_the_caption() -> None:
    parts = ready()
    ids, seen = parts.tokenizer.encode(CAPTIONS[:3], DIMS.length)
    junk = torch.randint(0, DIMS.vocab, ids.shape, generator=rng())
    other = torch.where(seen, ids, junk)
    said = []
    for row in (ids, other):
        state = State(x=parts.embedding(row), t=0.0)
        said.append(parts.tokenizer.decode(words(parts, state, EVERYWHERE)))
    assert said == [CAPTIONS[:3], CAPTIONS[:3]]


def test_the_caption_is_read_off_the_last_estimate() -> None:
    """Not off x, in which the schedule may have left some noise at t = 0."""
    parts = ready()
    ids = batch().ids
    state = State(x=torch.zeros(3, 6, 8), t=0.0, x0_hat=parts.embedding(ids))
    assert torch.equal(words(parts, state, EVERYWHERE), ids)


def test_numbers_that_ran_away_are_no_caption() -> None:
    parts, seen = captioner(), mask()
    x = torch.zeros(3, DIMS.length, DIMS.width)
    x[~seen] = torch.nan  # nobody reads these
    assert words(parts, State(x=x, t=0.0), seen).shape == seen.shape
    x[0, 0, 0] = torch.inf
    with pytest.raises(CdlmError, match="not finite"):
        words(parts, State(x=x, t=0.0), seen)


def test_positions_outside_the_mask_are_padding() -> None:
    parts = ready()
    ids = words(parts, states(parts, seen=mask())[-1], mask())
    assert bool((ids[~mask()] == parts.tokenizer.pad).all())


def test_captions_have_lengths_that_training_had() -> None:
    """Where all captions have 4 tokens, none of the sampled has more than 4 words."""
    parts = ready(length=Histogram(dims=DIMS))
    assert isinstance(parts.length, Histogram)
    parts.length.counts[3] = 1.0
    seen = parts.length.draw(condition(), rng())
    assert seen.sum(1).tolist() == [4, 4, 4]
    said = captions(parts, condition().features, rng())
    assert all(len(it.caption.split()) <= 4 for it in said)


def test_barred_words_move_to_the_nearest_allowed_and_others_stay() -> None:
    """Three words on a line at 0, 1 and 3; the middle one is barred from the first place."""
    table = torch.tensor([[0.0], [1.0], [3.0]])
    x = torch.tensor([[[1.2], [1.2]], [[2.1], [2.1]], [[-1.0], [-1.0]]])
    barred = torch.tensor([[False, True, False], [False, False, False]])
    moved = to_allowed(x, barred, prepare_table(table))
    assert moved[..., 0].tolist() == [pytest.approx(it) for it in ([0, 1.2], [2.1, 2.1], [-1, -1])]
    only = to_allowed(x, torch.tensor([[True, True, False], [False] * 3]), prepare_table(table))
    assert only[:, 0, 0].tolist() == [3, 3, 3] and torch.equal(only[:, 1], x[:, 1])


def test_a_length_at_which_no_caption_may_end_becomes_the_nearest_that_can() -> None:
    """With 2 to 4 words, captions take 3 to 5 positions with their end."""
    parts = ready(constraint=[Size(least=2, most=4)])
    drawn = torch.arange(6) <= torch.tensor([0, 1, 2, 4, 5])[:, None]
    assert to_possible(parts, drawn).sum(1).tolist() == [3, 3, 3, 5, 6]
    assert to_possible(ready(), drawn) is drawn


def test_under_clamp_every_estimate_is_a_word() -> None:
    parts = ready(rounding=Clamp())
    table = parts.embedding.table().detach()
    for state in states(parts)[1:]:
        assert state.x0_hat is not None
        gap = torch.cdist(state.x0_hat.flatten(0, 1), table).min(1).values
        assert float(gap.max()) < 1e-3


@pytest.mark.parametrize("mode", [None, FeatureAdd(dims=DIMS)], ids=["extra_token", "feature_add"])
@pytest.mark.parametrize("distilbert", [False, True], ids=["transformer", "distilbert"])
def test_padded_positions_never_leak_through_the_network(
    mode: Conditioning | None, distilbert: bool
) -> None:
    """Whatever stands there, and wherever the extra tokens are."""
    denoiser: Denoiser | None = None
    if distilbert:
        seen = DIMS.length if mode else DIMS.seen
        dims = replace(DIMS, seen=seen)
        denoiser = DistilBert(layers=1, heads=2, dims=dims)  # type: ignore[assignment]
    whole = network(mode, denoiser).eval()
    x, t, hidden = torch.randn(3, 6, 8, generator=rng()), torch.tensor([0.2, 0.5, 0.9]), ~mask()
    junk = torch.where(hidden[..., None], 10 * torch.randn(x.shape, generator=rng(1)), x)
    with torch.no_grad():
        one, two = (whole(it, t, condition(), mask()) for it in (x, junk))
    assert_close(two[mask()], one[mask()], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(two[hidden], one[hidden], atol=1e-2)  # the junk was there to be seen


def test_the_network_answers_for_the_text_wherever_it_stands() -> None:
    """Behind a token that a mode has put in front, too."""

    class Front(nn.Module):
        writes: ClassVar[set[str]] = {"tokens"}
        extra = 1

        def forward(self, stream: Stream, given: Condition) -> Stream:
            return replace(
                stream,
                h=nn.functional.pad(stream.h, (0, 0, 1, 0)),
                mask=nn.functional.pad(stream.mask, (1, 0), value=True),
                text=slice(stream.text.start + 1, stream.text.stop + 1),
            )

    class Echo(nn.Module):
        reads: ClassVar[set[str]] = {"tokens"}

        def forward(self, stream: Stream) -> Tensor:
            return stream.h

    whole = Network([Front()], Echo(), replace(DIMS, hidden=DIMS.width))
    x = torch.randn(3, DIMS.length, DIMS.width, generator=rng())
    assert torch.equal(whole(x, torch.rand(3), condition(), mask()), x)


def test_a_captions_noise_is_its_own_but_its_image_counts() -> None:
    """With other features for the first image only the first caption's state changes."""
    parts = ready()
    stir(parts.network)
    given = condition()
    other = Condition(features=given.features.clone(), keep=given.keep)
    other.features[0] *= -1
    one, two = (list(sample(parts, it, EVERYWHERE, 4, rng()))[-1].x for it in (given, other))
    assert_close(two[1:], one[1:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(two[0], one[0], atol=1e-3)


def test_lengths_of_the_examples_are_what_the_mask_says() -> None:
    assert mask().sum(1).tolist() == list(LENGTHS)
    assert data(ready()).mask.sum(1).tolist() == [len(text.split()) + 1 for text in CAPTIONS]
