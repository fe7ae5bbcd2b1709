"""Against closed forms: a network that knows the data, and what the process makes of it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cdlm_masked.masked import Masked, ranked
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from cdlm.compose import Parts
from cdlm.errors import CdlmError
from cdlm.parts.lengths import Generated, Predicted
from cdlm.records import Batch, Condition
from cdlm.sample import sample, words
from cdlm.testing import conformance
from cdlm.testing.examples import DIMS, condition, rng, stir
from cdlm.testing.whole import captioner, data, trained

test_masked = conformance("process", "masked")
test_masked_best_first = conformance("process", "masked", order="confidence", temperature=0.0)
test_masked_revised = conformance("process", "masked", order="revised", temperature=0.0)
test_masked_even = conformance("process", "masked", weighting="even")
test_masked_beams = conformance("process", "masked", order="left", temperature=0.0, beams=3)
test_masked_concentrated = conformance("process", "masked", heard="shown")
test_masked_cosine = conformance("process", "masked", alpha="cosine", steps=4)

V, L = 3, 3
CAPTIONS = torch.tensor(list(itertools.product(range(V), repeat=L)))  # V^L of them
SHARES = torch.rand(len(CAPTIONS), generator=rng(), dtype=torch.float64).square()
SHARES = SHARES / SHARES.sum()


class OneHot(nn.Module):
    """Words as unit vectors, and scores as they come."""

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.one_hot(ids, V).double()

    def logits(self, x: Tensor) -> Tensor:
        return x.double()


class Knowing(nn.Module):
    """The network that knows SHARES: the log of every word's share, given what is there."""

    def forward(self, x: Tensor, t: Tensor, *_: Any) -> Tensor:
        there = (x.sum(2) - 1).abs() < 1e-6  # a hidden word is no unit vector
        fits = (x.argmax(2)[:, None] == CAPTIONS) | ~there[:, None]
        weight = fits.all(2) * SHARES  # B captions
        table = torch.einsum("bc,clv->blv", weight, OneHot()(CAPTIONS))
        return (table / table.sum(2, keepdim=True)).log()


