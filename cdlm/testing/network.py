"""Laws of what the network is made of: conditioning, denoiser, guidance."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cdlm.protocols import Conditioning, Denoiser, Guidance, SelfConditioning
from cdlm.records import Condition, Stream
from cdlm.testing.examples import (
    DIMS,
    SOME,
    B,
    condition,
    gradients,
    mask,
    noised,
    quarter_circle,
    rng,
    stir,
    stream,
)


def _tensors(found: Stream) -> dict[str, Tensor | None]:
    return {name: getattr(found, name) for name in ("h", "mask", "t", "time", "context")}


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _calm(component: Any) -> Any:
    """The component in eval mode, every weight off its starting point."""
    assert isinstance(component, nn.Module), "it must be an nn.Module"
    return stir(component).eval()


def _blank(seed: int = 0) -> Stream:
    """A stream into which nothing has been written but the caption."""
    return replace(stream(seed=seed), time=None, context=None)


def _row(found: Stream) -> Tensor:
    """All of the stream that can carry a gradient, in one row."""
    parts = [x for x in (found.h, found.time, found.context) if x is not None]
    return torch.cat([x.flatten() for x in parts])


def _must_reach(out: Tensor, weights: Iterable[tuple[str, nn.Parameter]], zero: bool) -> None:
    """A gradient reaches every trainable weight; it may be 0 where `zero` is allowed."""
    named = {name: weight for name, weight in weights if weight.requires_grad}
    for name, g in zip(named, gradients(out, list(named.values())), strict=True):
        assert g is not None, f"no gradient reaches {name}: train it, freeze it or drop it"
        assert bool(g.isfinite().all()), f"the gradient of {name} is not finite"
        assert zero or bool(g.any()), f"the gradient of {name} is 0 whatever is said"


# ---------------------------------------------------------------------------------- conditioning


def check_conditioning_adds_its_tokens(conditioning: Conditioning) -> None:
    """The sequence and its mask grow by exactly `extra` positions."""
    before = _blank()
    after = _calm(conditioning)(before, condition())
    seen = DIMS.length + conditioning.extra
    assert after.h.shape == (B, seen, DIMS.hidden), f"h is {tuple(after.h.shape)}"
    assert after.mask.shape == (B, seen), f"mask is {tuple(after.mask.shape)}"
    assert after.mask.dtype == torch.bool, f"mask is {after.mask.dtype}"


def check_conditioning_writes_what_it_declares(conditioning: Conditioning) -> None:
    """Just what `writes` names is written: extra tokens, time, context; t stays."""
    before = _blank()
    after = _calm(conditioning)(before, condition())
    written = {
        "tokens": after.h.shape[1] > before.h.shape[1],
        "time": not _same(after.time, before.time),
        "context": not _same(after.context, before.context),
    }
    found, wanted = {name for name, it in written.items() if it}, set(conditioning.writes)
    assert found == wanted, f"writes = {sorted(wanted)}, written: {sorted(found)}"
    assert _same(after.t, before.t), "it changes t"


def check_conditioning_keeps_the_text_in_place(conditioning: Conditioning) -> None:
    """`text` still points at the L caption positions, also where tokens stand before and behind."""
    mode = _calm(conditioning)
    for ahead, behind in ((0, 0), (1, 0), (0, 1)):
        before = replace(stream(ahead, behind), time=None, context=None)
        moved = replace(before, h=before.h.clone())
        moved.h[:, before.text] += 1.0
        one, other = mode(before, condition()), mode(moved, condition())
        assert torch.equal(one.mask[:, one.text], mask()), "the mask of the caption has changed"
        away = (one.h - other.h).abs().sum(-1) > 0
        assert bool(away[:, one.text].all()), "text does not point at the caption"


def check_conditioning_hides_a_withheld_image(conditioning: Conditioning) -> None:
    """Where `keep` is False, no trace of image or caption is left: in training, when sampling."""
    given = [condition(keep=False, seed=seed) for seed in (1, 2)]
    for training in (True, False):
        mode = _calm(conditioning).train(training)
        for pair in (given, [replace(it, text=None) for it in given]):
            one, other = (_tensors(_seeded(mode, it)) for it in pair)
            for name in one:
                assert _same(one[name], other[name]), f"{name} tells of an image that is withheld"


def _seeded(mode: nn.Module, given: Condition) -> Stream:
    """What the mode writes, with dropout that is the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mode(_blank(), given)


