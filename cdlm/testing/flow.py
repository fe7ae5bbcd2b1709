"""Laws of a process and of an objective: from captions to a loss, and from images to captions."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cdlm.compose import Missing, Parts
from cdlm.errors import CdlmError
from cdlm.parts.constraints import Forbid, Size
from cdlm.protocols import Constraint, Objective, Process
from cdlm.records import Batch, Said, State
from cdlm.sample import captions, sample
from cdlm.testing.examples import DIMS, condition, rng, stir
from cdlm.testing.whole import around, data, trained

OPTIONAL = frozenset(
    {
        "schedule", "noise", "timesteps", "target", "self_conditioning", "guidance", "variance",
        "loss", "rounding", "grid", "sampler",
    }
)  # fmt: skip
"""The kinds that a process may go without; of all others every captioner has some."""

LEARNING = ("process", "embedding", "network")  # what of the tiny captioner has weights

EVERYWHERE = torch.ones(3, DIMS.length, dtype=torch.bool)


def _batch(parts: Parts) -> Batch:
    return data(parts).batch(0, 4, 0)


def _ready(process: Process) -> Parts:
    parts = around("process", process)
    parts.modules().eval()
    return parts


def _states(parts: Parts, seed: int = 0, steps: int | None = None) -> list[State]:
    return list(sample(parts, condition(), EVERYWHERE, steps, rng(seed)))


def check_process_gives_a_loss(process: Process) -> None:
    """Terms by name, each one finite number with a gradient; one at least reaches the network."""
    parts = around("process", process)
    terms = process.loss(parts, _batch(parts), rng())
    assert terms and all(type(name) is str for name in terms), f"no terms by name: {terms}"
    for name, term in terms.items():
        assert term.shape == (), f"{name} has the shape {tuple(term.shape)}"
        assert term.requires_grad, f"{name} has no gradient"
        assert bool(term.isfinite()), f"{name} is {float(term)}"
    torch.stack(list(terms.values())).sum().backward()
    assert _taught(parts), "the network is not taught"


def _taught(parts: Parts) -> bool:
    """Whether a gradient has come to the network."""
    weights = [it.grad for it in parts.network.denoiser.parameters()]  # type: ignore[attr-defined]
    return any(it is not None and bool(it.any()) for it in weights)


def check_process_repeats(process: Process) -> None:
    """All its randomness comes from rng: the same one gives the same loss and the same captions."""
    parts = _ready(process)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # would move a process that draws from the global generator
        terms = process.loss(parts, _batch(parts), rng(3))
        found.append((*terms.values(), _states(parts, seed=3)[-1].x))
    assert all(map(torch.equal, *found)), "two runs differ"


def check_process_goes_from_noise_to_text(process: Process) -> None:
    """The time of its states falls strictly from 1 to 0; every state can be read as words."""
    parts = _ready(process)
    states = _states(parts)
    times = [state.t for state in states]
    assert times[0] == 1 and times[-1] == 0, f"from t = {times[0]} to {times[-1]}"
    assert all(t > s for t, s in pairwise(times)), "times do not fall"
    seen = EVERYWHERE.clone()
    seen[0, 2:] = False
    for state in states:
        ids = parts.process.words(parts, state, seen)
        assert ids.shape == seen.shape and not ids.is_floating_point(), "not ids B L"
        assert bool(((ids >= 0) & (ids < DIMS.vocab)).all()), "ids that are no words"
        assert bool((ids[~seen] == parts.tokenizer.pad).all()), "no padding outside the mask"


def check_process_sees_the_image(process: Process) -> None:
    """Other images, another loss."""
    parts = _ready(process)
    given = _batch(parts)
    other = replace(given, features=-given.features)
    one, two = (process.loss(parts, it, rng()) for it in (given, other))
    assert any(not torch.equal(one[name], two[name]) for name in one), "it never looks at images"


def check_process_learns(process: Process) -> None:
    """A hundred steps on four captions bring the loss below three quarters of what it was."""
    parts = around("process", process)
    before, after = (trained(parts, steps=steps, lr=1e-2)["loss"] for steps in (1, 100))
    assert after < 0.75 * before, f"from {before:.3f} to {after:.3f}"


def check_process_obeys_constraints(process: Process) -> None:
    """Barred words are never said, and captions have as many words as they may have."""
    rules: list[Constraint] = [Forbid(words=["a", "dog"]), Size(least=2, most=3)]
    parts = replace(_ready(process), constraint=rules)
    shape = (20, DIMS.image_tokens, DIMS.image_width)
    said = captions(parts, torch.randn(shape, generator=rng()), rng())
    texts = [it.caption.split() for it in said]
    assert not {"a", "dog"} & {word for words in texts for word in words}, "barred words are said"
    assert {len(words) for words in texts} <= {2, 3}, "captions of other lengths"


def check_process_lets_all_voices_speak(process: Process) -> None:
    """One that provides `ensemble` says beside itself what it says alone; beside another, not."""
    if "ensemble" not in getattr(process, "provides", ()):
        return
    parts = _ready(process)
    other = replace(parts, **{kind: copy.deepcopy(getattr(parts, kind)) for kind in LEARNING})
    stir(other.modules())

    def said(*beside: Parts) -> list[Said]:
        shape = (20, DIMS.image_tokens, DIMS.image_width)
        features = torch.randn(shape, generator=rng())
        return captions(replace(parts, beside=beside), features, rng())

    assert said(parts) == said(), "two that are alike say something else than one"
    assert said(other) != said(), "another beside it changes nothing"


def check_process_knows_what_it_draws(process: Process) -> None:
    """One that provides `draws` draws the same by the same rng; log p is of those, and teaches."""
    if "draws" not in getattr(process, "provides", ()):
        return
    parts, asked = _ready(process), condition()
    one, two = (process.draw(parts, asked, rng(3)) for _ in range(2))  # type: ignore[attr-defined]
    assert torch.equal(one.ids, two.ids), "two draws by the same rng differ"
    assert one.ids.shape == one.mask.shape == one.order.shape == (3, DIMS.length), "not B L"
    assert bool((one.ids[~one.mask] == parts.tokenizer.pad).all()), "no padding outside the mask"
    places = torch.arange(DIMS.length).expand_as(one.order)
    assert torch.equal(one.order.sort(1).values, places), "not every place is in the order once"
    log_p = process.log_p(parts, one, asked, rng())  # type: ignore[attr-defined]
    assert log_p.shape == (3,) and bool((log_p <= 0).all()), f"log p is {log_p.tolist()}"
    log_p.sum().backward()
    assert _taught(parts), "the network is not taught"


def check_process_finds_the_best(process: Process) -> None:
    """One that provides `search`, where it searches: the best is what it says, the rest is else."""
    if "search" not in getattr(process, "provides", ()) or not process.searches:  # type: ignore[attr-defined]
        return
    parts, asked, count = _ready(process), condition(), 4
    *_, said = process.sample(parts, asked, EVERYWHERE, None, rng())
    states = list(process.search(parts, asked, EVERYWHERE, count))  # type: ignore[attr-defined]
    assert [states[0].t, states[-1].t] == [1, 0], "not from t = 1 to 0"
    found = states[-1].x.view(-1, count, DIMS.length)
    assert len(found) == len(said.x), "not `count` captions of each row"
    texts = [[tuple(it) for it in captions] for captions in found.tolist()]
    assert all(len(set(captions)) == count for captions in texts), "the same caption twice"
    *_, alone = process.search(parts, asked, EVERYWHERE, 1)  # type: ignore[attr-defined]
    assert torch.equal(alone.x, said.x), "the best one is not what it says"


def check_process_uses_what_it_does_not_go_without(process: Process) -> None:
    """It works without the kinds of `without`, and would not without any other."""
    unknown = process.without - OPTIONAL
    assert not unknown, f"every captioner has {', '.join(sorted(unknown))}; or is it no kind?"
    parts = around("process", process)
    try:
        _use(parts, {kind: _missing(kind) for kind in process.without})
    except CdlmError as error:
        raise AssertionError(f"it can't go without what it says: {error}") from error
    for kind in sorted(OPTIONAL - process.without):
        asked: list[str] = []
        _use(parts, {kind: _Watched(getattr(parts, kind), asked)})
        assert asked, f"it never asks for {kind}: it goes without"


def _missing(kind: str) -> object:
    return {} if kind == "loss" else Missing(kind, "in question")


def _use(parts: Parts, others: dict[str, Any]) -> None:
    whole = replace(parts, **others)
    whole.process.loss(whole, _batch(whole), rng())
    list(sample(whole, condition(), EVERYWHERE, 2, rng()))


@dataclass
class _Watched:
    """A part, and a list that grows whenever something is asked of it."""

    part: Any
    asked: list[str]

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return getattr(self.part, name)

    def __call__(self, *given: Any) -> Any:
        self.asked.append("()")
        return self.part(*given)


# ------------------------------------------------------------------------------------- objective


def check_objective_gives_terms(objective: Objective) -> None:
    """Terms by name, each one finite number; their sum teaches the network."""
    parts = around("objective", objective)
    terms = _objectively(parts, 0)
    assert terms and all(type(name) is str for name in terms), f"no terms by name: {terms}"
    for name, term in terms.items():
        assert term.shape == () and bool(term.isfinite()), f"{name} is {term}"
    total = torch.stack(list(terms.values())).sum()
    assert total.requires_grad, "there is no gradient"
    total.backward()
    assert _taught(parts), "the network is not taught"


def check_objective_repeats(objective: Objective) -> None:
    """All its randomness comes from rng."""
    parts = around("objective", objective)
    parts.modules().eval()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # would move one that draws from the global generator
        found.append(tuple(_objectively(parts, 3).values()))
    assert all(map(torch.equal, *found)), "two calls differ"


def _objectively(parts: Parts, seed: int) -> dict[str, Tensor]:
    parts.objective.begin(data(parts).references)
    return parts.objective(parts, _batch(parts), rng(seed))