class Fixed:
    """One noise level for all."""

    def __init__(self, t: float):
        self.t = t

    def __call__(self, batch: int, rng: Generator) -> tuple[Tensor, Tensor]:
        return torch.full((batch,), self.t), torch.ones(batch)

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Nothing to learn from."""


def knowing(**others: Any) -> Any:
    """The parts around the network that knows."""
    dims = DIMS.__class__(**{**vars(DIMS), "vocab": V, "width": V, "length": L})
    process = Masked(**others, dims=dims).double()
    return captioner(dims=dims, process=process, embedding=OneHot(), network=Knowing())


def hidden(seen: Tensor) -> Tensor:
    """Captions of which nothing is shown yet."""
    return torch.full(seen.shape, DIMS.vocab).masked_fill(~seen, 0)


def one(i: int) -> Condition:
    whole = condition()
    return Condition(features=whole.features[i : i + 1], keep=whole.keep[i : i + 1])


def batch(ids: Tensor) -> Batch:
    features = torch.zeros(len(ids), 1, DIMS.image_width)
    return Batch(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), features=features)


@pytest.mark.parametrize("alpha", ["linear", "cosine"])
def test_the_loss_of_a_network_that_knows_is_the_captions_log_likelihood(alpha: str) -> None:
    """Of each caption, to Monte Carlo error: the mean over t and over what is hidden."""
    parts = knowing(alpha=alpha)
    for row in (0, 5, 22):
        ids = CAPTIONS[row].expand(2000, L)
        draws = torch.stack(
            [L * parts.process.loss(parts, batch(ids), rng(i))["nelbo"] for i in range(40)]
        )
        error = float(draws.std() / len(draws) ** 0.5)
        assert abs(float(draws.mean()) + float(SHARES[row].log())) < 4 * error + 1e-3
        assert error < 0.1


def test_the_loss_of_a_network_that_knows_is_the_entropy() -> None:
    """And that of one that knows nothing, log V a word: by quadrature over t, exactly."""
    entropy = -float((SHARES * SHARES.log()).sum())
    process, found = Masked(dims=DIMS), 0.0
    nodes = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for hidden in itertools.product([False, True], repeat=L):
        gone = torch.tensor(hidden)
        ids = CAPTIONS.masked_fill(gone, V)
        known = Knowing()(torch.where((ids == V)[..., None], 0.1, OneHot()(ids % V)), ids)
        missed = -known.gather(2, CAPTIONS[..., None])[..., 0][:, gone].sum(1)
        chance = process.left(nodes) ** (L - gone.sum()) * (1 - process.left(nodes)) ** gone.sum()
        found += float((SHARES * missed).sum() * (process.rate(nodes) * chance).mean())
    assert found == pytest.approx(entropy, rel=1e-6)


@pytest.mark.parametrize(
    ("order", "steps", "alpha"),
    [("random", 200, "linear"), ("random", 200, "cosine"), ("confidence", L, "linear")],
)
def test_a_network_that_knows_is_sampled_as_often_as_its_shares_say(
    order: str, steps: int, alpha: str
) -> None:
    """Chi-square of 4,000 samples, 26 degrees of freedom, below its 99.9 % point.

    Best first too: with one word a step any order is right, for places are chosen before words.
    """
    parts = knowing(order=order, steps=steps, alpha=alpha)
    condition = nothing(4000)
    seen = torch.ones(4000, L, dtype=torch.bool)
    *_, last = sample(parts, condition, seen, None, rng(1))
    assert chi_square(last.x) < 54.1


def nothing(count: int) -> Condition:
    """So many images of which nothing is known."""
    keep = torch.ones(count, dtype=torch.bool)
    return Condition(features=torch.zeros(count, 1, 1), keep=keep)


def chi_square(ids: Tensor) -> float:
    """How far the counts of these captions are from what the shares would have."""
    wanted = len(ids) * SHARES
    counts = (ids * torch.tensor([V * V, V, 1])).sum(1).bincount(minlength=len(CAPTIONS))
    return float(((counts - wanted).square() / wanted).sum())


@pytest.mark.parametrize("order", ["left", "random"])
def test_what_a_network_that_knows_draws_has_its_shares_and_their_log_p(order: str) -> None:
    """Of three words all three are looked at, so that log p is no estimate."""
    parts = knowing(order=order)
    parts = replace(parts, length=Generated(dims=parts.dims))
    drawn = parts.process.draw(parts, nothing(4000), rng(1))
    assert chi_square(drawn.ids) < 54.1
    found = parts.process.log_p(parts, drawn, nothing(4000), rng(2))
    row = (drawn.ids * torch.tensor([V * V, V, 1])).sum(1)
    assert_close(found, SHARES[row].log(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", ["left", "random"])
def test_log_p_of_long_captions_is_right_on_average(order: str) -> None:
    """Of 6 words 3 are looked at: the mean over many looks is that of 6, one word after another."""
    torch.manual_seed(0)
    parts = captioner(process=Masked(order=order, dims=DIMS))
    stir(parts.modules()).eval()
    given = condition()
    drawn = parts.process.draw(parts, given, rng())
    whole = torch.zeros(len(drawn.ids))
    row = torch.arange(len(drawn.ids))
    for said in range(DIMS.length):
        place = drawn.order[:, said]
        ids = drawn.ids.masked_fill(drawn.order.argsort(1) >= said, DIMS.vocab)
        t = torch.full_like(whole, 1 - said / DIMS.length)
        scores = parts.process.at(parts, ids, place, t, given, drawn.mask, None)
        whole += scores[row, drawn.ids[row, place]]
    looks = torch.stack([parts.process.log_p(parts, drawn, given, rng(i)) for i in range(400)])
    error = looks.std(0) / 20
    assert bool(((looks.mean(0) - whole).abs() < 4 * error + 1e-4).all())
    assert bool((error > 0).any())


def test_draws_have_any_of_the_lengths_that_beams_are_tried_with() -> None:
    torch.manual_seed(0)
    length = Predicted(draw="quantile", dims=DIMS)
    process = Masked(order="left", temperature=0.0, beams=2, lengths=2, dims=DIMS)
    parts = captioner(process=process, length=length)
    features = torch.randn(1, DIMS.image_tokens, DIMS.image_width).expand(50, -1, -1)
    given = Condition(features=features, keep=torch.ones(50, dtype=torch.bool))
    longest = int(length.draw(given, rng()).sum(1)[0])
    drawn = parts.process.draw(parts, given, rng())
    assert set(drawn.mask.sum(1).tolist()) == {longest, longest - 1}


@pytest.mark.parametrize("alpha", ["linear", "cosine"])
@pytest.mark.parametrize("order", ["random", "confidence"])
def test_words_are_shown_as_alpha_says_and_then_stay(order: str, alpha: str) -> None:
    parts = knowing(order=order, alpha=alpha)
    n = 3000
    condition = Condition(features=torch.zeros(n, 1, 1), keep=torch.ones(n, dtype=torch.bool))
    states = list(sample(parts, condition, torch.ones(n, L, dtype=torch.bool), 6, rng()))
    for before, after in itertools.pairwise(states):
        there = before.x < V
        assert torch.equal(after.x[there], before.x[there]), "a word that was shown has changed"
        share = float((after.x < V).double().mean())
        wanted = float(parts.process.left(torch.tensor(after.t)))
        slack = 0.5 / L + 1e-6 if order == "confidence" else 0.02
        assert abs(share - wanted) < slack


def test_a_word_of_which_it_was_less_sure_is_hidden_again() -> None:
    """Of three places the surest of all is kept in the first step, the surest two in the second."""
    process = Masked(order="revised", dims=DIMS)
    seen, hidden = torch.ones(1, 3).bool(), torch.tensor([[False, True, True]])
    sure = torch.tensor([[-2.0, -0.1, -1.0]])
    steps = [(1, 2 / 3), (2 / 3, 1 / 3)]
    stays = [process.stays(hidden, sure, seen, t, s, rng()) for t, s in steps]
    assert torch.cat(stays).tolist() == [[True, False, True], [True, False, False]]


def test_the_even_loss_is_the_mean_over_hidden_words() -> None:
    """Of a network that knows nothing, log V; of a caption that is all there, 0."""
    torch.manual_seed(0)
    for least, wanted in ((0.9999, math.log(DIMS.vocab)), (0.0001, 0.0)):
        level = Fixed(least)
        parts = captioner(process=Masked(weighting="even", dims=DIMS), timesteps=level)
        nn.init.zeros_(parts.embedding.weight)
        nll = parts.process.loss(parts, data(parts).batch(0, 4, 0), rng())["nll"]
        assert nll.item() == pytest.approx(wanted, rel=1e-5)


def test_the_weight_is_how_fast_words_are_shown() -> None:
    """rate = -alpha' / (1 - alpha), by numeric differentiation."""
    t, d = torch.linspace(0.05, 0.95, 19, dtype=torch.float64), 1e-6
    for alpha in ("linear", "cosine"):
        process = Masked(alpha=alpha, dims=DIMS)
        slope = (process.left(t - d) - process.left(t + d)) / (2 * d)
        assert torch.allclose(process.rate(t), slope / (1 - process.left(t)), rtol=1e-6)
    assert torch.equal(Masked(dims=DIMS).rate(t), 1 / t)


