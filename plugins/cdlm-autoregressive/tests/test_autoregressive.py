"""Cached and uncached, greedy and beams: what each must be equal to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cdlm_autoregressive.causal import Causal
from cdlm_autoregressive.process import Autoregressive, Reader
from cdlm_autoregressive.search import Beams, likeliest
from torch import Tensor, nn
from torch.testing import assert_close

from cdlm.parts.conditioning import FeatureAdd, FeatureElementwise
from cdlm.parts.constraints import Size
from cdlm.parts.denoisers.transformer import Transformer
from cdlm.records import Condition
from cdlm.sample import captions, sample
from cdlm.testing import conformance
from cdlm.testing.examples import CAPTIONS, DIMS, batch, condition, rng, stir, stream
from cdlm.testing.whole import captioner, data, network, trained

test_autoregressive = conformance("process", "autoregressive")
test_beams = conformance("process", "autoregressive", beams=3, penalty=0.6)
test_drawn = conformance("process", "autoregressive", temperature=1.0)
test_causal = conformance("denoiser", "causal", layers=2, heads=2)

EVERYWHERE = torch.ones(3, DIMS.length, dtype=torch.bool)
PAD, END = 0, 1


def parts(mode: Any = None, **others: Any) -> Any:
    """A tiny captioner whose weights are all shaken."""
    torch.manual_seed(0)
    dims = DIMS if mode is None else replace(DIMS, seen=DIMS.length)
    whole = network(mode, Causal(layers=2, heads=2, dims=dims))
    process = Autoregressive(dims=DIMS, **others)
    found = captioner(process=process, network=whole)
    stir(found.modules()).eval()
    return found


@pytest.mark.parametrize("mode", [None, FeatureAdd(dims=DIMS), FeatureElementwise(dims=DIMS)])
def test_cached_logits_are_the_uncached_ones(mode: nn.Module | None) -> None:
    """Place by place, whatever conditioning there is."""
    it, ids = parts(mode), batch().ids
    with torch.no_grad():
        whole = it.process.logits(it, ids, condition())
        reader = Reader.begin(it, condition(), DIMS.length)
        for place in range(DIMS.length):
            shares, reader = reader.read(ids[:, None], place, None)
            wanted = whole[:, place].log_softmax(1)
            torch.testing.assert_close(shares[:, 0], wanted, rtol=1e-5, atol=1e-5)


def test_no_word_hears_of_a_later_one_but_all_hear_the_image() -> None:
    it, ids = parts(), batch().ids
    logits = it.process.logits(it, ids, condition())
    for place in range(DIMS.length):
        other = ids.clone()
        other[:, place:] = 5
        same = it.process.logits(it, other, condition())
        torch.testing.assert_close(same[:, : place + 1], logits[:, : place + 1])
    unseen = it.process.logits(it, ids, condition(seed=1))
    assert not torch.allclose(unseen[:, 0], logits[:, 0], atol=1e-3)


def test_extra_tokens_in_front_are_heard_and_hear_no_word() -> None:
    """Behind the caption, as `extra_token` has them, and in front of it."""
    whole = stir(Causal(layers=2, heads=2, dims=replace(DIMS, seen=9)))
    given = stream(ahead=2, behind=1)
    other = replace(given, h=given.h.clone())
    other.h[:, given.text.stop - 1] += 1
    one, two = whole(given), whole(other)
    torch.testing.assert_close(two[:, : given.text.stop - 1], one[:, : given.text.stop - 1])
    torch.testing.assert_close(two[:, given.text.stop :], one[:, given.text.stop :])


def test_it_has_as_many_weights_as_the_transformer() -> None:
    sizes = [
        sum(it.numel() for it in part(layers=3, heads=4, dims=DIMS).parameters())
        for part in (Causal, Transformer)
    ]
    assert sizes[0] == sizes[1]


def test_the_loss_is_the_captions_log_likelihood_a_word() -> None:
    it, given = parts(), batch()
    logits = it.process.logits(it, given.ids, condition())
    said = logits.log_softmax(2).gather(2, given.ids[..., None])[..., 0]
    wanted = -sum(row[seen].mean() for row, seen in zip(said, given.mask, strict=True)) / 3
    found = it.process.loss(it, replace(given, features=condition().features), rng())["nll"]
    torch.testing.assert_close(found, wanted)


# ---------------------------------------------------------------------------------------- search


def said(it: Any, seed: int = 0, seen: Tensor = EVERYWHERE) -> Tensor:
    *_, last = sample(it, condition(), seen, None, rng(seed))
    return last.x


def log_p(it: Any, ids: Tensor) -> Tensor:
    """Of whole captions, up to their first end or padding. -> B."""
    logs = it.process.logits(it, ids, condition()).log_softmax(2)
    over = ((ids == PAD) | (ids == END)).cumsum(1)
    counted = (over == 0) | ((over == 1) & ((ids == PAD) | (ids == END)))
    return (logs.gather(2, ids[..., None])[..., 0] * counted).sum(1)


def test_one_beam_is_greedy() -> None:
    """Word by word the likeliest, by the uncached network."""
    it = parts()
    ids, ended = torch.full((3, DIMS.length), PAD), torch.zeros(3, dtype=torch.bool)
    for place in range(DIMS.length):
        word = it.process.logits(it, ids, condition())[:, place].argmax(1)
        ids[:, place] = word.masked_fill(ended, PAD)
        ended |= (word == END) | (word == PAD)
    assert torch.equal(said(it), ids)


def test_as_many_beams_as_captions_find_the_likeliest_of_all() -> None:
    """Of all captions of two words, by trying every one."""
    it, seen = parts(beams=DIMS.vocab**2), torch.arange(DIMS.length).expand(3, -1) < 2
    found = said(it, seen=seen)
    pairs = torch.cartesian_prod(torch.arange(DIMS.vocab), torch.arange(DIMS.vocab))
    every = nn.functional.pad(pairs, (0, DIMS.length - 2), value=PAD)
    ends = (every[:, 0] == PAD) | (every[:, 0] == END)
    every[ends, 1] = PAD
    for i in range(3):
        one = Condition(features=condition().features[i : i + 1], keep=torch.ones(1, dtype=bool))
        rows = len(every)
        wide = Condition(features=one.features.expand(rows, -1, -1), keep=one.keep.expand(rows))
        logs = it.process.logits(it, every, wide).log_softmax(2)
        total = logs[:, 0].gather(1, every[:, :1])[:, 0]
        total = total + logs[:, 1].gather(1, every[:, 1:2])[:, 0].masked_fill(ends, 0)
        assert torch.equal(every[total.argmax()], found[i])


OVER = [1.0, 0.0, 0.0, 0.0]  # after what is impossible, or ended


def walk(chances: dict[tuple[int, ...], list[float]], beams: int, penalty: float) -> list[int]:
    """What is found where the next word's chances are those of a table."""
    seen = torch.ones(1, 3, dtype=torch.bool)
    it, pick = Beams.empty(seen, beams, PAD), likeliest(beams, penalty)
    for place in range(3):
        rows = [chances.get(tuple(row[:place]), OVER) for row in it.ids[0].tolist()]
        last = torch.tensor([place == 2])
        it, _ = it.grown(torch.tensor([rows]).log(), place, last, (PAD, END), pick)
    return it.ids[0, 0].tolist()


