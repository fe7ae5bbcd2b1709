"""How time and image are written into the stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cdlm.network import Network
from cdlm.parts.conditioning import (
    CrossAttention,
    ExtraToken,
    FeatureAdd,
    FeatureElementwise,
    FeatureNorm,
    ImageTokens,
    TextToken,
    TimeAdd,
    TimeNorm,
    TimeToken,
)
from cdlm.parts.denoisers.distilbert import DistilBert
from cdlm.parts.denoisers.linear import Linear
from cdlm.parts.denoisers.modern import Modern
from cdlm.parts.denoisers.transformer import Transformer
from cdlm.protocols import Conditioning, Denoiser
from cdlm.records import Stream
from cdlm.testing.examples import DIMS, B, condition, mask, rng, stir, stream


def blank() -> Stream:
    return replace(stream(), time=None, context=None)


def test_time_is_the_same_at_every_position_and_another_at_every_t() -> None:
    mode, before = TimeAdd(dims=DIMS), blank()
    added = (mode(before, condition()).h - before.h).detach()
    assert_close(added, added[:, :1].expand_as(added), rtol=0, atol=1e-5)
    gaps = torch.cdist(added[:, 0], added[:, 0])
    assert float((gaps + torch.eye(B)).min()) > 1e-3


def test_close_times_are_told_apart() -> None:
    """The fastest wave turns by one radian in 1 / 1000 of t."""
    mode = TimeAdd(dims=DIMS)
    t = torch.tensor([0.500, 0.501, 0.502])
    added = (mode(replace(blank(), t=t), condition()).h - blank().h).detach()
    assert float((added[0, 0] - added[1, 0]).norm()) > 0.01


def test_the_image_is_added_alike_everywhere_whatever_its_scale() -> None:
    mode, before, given = FeatureAdd(dims=DIMS), blank(), condition()
    added = mode(before, given).h - before.h
    assert_close(added, added[:, :1].expand_as(added), rtol=0, atol=1e-5)
    louder = mode(before, replace(given, features=1000 * given.features))
    assert_close(louder.h, before.h + added, rtol=1e-3, atol=1e-3)


def test_extra_tokens_stand_behind_the_caption_and_are_seen() -> None:
    after = ExtraToken(dims=DIMS)(blank(), condition())
    assert after.text == slice(0, DIMS.length)
    assert bool(after.mask[:, DIMS.length :].all())
    plain = ExtraToken(segment=False, dims=DIMS)(blank(), condition())
    assert torch.equal(plain.h[:, : DIMS.length], blank().h)


def test_segments_mark_what_is_text_and_what_is_image() -> None:
    mode = ExtraToken(dims=DIMS)
    assert mode.segment is not None
    with torch.no_grad():
        mode.segment[0], mode.segment[1] = 100.0, -100.0
    h = mode(blank(), condition()).h
    assert bool((h[:, : DIMS.length] > 50).all()) and bool((h[:, DIMS.length :] < -50).all())


def test_the_projection_is_linear_unless_it_has_an_inner_layer() -> None:
    def bend(inner: int) -> float:
        """How far the projection is from a straight line through three points."""
        project = ImageTokens(inner=inner, dims=DIMS).project
        x = torch.randn(1, DIMS.image_width)
        with torch.no_grad():
            return float((project(2 * x) - 2 * project(x) + project(0 * x)).abs().max())

    assert bend(0) < 1e-5 < 1e-3 < bend(32)


def test_a_withheld_image_is_a_vector_that_is_learned() -> None:
    mode = ExtraToken(segment=False, dims=DIMS)
    stir(mode)
    out = mode(blank(), condition(keep=False)).h[:, DIMS.length :]
    assert_close(out, mode.image.withheld.detach().expand_as(out))


def test_the_time_token_stands_alone_behind_the_rest() -> None:
    after = TimeToken(dims=DIMS)(blank(), condition())
    assert torch.equal(after.h[:, :-1], blank().h) and bool(after.mask[:, -1].all())
    assert float(torch.pdist(after.h[:, -1].detach()).min()) > 1e-3


def test_vectors_for_the_norms_add_up() -> None:
    """Time and image in one chain: adaLN of both."""
    time, image = TimeNorm(dims=DIMS), FeatureNorm(dims=DIMS)
    one, two = (mode(blank(), condition()).time for mode in (time, image))
    both = image(time(blank(), condition()), condition()).time
    assert one is not None and two is not None and both is not None
    assert_close(both, one + two)


def test_contexts_stand_behind_each_other() -> None:
    mode = CrossAttention(dims=DIMS)
    once = mode(blank(), condition())
    twice = mode(once, condition()).context
    assert once.context is not None and twice is not None
    assert_close(twice, torch.cat([once.context] * 2, 1))


def test_elementwise_gives_each_position_its_own_and_leaves_extra_tokens_alone() -> None:
    mode, before = FeatureElementwise(dims=DIMS), replace(stream(1, 1), time=None, context=None)
    added = (mode(before, condition()).h - before.h).detach()
    assert not bool(added[:, [0, -1]].any())
    assert float(torch.pdist(added[0, 1:-1]).min()) > 1e-3


def test_the_caption_s_text_is_dropped_in_training_and_hidden_when_sampling() -> None:
    hidden, image = (TextToken(sampling=it, dims=DIMS) for it in ("hidden", "image"))
    without = replace(condition(), text=None)
    assert not bool(hidden.eval()(blank(), without).mask[:, -1].any())
    stands = image.eval()(blank(), without)
    as_text = image(blank(), replace(condition(), text=condition().features[:, :1]))
    assert bool(stands.mask[:, -1].all()) and torch.equal(stands.h, as_text.h)
    seen = torch.stack(
        [hidden.train()(blank(), condition()).mask[:, -1] for _ in range(200)]
    ).float()
    assert 0.4 < float(seen.mean()) < 0.6
    always = TextToken(drop=0.0, dims=DIMS).train()
    assert bool(always(blank(), condition()).mask[:, -1].all())


# -------------------------------------------------------------------------- through a whole network

SIZE = {"layers": 2, "heads": 2, "dropout": 0.0}
X_T = torch.randn(B, DIMS.length, DIMS.width, generator=rng(5))
T = torch.tensor([0.2, 0.5, 0.9])


def network(
    modes: Sequence[Conditioning], reader: Callable[..., Denoiser], **size: object
) -> Network:
    """A network around these modes, every weight off its starting point, in eval mode."""
    written = frozenset[str]().union(*(mode.writes for mode in modes))
    seen = DIMS.length + sum(mode.extra for mode in modes)
    dims = replace(DIMS, written=written, seen=seen)
    part = Network(modes, reader(**size, dims=dims), dims)
    stir(part)
    return part.eval()


def heard(mode: Conditioning, reader: Callable[..., Denoiser], **size: object) -> Tensor:
    """At which of the captions' own positions another time changes what is said."""
    whole = network([mode], reader, **size)
    one, two = (whole(X_T, t, condition(), mask()) for t in (T, T + 0.1))
    return ((one - two).abs().amax(-1) > 1e-5)[mask()]