def test_the_likeliest_words_need_no_draw() -> None:
    parts = knowing(temperature=0.0, order="confidence", steps=L)
    one = Condition(features=torch.zeros(1, 1, 1), keep=torch.ones(1, dtype=torch.bool))
    seen = torch.ones(1, L, dtype=torch.bool)
    ends = {tuple(list(sample(parts, one, seen, None, rng(i)))[-1].x[0].tolist()) for i in (0, 1)}
    assert len(ends) == 1


@pytest.mark.parametrize("order", ["left", "confidence"])
def test_one_beam_is_the_surest_word_a_step(order: str) -> None:
    """Two beams of which the second is never followed, against plain sampling, a word a step."""
    torch.manual_seed(0)
    one = captioner(process=Masked(order=order, temperature=0.0, steps=6, dims=DIMS))
    stir(one.modules()).eval()
    seen, given = torch.ones(3, DIMS.length).bool(), condition()
    *_, plain = sample(one, given, seen, DIMS.length, rng())
    found = list(one.process.search(one, given, seen, 1))
    assert torch.equal(found[-1].x, plain.x)


@pytest.mark.parametrize("order", ["left", "confidence"])
def test_as_many_beams_as_captions_find_the_likeliest_of_all(order: str) -> None:
    parts = knowing(order=order, temperature=0.0, beams=V**L)
    given = Condition(features=torch.zeros(2, 1, 1), keep=torch.ones(2, dtype=torch.bool))
    *_, last = sample(parts, given, torch.ones(2, L, dtype=torch.bool), None, rng())
    assert torch.equal(last.x, CAPTIONS[SHARES.argmax()].expand(2, L))


def test_the_candidates_of_a_search_are_the_best_captions() -> None:
    """All there are of one length, by their shares; there are beams for as many as are wanted."""
    parts = knowing(order="left", temperature=0.0, beams=2)
    given = Condition(features=torch.zeros(2, 1, 1), keep=torch.ones(2, dtype=torch.bool))
    *_, last = parts.process.search(parts, given, torch.ones(2, L, dtype=torch.bool), V**L)
    best = CAPTIONS[SHARES.argsort(descending=True)]
    assert torch.equal(last.x.view(2, V**L, L), best.expand(2, V**L, L))


def test_where_fewer_captions_are_possible_the_best_is_said_again() -> None:
    score = torch.tensor([[-2.0, -1, -torch.inf], [-torch.inf, -torch.inf, -3]])
    assert ranked(score, 3).tolist() == [1, 0, 1, 5, 5, 5]


