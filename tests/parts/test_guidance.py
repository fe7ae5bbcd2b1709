"""Classifier-free guidance: its scale, its identity, and its independence of the target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cdlm.compose import Parts
from cdlm.network import answer
from cdlm.parts.guidance import Plain, Scale
from cdlm.parts.targets import X0, Eps, V
from cdlm.protocols import Guidance, Target
from cdlm.records import Condition
from cdlm.testing.examples import condition, mask, noised, quarter_circle, rng
from cdlm.testing.whole import captioner

T3 = torch.tensor([0.2, 0.5, 0.9])


def said(guidance: Guidance) -> Tensor:
    """What the tiny captioner's network says under guidance."""
    x = torch.randn(3, 6, 8, generator=rng())
    return answer(quiet(guidance), x, T3, condition(), mask()).said


def quiet(guidance: Guidance) -> Parts:
    """The tiny captioner under guidance, as it is when sampling."""
    parts = captioner(guidance=guidance)
    parts.modules().eval()
    return parts


@torch.no_grad()
def test_a_scale_of_one_is_the_plain_prediction_bit_for_bit() -> None:
    assert torch.equal(said(Scale(scale=1.0)), said(Plain()))


@torch.no_grad()
def test_a_scale_of_zero_is_the_prediction_without_the_image() -> None:
    """And guidance is a straight line through both predictions."""
    plain, without, twice = said(Plain()), said(Scale(scale=0.0)), said(Scale(scale=2.0))
    withheld = condition(keep=False)
    x = torch.randn(3, 6, 8, generator=rng())
    alone = captioner().network.eval()(x, T3, withheld, mask())
    assert_close(without, alone, rtol=1e-5, atol=1e-5)
    assert_close(twice, 2 * plain - without, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_both_branches_are_what_two_calls_would_say() -> None:
    """A caption whose image is withheld already gets the same from both."""
    given = condition()
    given = Condition(features=given.features, keep=torch.tensor([True, False, True]))
    x, parts = torch.randn(3, 6, 8, generator=rng()), quiet(Scale(scale=7.0))
    out = answer(parts, x, T3, given, mask()).said
    assert_close(out[1], parts.network(x, T3, given, mask())[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_pass_where_one_is_enough() -> None:
    """The prediction without the image is computed only where it counts."""
    sizes = []
    for guidance in (Plain(), Scale(scale=1.0), Scale(scale=1.5)):
        parts = quiet(guidance)
        parts.network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        answer(parts, torch.zeros(3, 6, 8), T3, condition(), mask())
    assert sizes == [3, 3, 6]


@pytest.mark.parametrize("target", [X0(), Eps(), V()], ids=["x0", "eps", "v"])
def test_guidance_and_decoding_commute(target: Target) -> None:
    """Guiding the answers is guiding the x0 that they imply, at the same t: float64, 1e-9."""
    z, rule = noised(), Scale(scale=2.5).eval()
    with_, without = (
        torch.randn(z.x0.shape, generator=rng(seed), dtype=torch.float64) for seed in (1, 2)
    )

    def decode(y: Tensor) -> Tensor:
        return target.decode(y, z.x_t, z.t, quarter_circle)

    def guided(with_: Tensor, without: Tensor) -> Tensor:
        return rule(with_, without, z.t, mask(), condition())

    first = decode(guided(with_, without))
    assert_close(first, guided(decode(with_), decode(without)), rtol=1e-9, atol=1e-9)