def check_conditioning_tells_something(conditioning: Conditioning) -> None:
    """What it writes depends on the time, the image or the caption's text, for every caption."""
    mode, before = _calm(conditioning), _blank()
    one = _tensors(mode(before, condition(seed=1)))
    two = _tensors(mode(replace(before, t=before.t / 2), condition(seed=2)))
    told = torch.zeros(B, dtype=torch.bool)
    for field in ("h", "time", "context"):
        a, b = one[field], two[field]
        if a is not None and b is not None:
            told |= (a != b).flatten(1).any(1)
    assert bool(told.all()), "it writes the same whatever the time, the image and the text"


def check_conditioning_counts_each_caption_alone(conditioning: Conditioning) -> None:
    """Another image, time and text for one caption change nothing for the others."""
    mode, rest = _calm(conditioning), slice(1, None)
    (a, given), (b, other) = ((_blank(seed), condition(seed=seed)) for seed in (1, 2))
    mixed = replace(a, h=torch.cat([b.h[:1], a.h[1:]]), t=torch.cat([a.t[:1] / 2, a.t[1:]]))
    assert given.text is not None and other.text is not None
    features = torch.cat([other.features[:1], given.features[1:]])
    text = torch.cat([other.text[:1], given.text[1:]])
    keep = torch.tensor([False, *[True] * (B - 1)])
    one = _tensors(mode(a, given))
    two = _tensors(mode(mixed, Condition(features=features, keep=keep, text=text)))
    for name, value in one.items():
        changed = two[name]
        if value is not None and changed is not None:
            assert_close(changed[rest], value[rest], rtol=1e-5, atol=1e-5)


def check_conditioning_teaches_every_weight(conditioning: Conditioning) -> None:
    """Gradients reach every trainable weight where some images are given and some withheld."""
    mode = _calm(conditioning)
    given = replace(condition(), keep=torch.tensor([True, False, True]))
    _must_reach(_row(mode(_blank(), given)), mode.named_parameters(), zero=False)


def check_conditioning_repeats_and_writes_nothing(conditioning: Conditioning) -> None:
    """In eval mode twice the same, and its inputs stand as before."""
    mode, before, given = _calm(conditioning), _blank(), condition()
    old, features = deepcopy(before), given.features.clone()
    one, two = (_tensors(mode(before, given)) for _ in range(2))
    for name, value in _tensors(before).items():
        assert _same(value, getattr(old, name)), f"it writes into the stream's {name}"
        assert _same(one[name], two[name]), f"{name} differs between two calls"
    assert torch.equal(given.features, features), "it writes into the features"


# -------------------------------------------------------------------------------------- denoiser


def _full(seed: int = 0) -> Stream:
    """A stream of M positions, everything written."""
    return stream(behind=DIMS.seen - DIMS.length, seed=seed)


def check_denoiser_keeps_the_shape(denoiser: Denoiser) -> None:
    """B M H in, B M H out, finite."""
    out = _calm(denoiser)(_full())
    assert out.shape == (B, DIMS.seen, DIMS.hidden), f"shape {tuple(out.shape)}, not B M H"
    assert bool(out.isfinite().all()), "not finite"


def check_denoiser_never_leaks_padding(denoiser: Denoiser) -> None:
    """What stands at masked positions changes nothing at the others."""
    model, before = _calm(denoiser), _full()
    junk = 10 * torch.randn(before.h.shape, generator=rng(7))
    after = replace(before, h=torch.where(before.mask[..., None], before.h, junk))
    one, two = (model(it)[before.mask] for it in (before, after))
    assert_close(two, one, rtol=1e-5, atol=1e-5)


def check_denoiser_reads_what_it_declares(denoiser: Denoiser) -> None:
    """Of extra tokens, time and context, just those that `reads` names change what it says."""
    model, before, other = _calm(denoiser), _full(), _full(seed=1)
    extra = torch.cat([before.h[:, before.text], other.h[:, before.text.stop :]], 1)
    others = {"tokens": {"h": extra}, "time": {"time": other.time}}
    others["context"] = {"context": other.context}
    heard = {
        name
        for name, part in others.items()
        if bool(_moved(model, before, replace(before, **part)).any())  # type: ignore[arg-type]
    }
    wanted = set(denoiser.reads)
    assert heard == wanted, f"reads = {sorted(wanted)}, but it listens to {sorted(heard)}"