def test_beams_follow_captions_of_different_lengths_each_to_its_end() -> None:
    torch.manual_seed(0)
    parts = captioner(process=Masked(order="left", temperature=0.0, beams=3, dims=DIMS))
    stir(parts.modules()).eval()
    seen = torch.arange(DIMS.length) < torch.tensor([2, 6, 4])[:, None]
    *_, last = sample(parts, condition(), seen, None, rng())
    assert bool((last.x[seen] < DIMS.vocab).all())
    alone = [list(sample(parts, one(i), seen[i : i + 1], None, rng()))[-1].x[0] for i in range(3)]
    assert torch.equal(torch.stack(alone).where(seen, 0), last.x.where(seen, 0))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_of_several_lengths_the_likeliest_caption_is_said(penalty: float) -> None:
    """By log p of its length and of its words, among what the beams of each length find alone."""
    torch.manual_seed(0)
    process = Masked(order="left", temperature=0.0, beams=2, lengths=3, penalty=penalty, dims=DIMS)
    length = Predicted(dims=DIMS)
    parts = captioner(process=process, length=length)
    stir(parts.modules()).eval()
    length.head[2].weight.data *= 30  # to each image another length
    places, given = torch.arange(DIMS.length).expand(3, -1), condition()
    *_, last = sample(parts, given, places < 5, None, rng())
    shares = parts.length.logits(given).log_softmax(1)
    process.lengths = 1
    totals, found = [], []
    for many in (3, 4, 5):
        *_, alone = sample(parts, given, places < many, None, rng())
        found.append(words(parts, alone, places < many))
        said = left_to_right(parts, alone.x, given, places < many)
        totals.append((shares[:, many - 1] + said) / ((5 + many) / 6) ** penalty)
    best = torch.stack(totals).argmax(0)
    assert len(best.unique()) > 1
    assert torch.equal(words(parts, last, places < 5), torch.stack(found)[best, torch.arange(3)])


def left_to_right(parts: Parts, ids: Tensor, given: Condition, mask: Tensor) -> Tensor:
    """log p of captions, word after word. Shapes: B L -> B."""
    total = torch.zeros(len(ids))
    for place in range(int(mask.sum(1).max())):
        hidden = mask & (torch.arange(ids.shape[1]) >= place)
        now, t = ids.masked_fill(hidden, parts.process.vocab), hidden.sum(1) / mask.sum(1)
        scores = parts.process.log_shares(parts, now, t, given, mask)[:, place]
        total += scores.gather(1, ids[:, place : place + 1])[:, 0].where(hidden[:, place], 0.0)
    return total


def test_lengths_that_nothing_predicts_are_refused() -> None:
    with pytest.raises(ValueError, match="give beams too"):
        Masked(lengths=3, dims=DIMS)
    parts = captioner(process=Masked(order="left", temperature=0, beams=2, lengths=3, dims=DIMS))
    seen = torch.ones(3, DIMS.length).bool()
    with pytest.raises(CdlmError, match="takes length = "):
        list(sample(parts, condition(), seen, None, rng()))


def test_beams_of_drawn_words_are_refused() -> None:
    for wrong in ({"temperature": 1.0, "order": "left"}, {"temperature": 0.0, "order": "random"}):
        with pytest.raises(ValueError, match="3 beams need temperature = 0"):
            Masked(beams=3, dims=DIMS, **wrong)


def test_hidden_places_are_heard_by_nobody_if_so_wished() -> None:
    """What stands for a hidden word then changes what is said at hidden places alone."""
    ids, seen = torch.tensor([[4, 5, DIMS.vocab, 6, DIMS.vocab, 1]]), torch.ones(1, 6).bool()
    given = Condition(features=torch.randn(1, 2, 10, generator=rng()), keep=torch.ones(1).bool())
    for heard in ("all", "shown"):
        torch.manual_seed(0)
        parts = captioner(process=Masked(heard=heard, dims=DIMS))
        one = parts.process.log_shares(parts, ids, torch.tensor([0.3]), given, seen)
        nn.init.constant_(parts.process.hidden, 3.0)
        two = parts.process.log_shares(parts, ids, torch.tensor([0.3]), given, seen)
        same = torch.isclose(one, two, atol=1e-5).all(2)[0].tolist()
        shown = heard == "shown"
        assert same == [shown, shown, False, shown, False, shown]


def test_a_predicted_length_is_taught() -> None:
    parts = captioner(process=Masked(dims=DIMS), length=Predicted(dims=DIMS))
    terms = parts.process.loss(parts, data(parts).batch(0, 4, 0), rng())
    assert set(terms) == {"nelbo", "length"}
    terms["length"].backward()
    assert isinstance(parts.length, Predicted) and parts.length.head[0].weight.grad is not None


def test_four_captions_are_learnt_by_heart() -> None:
    from cdlm.sample import captions
    from cdlm.testing.examples import CAPTIONS as TEXTS

    torch.manual_seed(0)
    parts = captioner(process=Masked(steps=6, order="confidence", temperature=0.0, dims=DIMS))
    trained(parts, steps=400, lr=1e-2)
    parts.modules().eval()
    said = [it.caption for it in captions(parts, data(parts).features, rng())]
    assert said == TEXTS
