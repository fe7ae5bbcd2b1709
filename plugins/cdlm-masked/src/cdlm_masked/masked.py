"""Masked diffusion: words are hidden one after the other, and the network says which they were."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from cdlm.errors import CdlmError
from cdlm.network import guided, withhold
from cdlm.parts.ensemble import pooled
from cdlm.parts.lengths import Predicted
from cdlm.records import Batch, Condition, Dims, Drawn, Once, State
from cdlm.sample import forbidden, to_possible
from cdlm.values import NonNegative, Positive
from cdlm_masked.search import Beams

if TYPE_CHECKING:
    from cdlm.compose import Parts


PLACES = 3  # of a drawn caption that its log p is estimated from


class Masked(nn.Module):
    """Words are hidden instead of blurred; at t a word is still there with probability alpha(t).

    Loss, in nats a position: w(t) sum_l -log p(word_l | what is left) / L over the hidden l,
    w = -alpha'(t) / (1 - alpha(t)), which is 1 / t for alpha = 1 - t. Its mean over t bounds the
    negative log-likelihood of the caption, and is equal to it for a network that knows p. With
    weighting = "even" it is the mean of -log p over the hidden words instead, 0 if there are none:
    far less noisy where few words are hidden, but no bound.
    Sampling begins with everything hidden. From t to s a word is shown with probability
    (alpha(s) - alpha(t)) / (1 - alpha(t)), and once shown it stays ("random"); or as many as that
    gives on average are shown, where the network is surest ("confidence"); a shown word of which it
    was less sure than of those that come later is hidden again ("revised"); "left" is word by word.
    With beams, so many captions are followed, which show a word at the same place in every step;
    with lengths, so many of the drawn length and of each of the next shorter ones, and of all the
    one is said whose (log p(length) + log p(words | length)) / ((5 + words) / 6)^penalty is
    highest, by the head of `predicted`.
    No word is "hidden", and what is there is never predicted (SUBS). A recipe's `length` says how
    long captions are; `predicted` is taught here, by a term `length`.
    Shapes: states are ids B L, hidden ones V.
    Source: Sahoo et al. 2024 (MDLM), eq. 10 and section 3.2; Zhu et al. 2022 (DDCap), section 3.3
    (best first, length head, and `heard`, its concentrated attention); "even" and "revised":
    Ghazvininejad et al. 2019 (Mask-Predict), sections 2 and 3; the penalty: Wu et al. 2016 (GNMT),
    eq. 14.
    """

    provides: ClassVar[set[str]] = {"times", "length_loss", "ensemble", "draws", "search"}
    without: ClassVar[set[str]] = {
        "schedule", "noise", "target", "self_conditioning", "variance", "loss", "rounding", "grid",
        "sampler",
    }  # fmt: skip
    afterwards: ClassVar[set[str]] = {
        "steps",
        "order",
        "temperature",
        "beams",
        "lengths",
        "penalty",
    }

    def __init__(
        self,
        *,
        steps: Positive = 20,  # of sampling, unless the caller asks for another number
        order: Literal["random", "left", "confidence", "revised"] = "random",  # which word is first
        temperature: NonNegative = 1.0,  # of the drawn words; 0: always the likeliest
        beams: Positive = 1,  # captions that are followed at a time; then a step shows one word
        lengths: Positive = 1,  # that beams are tried with: the drawn one and shorter ones
        penalty: NonNegative = 0.0,  # of short captions, among lengths; 0: none
        alpha: Literal["linear", "cosine"] = "linear",  # 1 - t, or 1 - sin(pi t / 2)
        heard: Literal["all", "shown"] = "all",  # by every place: hidden places too, or not
        weighting: Literal["bound", "even"] = "bound",  # of a caption's hidden words, over t
        dims: Dims,
    ):
        super().__init__()
        if beams > 1 and (temperature or order in ("random", "revised")):
            raise ValueError(
                f'{beams} beams need temperature = 0 and order = "left" or "confidence": they '
                "follow the likeliest words, place after place"
            )
        if lengths > 1 and beams == 1:
            raise ValueError(f"{lengths} lengths are for beams: give beams too, such as beams = 5")
        self.steps, self.order, self.temperature, self.alpha = steps, order, temperature, alpha
        self.beams, self.lengths, self.penalty = beams, lengths, penalty
        self.heard, self.weighting = heard, weighting
        # what stands for a hidden word, at each place: else all would be alike to rotary positions
        self.hidden = nn.Parameter(0.02 * torch.randn(dims.length, dims.width))
        self.vocab = dims.vocab

    # ------------------------------------------------------------------------------ the way there

    def loss(self, parts: Parts, batch: Batch, rng: Generator) -> dict[str, Tensor]:
        mask = parts.length.mask(batch)
        condition = withhold(batch, parts.guidance.drop, rng)
        t, weight = parts.timesteps(len(mask), rng)
        draw = torch.rand(mask.shape, generator=rng, device=mask.device)
        hidden = mask & (draw >= self.left(t)[:, None])
        ids = batch.ids.masked_fill(hidden, self.vocab)
        scores = self.log_shares(parts, ids, t, condition, mask)
        missed = -scores.gather(2, batch.ids[..., None])[..., 0].where(hidden, 0.0)
        if self.weighting == "bound":
            nats = self.rate(t) * missed.sum(1) / mask.sum(1)
        else:
            nats = missed.sum(1) / hidden.sum(1).clamp(min=1)
        parts.timesteps.observe(t, nats.detach())
        terms = {"nelbo" if self.weighting == "bound" else "nll": (weight * nats).mean()}
        if isinstance(parts.length, Predicted):
            places = parts.length.logits(condition)
            terms["length"] = F.cross_entropy(places, batch.mask.sum(1) - 1)
        return terms

    def left(self, t: Tensor) -> Tensor:
        """alpha: the share of words that are not hidden at t."""
        return 1 - t if self.alpha == "linear" else 1 - (t * math.pi / 2).sin()

    def rate(self, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha): how fast hidden words are shown, going back from t."""
        if self.alpha == "linear":
            return 1 / t
        angle = t * math.pi / 2
        return math.pi / 2 * angle.cos() / angle.sin()

    def log_shares(
        self, parts: Parts, ids: Tensor, t: Tensor, condition: Condition, mask: Tensor
    ) -> Tensor:
        """log p of every word at every place, given those that are not hidden. -> B L V."""
        return allowed(parts, self.answers(parts, ids, t, condition, mask), None)

    def answers(
        self, parts: Parts, ids: Tensor, t: Tensor, condition: Condition, mask: Tensor
    ) -> list[Tensor]:
        """What each voice says of every place, in the space of its word vectors. -> B L E."""
        hidden = ids == self.vocab
        seen = mask & ~hidden if self.heard == "shown" else mask
        there, said = ids.masked_fill(hidden, parts.tokenizer.pad), list[Tensor]()
        for voice in parts.voices:
            assert isinstance(voice.process, Masked), "all voices have the same process"
            x = voice.embedding(there)
            x = torch.where(hidden[..., None], voice.process.hidden.to(x), x)
            said.append(guided(voice, x, t, condition, seen).float())
        return said

    # ------------------------------------------------------------------- what it says by chance

    @torch.no_grad()
    def draw(self, parts: Parts, condition: Condition, rng: Generator) -> Drawn:
        """A caption for each row: word by word from the left, or where order is another, at random.

        Of the lengths that beams are tried with, one by chance.
        """
        longest = to_possible(parts, parts.length.draw(condition, rng))
        masks, _ = self.near(parts, condition, longest)
        masks = masks.unflatten(0, (len(condition.features), self.lengths))
        row = torch.arange(len(masks), device=masks.device)
        which = torch.randint(self.lengths, (len(masks),), generator=rng, device=masks.device)
        mask = masks[row, which]
        count, order = mask.sum(1), self.shuffled(mask, rng)
        condition, barred = replace(condition, once=Once({})), forbidden(parts, mask.device)
        ids = self.unsaid(parts, mask)
        for said in range(int(count.max())):
            place = order[:, said]
            t = (count - said).clamp(min=0) / count
            scores = self.at(parts, ids, place, t, condition, mask, barred)
            word = torch.multinomial(scores.exp(), 1, generator=rng)[:, 0]
            ids[row, place] = word.where(said < count, ids[row, place])
        return Drawn(ids=ids, mask=mask, order=order)

    def log_p(self, parts: Parts, drawn: Drawn, condition: Condition, rng: Generator) -> Tensor:
        """Of drawn captions, in their order: the sum over all places, estimated from a few. -> B.

        The places lie as far apart as can be, so that they are most of a short caption.
        """
        count, device = drawn.mask.sum(1), drawn.ids.device
        share = torch.rand(PLACES, len(count), generator=rng, device=device)
        share = (torch.arange(PLACES, device=device)[:, None] + share) / PLACES
        said = (share * count).long().clamp(max=count - 1).flatten()  # words before each place
        several = Drawn(**{name: it.repeat(PLACES, 1) for name, it in vars(drawn).items()})
        features, keep = condition.features.repeat(PLACES, 1, 1), condition.keep.repeat(PLACES)
        condition = Condition(features=features, keep=keep)
        later = several.order.argsort(1) >= said[:, None]
        ids = several.ids.masked_fill(several.mask & later, self.vocab)
        place = several.order.gather(1, said[:, None])[:, 0]
        t = 1 - said / count.repeat(PLACES)
        barred = forbidden(parts, device)
        scores = self.at(parts, ids, place, t, condition, several.mask, barred)
        word = several.ids.gather(1, place[:, None])
        return count * scores.gather(1, word).view(PLACES, -1).mean(0)

    def shuffled(self, mask: Tensor, rng: Generator) -> Tensor:
        """The places in the order in which words are drawn, those outside the mask at the end."""
        if self.order == "left":
            return torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        draw = torch.rand(mask.shape, generator=rng, device=mask.device)
        return draw.masked_fill(~mask, torch.inf).argsort(1)

    def at(
        self,
        parts: Parts,
        ids: Tensor,
        place: Tensor,
        t: Tensor,
        condition: Condition,
        mask: Tensor,
        barred: Tensor | None,
    ) -> Tensor:
        """log p of every word at one place B of each caption. -> B V."""
        row = torch.arange(len(ids), device=ids.device)
        said = [it[row, place][:, None] for it in self.answers(parts, ids, t, condition, mask)]
        return allowed(parts, said, barred, place)[:, 0]

    # ------------------------------------------------------------------------------- the way back

    def sample(
        self, parts: Parts, condition: Condition, mask: Tensor, steps: int | None, rng: Generator
    ) -> Iterator[State]:
        if self.searches:
            yield from self.search(parts, condition, mask, 1)
            return
        ids = self.unsaid(parts, mask)
        yield State(x=ids, t=1.0)
        condition, barred = replace(condition, once=Once({})), forbidden(parts, mask.device)
        sure = torch.zeros(mask.shape, device=mask.device)  # of the words that are shown
        n = steps or self.steps
        for t, s in pairwise(1 - step / n for step in range(n + 1)):
            times = torch.full((len(ids),), t, device=ids.device)
            scores = allowed(parts, self.answers(parts, ids, times, condition, mask), barred)
            hidden = ids == self.vocab
            estimate = ids.where(~hidden, self.drawn(scores, rng))
            sure = self.sureness(scores).where(hidden, sure)
            stays = self.stays(hidden, sure, mask, t, s, rng)
            ids = estimate.masked_fill(mask & stays, self.vocab)
            yield State(x=ids, t=s, x0_hat=estimate)

    @property
    def searches(self) -> bool:
        """With beams no word is drawn."""
        return self.beams > 1

    def search(
        self, parts: Parts, condition: Condition, mask: Tensor, count: int
    ) -> Iterator[State]:
        """The best captions of each row; a state for each word that is shown in all of its beams.

        Captions of each length are searched by themselves, so that none waits for longer ones.
        There are as many beams as captions that are asked for, if the recipe says fewer.
        """
        yield State(x=self.unsaid(parts, mask).repeat_interleave(count, 0), t=1.0)
        masks, likely = self.near(parts, condition, mask)
        barred, many = forbidden(parts, mask.device), masks.sum(1)
        beams = self.beams if self.beams * self.lengths >= count else count
        owner = torch.arange(len(mask), device=mask.device).repeat_interleave(self.lengths)
        alike = [(many == words).nonzero()[:, 0] for words in many.unique()]
        running = [
            self.search_alike(parts, condition, owner[rows], masks[rows], barred, beams)
            for rows in alike
        ]
        best = self.unsaid(parts, masks)[:, None].repeat(1, beams, 1)
        guessed, total = best.clone(), likely.new_zeros(len(masks), beams)
        for step in range(1, int(many.max()) + 1):
            for rows, search in zip(alike, running, strict=True):
                for ids, guess, log_p in islice(search, 1):  # nothing, once it is at its end
                    best[rows], guessed[rows], total[rows] = ids, guess, log_p.to(total)
            score = (total + likely[:, None]) / ((5 + many[:, None]) / 6) ** self.penalty
            chosen = ranked(score.view(len(mask), -1), count)
            t = float((many - step).clamp(min=0).sum() / many.sum())
            yield State(x=best.flatten(0, 1)[chosen], t=t, x0_hat=guessed.flatten(0, 1)[chosen])

    def search_alike(
        self,
        parts: Parts,
        condition: Condition,
        owner: Tensor,
        mask: Tensor,
        barred: Tensor | None,
        beams: int,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Beams of captions of one length, a word further in each step.

        Shapes: owner B, the image of each; mask B L -> ids B K L, the same with the best beam's
        guess at what is hidden, log p B K; the best first.
        """
        k, many = beams, int(mask[0].sum())
        rows, row = owner.repeat_interleave(k), torch.arange(len(mask), device=mask.device)
        condition = Condition(
            features=condition.features[rows], keep=condition.keep[rows], once=Once({})
        )
        found, seen = Beams.of(self.unsaid(parts, mask), k), mask.repeat_interleave(k, 0)
        for left in range(many, 0, -1):
            t = torch.full((len(rows),), left / many, device=mask.device)
            said = self.answers(parts, found.ids.flatten(0, 1), t, condition, seen)
            said = [it.unflatten(0, (len(mask), k)) for it in said]
            first = allowed(parts, [it[:, 0] for it in said], barred)  # of the best beam
            hidden = found.ids[:, 0] == self.vocab
            place = self.sureness(first).masked_fill(~hidden, -torch.inf).argmax(1)
            shares = allowed(parts, [it[row, :, place] for it in said], barred, place)
            found = found.grown(shares, place)
            guess = found.ids.where(found.ids != self.vocab, first.argmax(2)[:, None])
            yield found.ids, guess, found.total

    def unsaid(self, parts: Parts, mask: Tensor) -> Tensor:
        """Captions of which every word is hidden, padding outside the mask. B L."""
        ids = torch.full_like(mask, self.vocab, dtype=torch.long)
        return ids.masked_fill(~mask, parts.tokenizer.pad)

    def near(self, parts: Parts, condition: Condition, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The lengths that are tried of each image, one after the other, and log p of each.

        Shapes: mask B L -> (B lengths) L, (B lengths).   Raises CdlmError where none is predicted.
        """
        if self.lengths == 1:
            return mask, mask.new_zeros(len(mask), dtype=torch.float)
        if not isinstance(parts.length, Predicted):
            raise CdlmError(
                f"process masked: {self.lengths} lengths are told apart by how likely they are\n"
                '    that takes length = { use = "predicted" } in training; else lengths = 1'
            )
        places = torch.arange(mask.shape[1], device=mask.device)
        fewer = torch.arange(self.lengths, device=mask.device)
        last = (mask.sum(1, keepdim=True) - 1 - fewer).clamp(min=0)
        masks = to_possible(parts, (places <= last[..., None]).flatten(0, 1))
        shares = parts.length.logits(condition).log_softmax(1)
        return masks, shares.gather(1, masks.sum(1).view(len(mask), -1) - 1).flatten()

    def sureness(self, scores: Tensor) -> Tensor:
        """The places in their order: the largest is shown first. B L V -> B L."""
        if self.order != "left":
            return scores.amax(2)
        return -torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[:2]).float()

    def drawn(self, scores: Tensor, rng: Generator) -> Tensor:
        """A word for every place, by its share. B L V -> B L."""
        if not self.temperature:
            return scores.argmax(2)
        shares = (scores / self.temperature).softmax(2).flatten(0, 1)
        return torch.multinomial(shares, 1, generator=rng).view(scores.shape[:2])

    def stays(
        self, hidden: Tensor, sure: Tensor, mask: Tensor, t: float, s: float, rng: Generator
    ) -> Tensor:
        """Which places are hidden after the step from t to s. Shapes: B L; sure, how sure it is."""
        at, then = self.left(torch.tensor([t, s], dtype=torch.float64)).tolist()
        if self.order == "random":
            draw = torch.rand(hidden.shape, generator=rng, device=hidden.device)
            return hidden & (draw >= (then - at) / (1 - at))
        many = (mask.sum(1) * (1 - then) + 0.5).floor()
        choice = mask if self.order == "revised" else hidden
        rank = sure.masked_fill(~choice, torch.inf).argsort(1).argsort(1)
        return choice & (rank < many[:, None])

    def words(self, parts: Parts, state: State, mask: Tensor) -> Tensor:
        """The words that are shown, and the last guess at the others; padding at first."""
        ids = state.x if state.x0_hat is None else state.x0_hat
        return ids.masked_fill(~mask | (ids == self.vocab), parts.tokenizer.pad)


def ranked(score: Tensor, count: int) -> Tensor:
    """The rows of the best captions of each image, the best first; of beams that are none, that.

    Shapes: score B K, -inf for no caption -> B count, into the rows B K.
    """
    best = score.topk(count, 1)
    chosen = best.indices.where(best.values > -torch.inf, best.indices[:, :1])
    first = score.shape[1] * torch.arange(len(score), device=score.device)
    return (first[:, None] + chosen).flatten()


def allowed(
    parts: Parts, said: Sequence[Tensor], barred: Tensor | None, place: Tensor | None = None
) -> Tensor:
    """log p of every word that may stand at a place, by what each voice says of it.

    Shapes: said B L E, barred L V -> B L V; or of one place B of each row: said B K E -> B K V.
    """
    scores = [voice.embedding.logits(it) for voice, it in zip(parts.voices, said, strict=True)]
    if barred is not None:
        bars = barred if place is None else barred[place, None]
        scores = [it.masked_fill(bars, -torch.inf) for it in scores]
    return pooled([it.log_softmax(2) for it in scores])