def check_denoiser_lets_time_through(denoiser: Denoiser) -> None:
    """Another noise level changes every position of a caption, in whichever way it is told.

    Added to the whole sequence, as `time` or as `context`, if it reads these.
    """
    model, before = _calm(denoiser), _full()
    shift = torch.randn(B, 1, DIMS.hidden, generator=rng(3))
    assert before.time is not None and before.context is not None
    ways = {"time": before.time + shift[:, 0], "context": before.context + shift}
    told = {"h": before.h + shift} | {name: ways[name] for name in ways if name in denoiser.reads}
    for name, value in told.items():
        deaf = ~_moved(model, before, replace(before, **{name: value}))  # type: ignore[arg-type]
        assert not bool(deaf.any()), f"{int(deaf.sum())} positions do not hear of another {name}"


def check_denoiser_hears_extra_tokens(denoiser: Denoiser) -> None:
    """If it reads tokens, each of them changes what is said at every position of the caption."""
    if "tokens" not in denoiser.reads:
        return
    model, before = _calm(denoiser), _full()
    other = before.h.clone()
    other[:, -1] = torch.randn(B, DIMS.hidden, generator=rng(3))
    deaf = ~_moved(model, before, replace(before, h=other))
    assert not bool(deaf.any()), f"{int(deaf.sum())} positions do not hear of an extra token"


def _moved(model: Any, before: Stream, after: Stream) -> Tensor:
    """Which of the caption's own positions, all in one row, say something else."""
    gap = (model(after) - model(before))[:, before.text].abs().amax(-1)
    return gap[before.mask[:, before.text]] > 1e-6


def check_denoiser_counts_each_caption_alone(denoiser: Denoiser) -> None:
    """What it says of a caption depends neither on the rest of the batch nor on its place."""
    model, before = _calm(denoiser), _full()
    some = {n: v[SOME] for n, v in _tensors(before).items() if v is not None}
    assert_close(model(replace(before, **some)), model(before)[SOME], rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]


def check_denoiser_teaches_every_weight(denoiser: Denoiser) -> None:
    """A gradient reaches every trainable weight; one that none reaches stops DDP at step 2."""
    model = _calm(denoiser)
    _must_reach(model(_full()), model.named_parameters(), zero=True)


def check_denoiser_repeats_and_writes_nothing(denoiser: Denoiser) -> None:
    """In eval mode twice the same, and the stream stands as before."""
    model, before = _calm(denoiser), _full()
    old = deepcopy(before)
    one, two = model(before), model(before)
    assert torch.equal(one, two), "two calls in eval mode differ"
    for name, value in _tensors(before).items():
        assert _same(value, getattr(old, name)), f"it writes into the stream's {name}"


# -------------------------------------------------------------------------------------- guidance


def _branches() -> tuple[Tensor, Tensor, Tensor, Tensor, Condition]:
    """with, without, t, mask, condition."""
    shape = (B, DIMS.length, DIMS.width)
    with_, without = (torch.randn(shape, generator=rng(seed)) for seed in (1, 2))
    return with_, without, torch.tensor([0.2, 0.5, 0.9]), mask(), condition()


def check_guidance_keeps_the_shape(guidance: Guidance) -> None:
    """B L E in, B L E out, finite; `drop` is a share below 1."""
    with_, without, t, seen, given = _branches()
    out = _calm(guidance)(with_, without, t, seen, given)
    assert out.shape == with_.shape, f"shape {tuple(out.shape)}, not B L E"
    assert bool(out.isfinite().all()), "not finite"
    assert 0 <= guidance.drop < 1, f"drop = {guidance.drop}"


def check_guidance_keeps_what_both_say(guidance: Guidance) -> None:
    """Where both predictions are equal, that is the result: the weights sum to 1."""
    with_, _, t, seen, given = _branches()
    assert_close(_calm(guidance)(with_, with_.clone(), t, seen, given), with_, rtol=0, atol=1e-5)


def check_guidance_starts_as_the_plain_prediction(guidance: Guidance) -> None:
    """In training, before any step, the result is the prediction with the image.

    What learns nothing stays so in training; what learns goes on from there.
    """
    with_, without, t, seen, given = _branches()
    assert isinstance(guidance, nn.Module), "it must be an nn.Module"
    out = guidance.train()(with_, without, t, seen, given)
    assert_close(out, with_, rtol=0, atol=1e-6)


