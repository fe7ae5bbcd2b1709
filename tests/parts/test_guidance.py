"""Guidance: its scale, its identity, its independence of the target; what learns, and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cdlm.compose import Parts
from cdlm.errors import RecipeError
from cdlm.network import answer
from cdlm.parts.guidance import Classifier, Linear, Plain, Scale, Transformer
from cdlm.parts.targets import X0, Eps, V
from cdlm.protocols import Guidance, Target
from cdlm.recipe import load
from cdlm.records import Condition
from cdlm.testing.examples import DIMS, condition, mask, noised, quarter_circle, rng, stir
from cdlm.testing.whole import captioner, trained

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


@torch.no_grad()
def test_a_window_guides_within_it_alone() -> None:
    """Of t = 0.2, 0.5 and 0.9 only the middle one."""
    plain, everywhere = said(Plain()), said(Scale(scale=3.0))
    window = said(Scale(scale=3.0, least_t=0.3, most_t=0.6))
    assert torch.equal(window[[0, 2]], plain[[0, 2]])
    assert_close(window[1], everywhere[1], rtol=1e-5, atol=1e-6)
    assert not Scale(scale=3.0, least_t=0.3).eval().both(torch.tensor([0.1, 0.29]))
    with pytest.raises(ValueError, match="no time is between"):
        Scale(least_t=0.6, most_t=0.4)


def pair() -> tuple[Tensor, Tensor]:
    shape = (3, DIMS.length, DIMS.width)
    return torch.randn(shape, generator=rng(1)), torch.randn(shape, generator=rng(2))


@torch.no_grad()
def test_a_linear_layer_of_scale_minus_one_is_classifier_free_guidance() -> None:
    with_, without = pair()
    linear, scale = Linear(dims=DIMS), Scale(scale=2.5).eval()
    linear.mix.weight.copy_(1.5 * torch.eye(DIMS.width))
    given = (with_, without, T3, mask(), condition())
    assert_close(linear(*given), scale(*given), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", [Linear, Transformer])
def test_learned_guidance_starts_as_the_plain_prediction(kind: type) -> None:
    with_, without = pair()
    assert torch.equal(kind(dims=DIMS)(with_, without, T3, mask(), condition()), with_)


def test_learned_guidance_is_trained_through_both_branches() -> None:
    """The weights that make the pair move after one step, though they start at 0."""
    parts = captioner(guidance=Linear(dims=DIMS))
    trained(parts, steps=1)
    assert bool(parts.guidance.mix.weight.any())  # type: ignore[attr-defined]


@torch.no_grad()
def test_a_transformer_hears_no_padding() -> None:
    with_, without = pair()
    rule = stir(Transformer(inner=8, heads=2, dims=DIMS)).eval()
    junk = torch.where(mask()[..., None], with_, 9.0)
    one, two = (rule(it, without, T3, mask(), condition()) for it in (with_, junk))
    assert_close(one[mask()], two[mask()], rtol=1e-5, atol=1e-5)


def test_the_classifier_climbs_its_own_slope() -> None:
    """With f the identity on two numbers: the slope of tau cos(f, g) is
    tau (g / |g| - cos f / |f|) / |f|, shared over the caption's positions; padding moves not."""
    dims = replace(DIMS, width=2)
    rule = Classifier(scale=3.0, inner=2, dims=dims).eval()
    rule.text = torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        rule.text.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
        with_ = torch.randn(3, DIMS.length, 2, generator=rng(1))
        got = rule(with_, with_, T3, mask(), condition())
    for row, seen in enumerate(mask()):
        mean = with_[row, seen].mean(0)
        image = rule.image(condition().features[row].mean(0)).detach()
        f, g = mean / mean.norm(), image / image.norm()
        slope = 10 * (g - (f @ g) * f) / mean.norm() / seen.sum()
        assert_close(got[row, seen], with_[row, seen] + 3 * slope, rtol=1e-4, atol=1e-5)
        assert_close(got[row, ~seen], with_[row, ~seen])


def test_the_classifier_climbs_in_inference_mode_too() -> None:
    """Nothing made there can be differentiated: it works on copies."""
    rule, x = Classifier(dims=DIMS).eval(), pair()[0]
    wanted = rule(x, x, T3, mask(), condition())
    with torch.inference_mode():
        there = x.clone()
        got = rule(there, there, T3.clone(), mask(), condition())
    assert_close(got.clone(), wanted.detach())
    assert not torch.allclose(wanted, x)


def test_the_slope_of_the_classifier_can_be_differentiated_itself() -> None:
    """Where gradients are on: the slope has one, in float64 against finite differences."""
    rule, x = Classifier(inner=3, dims=DIMS).double().eval(), pair()[0].double()
    given = condition()
    given = Condition(features=given.features.double(), keep=given.keep)
    times = T3.double()
    assert torch.autograd.gradcheck(
        lambda x: rule(x, x, times, mask(), given), x.requires_grad_(), fast_mode=True
    )


CLASSIFIER, MATCH = 'guidance={ use = "classifier" }', 'loss=[{ use = "mse" }, { use = "match" }]'


@pytest.mark.parametrize(
    ("sets", "mistake", "remedy"),
    [
        ([CLASSIFIER], "classifier needs match_loss", "what provides match_loss: loss match"),
        ([MATCH], "match needs match_head", "what provides match_head: guidance classifier"),
        ([CLASSIFIER, MATCH, 'target={ use = "v" }'], "classifier needs x0", "x0: target x0"),
    ],
)
def test_classifier_and_its_loss_are_checked_together(
    sets: list[str], mistake: str, remedy: str
) -> None:
    recipe = load(Path(__file__).parents[2] / "recipes" / "extra_token.toml")
    assert recipe.with_sets([CLASSIFIER, MATCH]).one("guidance").use == "classifier"
    with pytest.raises(RecipeError) as said:
        recipe.with_sets(sets)
    assert f"{mistake}, which nothing in this recipe provides" in str(said.value)
    assert remedy in str(said.value)


def test_a_classifier_of_scale_0_is_none() -> None:
    rule, x = Classifier(scale=0.0, dims=DIMS).eval(), pair()[0]
    assert rule(x, x, T3, mask(), condition()) is x


def test_heads_that_cannot_share_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"heads = 3 can't share inner = 64 equally"):
        Transformer(heads=3, dims=DIMS)


def test_the_classifier_makes_the_estimate_more_like_the_image() -> None:
    rule = Classifier(scale=0.5, dims=DIMS).eval()
    x, given = pair()[0], condition()
    before = rule.similarity(x, T3, mask(), given.features).diagonal()
    with torch.no_grad():
        moved = rule(x, x, T3, mask(), given)
    after = rule.similarity(moved, T3, mask(), given.features).diagonal()
    assert bool((after > before).all())
    hidden = rule(x, x, T3, mask(), condition(keep=False))
    assert torch.equal(hidden, x), "a withheld image moves the estimate"