def test_beams_find_what_greedy_search_misses() -> None:
    """The likeliest first word leads to less likely captions: 0.6 x 0.4 < 0.4 x 1."""
    chances = {
        (): [0, 0, 0.6, 0.4],
        (2,): [0, 0.4, 0.3, 0.3], (3,): [0, 1.0, 0, 0],
    }  # fmt: skip
    assert walk(chances, 1, 0.0) == [2, END, PAD]
    assert walk(chances, 2, 0.0) == [3, END, PAD]


def test_a_penalty_favours_longer_captions() -> None:
    """p = 0.44 in two words against 0.42 in three, which a penalty of 1 turns round."""
    chances = {
        (): [0, 0, 1.0, 0],
        (2,): [0, 0.44, 0, 0.56], (2, 3): [0, 0.75, 0, 0.25],
    }  # fmt: skip
    assert math.log(0.44) / (7 / 6) < math.log(0.42) / (8 / 6)
    assert walk(chances, 3, 0.0) == [2, END, PAD]
    assert walk(chances, 3, 1.0) == [2, 3, END]


def test_more_beams_never_score_worse_here() -> None:
    """Not a law of beam search, but so for these weights: the caches follow the right beams."""
    scores = [log_p(it := parts(beams=k), said(it)) for k in (1, 4, 16)]
    assert bool((scores[1] >= scores[0] - 1e-5).all() and (scores[2] >= scores[1] - 1e-5).all())
    assert bool((scores[2] > scores[0] + 1e-3).any()), "beams change nothing"


def test_drawn_words_come_as_often_as_the_network_says() -> None:
    """The first word of 4,000 captions of one image, to 4 standard errors."""
    it, n = parts(temperature=1.0), 4000
    one = condition().features[:1].expand(n, -1, -1)
    given = Condition(features=one, keep=torch.ones(n, dtype=torch.bool))
    seen = torch.ones(n, DIMS.length, dtype=torch.bool)
    *_, last = sample(it, given, seen, None, rng())
    shares = it.process.logits(it, last.x[:1], Condition(features=one[:1], keep=given.keep[:1]))
    shares = shares[0, 0].softmax(0)
    counts = last.x[:, 0].bincount(minlength=DIMS.vocab) / n
    assert bool(((counts - shares).abs() < 4 * (shares * (1 - shares) / n).sqrt() + 1e-3).all())


def test_what_is_drawn_has_the_log_p_of_its_words_up_to_its_end() -> None:
    it, given, seen = parts(beams=3), condition(), set[int]()
    for seed in range(100):  # few of these weights' captions end early
        drawn = it.process.draw(it, given, rng(seed))
        sizes = drawn.mask.sum(1).tolist()
        for ids, size in zip(drawn.ids.tolist(), sizes, strict=True):
            assert size == DIMS.length or ids[size - 1] in (END, PAD)
            assert not {END, PAD} & set(ids[: size - 1]) and set(ids[size:]) <= {PAD}
        assert_close(it.process.log_p(it, drawn, given, rng()), log_p(it, drawn.ids))
        seen.update(sizes)
    assert len(seen) > 1


def test_constraints_hold_for_every_beam() -> None:
    it = replace(parts(beams=4), constraint=[Size(least=2, most=3)])
    texts = [each.caption.split() for each in captions(it, condition().features, rng())]
    assert {len(words) for words in texts} <= {2, 3}


def test_beams_with_a_temperature_are_refused() -> None:
    with pytest.raises(ValueError, match="no word is drawn"):
        Autoregressive(beams=2, temperature=1.0, dims=DIMS)


@pytest.mark.parametrize("beams", [1, 3])
def test_four_captions_are_learnt_by_heart(beams: int) -> None:
    torch.manual_seed(0)
    whole = network(denoiser=Causal(layers=1, heads=2, dims=DIMS))
    it = captioner(process=Autoregressive(beams=beams, dims=DIMS), network=whole)
    trained(it, steps=200, lr=1e-2)
    it.modules().eval()
    assert [each.caption for each in captions(it, data(it).features, rng())] == CAPTIONS