@pytest.mark.parametrize(
    ("mode", "reader"),
    [*product([TimeAdd, TimeToken], [DistilBert, Transformer, Modern]), (TimeNorm, Modern)],
)
def test_the_time_is_heard_at_every_position(
    mode: Callable[..., Conditioning], reader: Callable[..., Denoiser]
) -> None:
    assert bool(heard(mode(dims=DIMS), reader, **SIZE).all())


def test_a_linear_map_hears_the_time_only_where_it_is_added() -> None:
    assert bool(heard(TimeAdd(dims=DIMS), Linear).all())
    assert not bool(heard(TimeToken(dims=DIMS), Linear).any())


def every_mode() -> list[Conditioning]:
    """All ways at once, in one chain."""
    kinds = (
        TimeAdd, FeatureAdd, FeatureElementwise, ExtraToken, TimeToken, TimeNorm, FeatureNorm,
        CrossAttention,
    )  # fmt: skip
    return [*(kind(dims=DIMS) for kind in kinds), TextToken(sampling="image", dims=DIMS)]


@pytest.mark.parametrize("training", [True, False])
def test_a_withheld_image_leaves_no_trace_in_what_is_said(training: bool) -> None:
    """Classifier-free guidance compares with this: not one bit of image or caption is in it."""
    whole = network(every_mode(), Modern, **SIZE).train(training)

    def said(keep: bool, seed: int) -> Tensor:
        torch.manual_seed(0)  # of what `text_token` drops in training
        given = condition(keep=keep, seed=seed)
        return whole(X_T, T, given if training else replace(given, text=None), mask()).detach()

    assert torch.equal(said(False, 1), said(False, 2))
    assert float((said(True, 1) - said(True, 2)).abs().amax((1, 2)).min()) > 1e-3
