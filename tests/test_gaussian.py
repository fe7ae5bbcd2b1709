"""Sampling the Gaussian process: what makes it quick changes no word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cdlm import gaussian
from cdlm.compose import Parts
from cdlm.gaussian import Gaussian
from cdlm.network import Network
from cdlm.parts.conditioning import FeatureElementwise, ImageTokens
from cdlm.parts.denoisers.attention import Cross
from cdlm.parts.denoisers.modern import Modern
from cdlm.parts.guidance import Scale
from cdlm.parts.rounding import Clamp
from cdlm.parts.samplers import Ddim, Ddpm
from cdlm.records import Condition, Once, State
from cdlm.sample import sample, words
from cdlm.testing.examples import DIMS, condition, rng, stir
from cdlm.testing.whole import captioner, network

EVERYWHERE = torch.ones(3, DIMS.length, dtype=torch.bool)


def states(parts: Parts, steps: int = 12) -> list[State]:
    parts.modules().eval()
    return list(sample(parts, condition(), EVERYWHERE, steps, rng()))


def texts(parts: Parts, steps: int = 12) -> list[Tensor]:
    return [words(parts, state, EVERYWHERE) for state in states(parts, steps)]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def crossed() -> Network:
    """With cross-attention that has something to say: fresh, it adds nothing."""
    made = network(None, Modern(layers=2, heads=2, dims=DIMS))
    stir(made)
    return made


@pytest.mark.parametrize("sampler", [Ddim(), Ddpm()])
def test_rounding_that_remembers_changes_no_state(
    sampler: Ddim | Ddpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaussian, "MANY", 1)
    made = [
        states(captioner(process=Gaussian(remember=it), rounding=Clamp(), sampler=sampler))
        for it in (True, False)
    ]
    for one, two in zip(*made, strict=True):
        assert torch.equal(one.x, two.x)


def calls(monkeypatch: pytest.MonkeyPatch, of: type, name: str) -> list[int]:
    """How often a method is called: an entry for each call."""
    seen: list[int] = []
    method = getattr(of, name)

    def counted(self: object, *given: object) -> object:
        seen.append(1)
        return method(self, *given)

    monkeypatch.setattr(of, name, counted)
    return seen


@pytest.mark.parametrize("guidance", [None, Scale(scale=2.0)])
def test_the_images_keys_and_values_are_made_once(
    guidance: Scale | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every layer, for both branches of the guidance together; and nothing changes by it."""
    others = {"network": crossed(), "rounding": Clamp()} | (
        {"guidance": guidance} if guidance else {}
    )
    keys, tokens = (
        calls(monkeypatch, Cross, "_keys_and_values"),
        calls(monkeypatch, ImageTokens, "_tokens"),
    )
    quick = texts(captioner(**others))
    assert (len(keys), len(tokens)) == (2, 2)  # two layers; two modes that show the image
    monkeypatch.setattr(gaussian, "Once", lambda made: Once())
    slow = texts(captioner(**others))
    assert len(keys) == 2 + 12 * 2
    assert same(quick, slow)


def test_what_is_kept_belongs_to_one_tensor() -> None:
    once, asked = Once({}), []
    one, two = torch.zeros(1), torch.zeros(1)

    def make() -> int:
        asked.append(1)
        return len(asked)

    assert [once("a", one, make), once("a", one, make), once("b", one, make)] == [1, 1, 2]
    assert [once("a", two, make), Once()("a", two, make), Once()("a", two, make)] == [3, 4, 5]


def test_training_keeps_nothing() -> None:
    """A second call with other weights must not see the first one's image."""
    mode, given = FeatureElementwise(dims=DIMS), condition()
    stir(mode)
    first = mode._added(given)
    assert given.once.made is None
    with torch.no_grad():
        mode.project.weight.mul_(2)
    assert not torch.equal(mode._added(given), first)


class Settled(nn.Module):
    """Says the same word everywhere from a time on, and anything before it."""

    def __init__(self, table: Tensor, below: float):
        super().__init__()
        self.table, self.below, self.called, self.rng = table, below, 0, rng()

    def forward(self, x_t: Tensor, t: Tensor, *rest: object) -> Tensor:
        self.called += 1
        if t[0] <= self.below:
            return self.table[:1].expand_as(x_t)
        return torch.randn(x_t.shape, generator=self.rng)


def patient(patience: int, make: Callable[[Tensor], nn.Module]) -> tuple[list[State], Settled]:
    parts = captioner(process=Gaussian(patience=patience), rounding=Clamp())
    network = make(parts.embedding.table().detach())
    found = states(replace(parts, network=network), steps=20)
    return found, network  # type: ignore[return-value]


def test_sampling_ends_once_no_word_has_changed_for_so_many_steps() -> None:
    whole, _ = patient(0, lambda table: Settled(table, 0.5))
    short, network = patient(3, lambda table: Settled(table, 0.5))
    assert len(whole) == 21 and network.called == len(short) - 1 < 16
    assert short[-1].t == 0
    assert torch.equal(short[-1].x0_hat, whole[-1].x0_hat)


def test_a_condition_is_not_asked_to_remember_unless_sampling() -> None:
    assert Condition(features=torch.zeros(1), keep=torch.ones(1)).once.made is None