def check_guidance_hides_a_withheld_image(guidance: Guidance) -> None:
    """Where the image is withheld, nothing of its feature is left in the result."""
    with_, without, t, seen, _ = _branches()
    rule, one, two = _calm(guidance), condition(keep=False), condition(keep=False, seed=1)
    same = torch.equal(rule(with_, without, t, seen, one), rule(with_, without, t, seen, two))
    assert same, "a withheld image changes the result"


def check_guidance_asks_for_both_if_both_count(guidance: Guidance) -> None:
    """`both(t)` is True just where the prediction without the image makes a difference."""
    with_, without, t, seen, given = _branches()
    rule = _calm(guidance)
    differs = not torch.allclose(rule(with_, without, t, seen, given), with_, atol=1e-5)
    both = rule.both(t)
    assert differs == both, f"both(t) is {both}, and it makes a difference: {differs}"


def check_guidance_counts_each_caption_alone(guidance: Guidance) -> None:
    """What it makes of a caption depends neither on the rest of the batch nor on its place."""
    rule, given = _calm(guidance), _branches()
    chosen = Condition(features=given[4].features[SOME], keep=given[4].keep[SOME])
    some = rule(*(value[SOME] for value in given[:4]), chosen)
    assert_close(some, rule(*given)[SOME], rtol=1e-5, atol=1e-5)


def check_guidance_teaches_and_writes_nothing(guidance: Guidance) -> None:
    """Gradients reach its trainable weights, if it has any; its inputs stand as before."""
    rule, given = _calm(guidance), _branches()
    old = [value.clone() for value in given[:4]]
    _must_reach(rule(*given), rule.named_parameters(), zero=True)
    for value, before in zip(given[:4], old, strict=True):
        assert torch.equal(value, before), "it writes into its inputs"


# ------------------------------------------------------------------------------ self_conditioning


def check_self_conditioning_takes_zero_as_nothing(self_conditioning: SelfConditioning) -> None:
    """At first, and for an estimate of 0, nothing is added; else it is B L H, if anything."""
    part, z = _calm(self_conditioning), noised(torch.float32)
    shape = (*z.x_t.shape[:2], DIMS.hidden)
    for before in (None, torch.zeros_like(z.x_t)):
        added = part(before, z.x_t)
        assert added is None or not bool(added.any()), "an estimate of 0 is not as none"
        assert added is None or added.shape == shape, f"shape {tuple(added.shape)}, not B L H"


def check_self_conditioning_counts_each_caption_alone(self_conditioning: SelfConditioning) -> None:
    """What a caption is told depends neither on the rest of the batch nor on its place."""
    part, z = _calm(self_conditioning), noised(torch.float32)
    added = part(z.x0, z.x_t)
    if added is not None:
        assert_close(part(z.x0[SOME], z.x_t[SOME]), added[SOME], rtol=1e-5, atol=1e-6)


def check_self_conditioning_practises_without_a_gradient(
    self_conditioning: SelfConditioning,
) -> None:
    """In training it gives nothing, or an estimate that the network made, without a gradient."""
    z = noised(torch.float32)
    weight = nn.Parameter(torch.ones(()))
    part, draw = _calm(self_conditioning).train(), rng()
    for _ in range(20):
        before = part.practise(lambda x, t: weight * x, z, quarter_circle, draw)
        assert before is None or before.shape == z.x0.shape, "an estimate of another shape"
        assert before is None or not before.requires_grad, "a gradient flows through the estimate"


def check_self_conditioning_repeats(self_conditioning: SelfConditioning) -> None:
    """All randomness of its practice comes from rng; its inputs stand as before."""
    z = noised(torch.float32)
    old, part = deepcopy(z), _calm(self_conditioning).train()
    for seed in range(10):
        one, two = (part.practise(lambda x, t: x / 2, z, quarter_circle, rng(seed)) for _ in "12")
        assert _same(one, two), "two draws from the same rng differ"
    assert torch.equal(z.x_t, old.x_t) and torch.equal(z.x0, old.x0), "it writes into its inputs"


def check_self_conditioning_teaches_every_weight(self_conditioning: SelfConditioning) -> None:
    """A gradient reaches every weight, also where there is no estimate yet: DDP stops without."""
    part, z = _calm(self_conditioning), noised(torch.float32)
    for before in (None, z.x0):
        added = part(before, z.x_t)
        if list(part.parameters()):
            assert added is not None, "weights without any use"
            _must_reach(added, part.named_parameters(), zero=True)
