"""Classifier-free guidance: its scale, its identity, and its independence of the target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cdlm.network import guided
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
    return guided(captioner().network.eval(), guidance, x, T3, condition(), mask())


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
    x, network = torch.randn(3, 6, 8, generator=rng()), captioner().network.eval()
    out = guided(network, Scale(scale=7.0), x, T3, given, mask())
    assert_close(out[1], network(x, T3, given, mask())[1], rtol=1e-4, atol=1e-5)


def test_one_pass_where_one_is_enough() -> None:
    """The prediction without the image is computed only where it counts."""
    sizes: list[int] = []

    def network(x: Tensor, t: Tensor, given: Condition, seen: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    x = torch.zeros(3, 6, 8)
    for guidance in (Plain(), Scale(scale=1.0), Scale(scale=1.5)):
        guided(network, guidance, x, T3, condition(), mask())  # type: ignore[arg-type]
    assert sizes == [3, 3, 6]


@pytest.mark.parametrize("target", [X0(), Eps(), V()], ids=["x0", "eps", "v"])
def test_guidance_and_decoding_commute(target: Target) -> None:
    """Guiding the answers is guiding the x0 that they imply, at the same t: float64, 1e-9."""
    z, rule = noised(), Scale(scale=2.5)
    with_, without = (
        torch.randn(z.x0.shape, generator=rng(seed), dtype=torch.float64) for seed in (1, 2)
    )

    def decode(y: Tensor) -> Tensor:
        return target.decode(y, z.x_t, z.t, quarter_circle)

    first = decode(rule(with_, without, z.t, mask()))
    assert_close(first, rule(decode(with_), decode(without), z.t, mask()), rtol=1e-9, atol=1e-9)
