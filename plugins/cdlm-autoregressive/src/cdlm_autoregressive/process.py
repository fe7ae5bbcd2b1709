"""Word after word from the left: the captioner that is no diffusion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from cdlm.network import withhold
from cdlm.parts.ensemble import pooled
from cdlm.records import Batch, Condition, Dims, Drawn, Once, State
from cdlm.sample import forbidden, to_possible
from cdlm.values import NonNegative, Positive
from cdlm_autoregressive.causal import Causal, Past
from cdlm_autoregressive.search import Beams, Pick, drawn, likeliest

if TYPE_CHECKING:
    from cdlm.compose import Parts


class Autoregressive(nn.Module):
    """Every word given the words before it and the image; captions are said from the left.

    Loss, in nats a word: -sum_l log p(word_l | words before it, image) / words, the end counted.
    A caption is found by beam search for the largest log p / ((5 + words) / 6)^penalty; with one
    beam that is greedy. With a temperature words are drawn instead, from softmax(logits / it).
    Keys and values of what is said are kept, so that a word is one pass over one place.
    Shapes: states are ids B L, padding what is not said yet; t = 1 - said / L.
    The end of a caption is a word that it says: lengths that are drawn would cut captions short.
    Source: Vinyals et al. 2015 (teacher forcing, beam search); the penalty Wu et al. 2016 (GNMT),
    eq. 14.
    Raises ValueError for several beams with a temperature.
    """

    needs: ClassVar[set[str]] = {"causal", "generated_end"}
    provides: ClassVar[set[str]] = {"ensemble", "draws", "search"}
    without: ClassVar[set[str]] = {
        "schedule", "noise", "timesteps", "target", "self_conditioning", "guidance", "variance",
        "loss", "rounding", "grid", "sampler",
    }  # fmt: skip
    afterwards: ClassVar[set[str]] = {"beams", "penalty", "temperature"}

    def __init__(
        self,
        *,
        beams: Positive = 1,  # captions that are followed at a time; 1: greedy
        penalty: NonNegative = 0.0,  # of short captions, among beams; 0: none, 0.6 to 1 are usual
        temperature: NonNegative = 0.0,  # of drawn words; 0: none is drawn
        dims: Dims,
    ):
        super().__init__()
        if beams > 1 and temperature:
            raise ValueError(f"temperature = {temperature}: with {beams} beams no word is drawn")
        self.beams, self.penalty, self.temperature = beams, penalty, temperature
        self.start = nn.Parameter(0.02 * torch.randn(dims.width))  # stands before the first word

    def loss(self, parts: Parts, batch: Batch, rng: Generator) -> dict[str, Tensor]:
        logits = self.logits(parts, batch.ids, withhold(batch, 0.0, rng))
        missed = F.cross_entropy(logits.transpose(1, 2), batch.ids, reduction="none")
        return {"nll": (missed.where(batch.mask, 0.0).sum(1) / batch.mask.sum(1)).mean()}

    def logits(self, parts: Parts, ids: Tensor, condition: Condition) -> Tensor:
        """A score for each next word, given those before it. ids B L -> B L V."""
        x = parts.embedding(ids)
        x = torch.cat([self.start.to(x).expand(len(x), 1, -1), x[:, :-1]], 1)
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        said = parts.network(x, x.new_zeros(len(x)), condition, everywhere)
        return parts.embedding.logits(said.float())

    @torch.no_grad()
    def draw(self, parts: Parts, condition: Condition, rng: Generator) -> Drawn:
        """A caption for each row, word after word."""
        places = to_possible(parts, parts.length.draw(condition, rng))
        *_, last = self.said(parts, condition, places, 1, drawn(1.0, rng))
        ids, ends = last.x, (last.x == parts.tokenizer.end) | (last.x == parts.tokenizer.pad)
        before = ends.int().cumsum(1) - ends.int()
        order = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return Drawn(ids=ids, mask=places & (before == 0), order=order)

    def log_p(self, parts: Parts, drawn: Drawn, condition: Condition, rng: Generator) -> Tensor:
        """Of drawn captions, their end counted; exact. -> B."""
        logits = self.logits(parts, drawn.ids, condition)
        barred = forbidden(parts, logits.device)
        if barred is not None:
            logits = logits.masked_fill(barred, -torch.inf)
        each = logits.log_softmax(2).gather(2, drawn.ids[..., None])[..., 0]
        return each.where(drawn.mask, 0.0).sum(1)

    def sample(
        self, parts: Parts, condition: Condition, mask: Tensor, steps: int | None, rng: Generator
    ) -> Iterator[State]:
        """A state for each word; `steps` has no effect."""
        if self.searches:
            yield from self.search(parts, condition, mask, 1)
        else:
            yield from self.said(parts, condition, mask, 1, drawn(self.temperature, rng))

    @property
    def searches(self) -> bool:
        """Without a temperature no word is drawn."""
        return not self.temperature

    def search(
        self, parts: Parts, condition: Condition, mask: Tensor, count: int
    ) -> Iterator[State]:
        """The best captions of each row; a state for each word.

        There are as many beams as captions that are asked for, if the recipe says fewer.
        """
        beams = max(self.beams, count)
        pick = likeliest(beams, self.penalty)
        yield from self.said(parts, condition, mask, beams, pick, count)

    def said(
        self,
        parts: Parts,
        condition: Condition,
        mask: Tensor,
        count: int,
        pick: Pick,
        best: int = 1,
    ) -> Iterator[State]:
        """A state for each word of so many captions that are followed, of the best of them."""
        ends = (parts.tokenizer.pad, parts.tokenizer.end)
        barred, length = forbidden(parts, mask.device), mask.shape[1]
        beams = Beams.empty(mask, count, ends[0])
        features, keep = (
            x.repeat_interleave(count, 0) for x in (condition.features, condition.keep)
        )
        condition = Condition(features=features, keep=keep, once=Once({}))
        readers = [Reader.begin(it, condition, length) for it in parts.voices]
        yield State(x=beams.best(best), t=1.0)
        for place in range(length):
            bars = None if barred is None else barred[place]
            read = [it.read(beams.ids, place, bars) for it in readers]
            shares = pooled([it for it, _ in read])
            last = ~mask[:, place + 1] if place + 1 < length else mask.new_ones(len(mask))
            beams, parent = beams.grown(shares, place, last, ends, pick)
            readers = [it.of(parent) for _, it in read]
            over = place + 1 == length or bool(beams.ended.all())
            yield State(x=beams.best(best), t=0.0 if over else 1 - (place + 1) / length)
            if over:
                return

    def words(self, parts: Parts, state: State, mask: Tensor) -> Tensor:
        """What is said so far, by the best beam."""
        return state.x.masked_fill(~mask, parts.tokenizer.pad)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One voice's network, and all that it keeps of what it has read."""

    parts: Parts
    condition: Condition  # of every beam of every image
    x: Tensor  # BK L E: the words before each place, as far as they are said
    past: Past | None

    @classmethod
    def begin(cls, parts: Parts, condition: Condition, length: int) -> Reader:
        """Nothing read; the condition is every beam's."""
        assert isinstance(parts.process, Autoregressive), "all voices have the same process"
        x = parts.process.start.detach().expand(len(condition.features), length, -1).clone()
        return cls(parts=parts, condition=condition, x=x, past=None)

    def read(self, ids: Tensor, place: int, barred: Tensor | None) -> tuple[Tensor, Reader]:
        """log p of each word at a place, given the ids B K L before it. barred V -> B K V."""
        if place:
            self.x[:, place] = self.parts.embedding(ids[..., place - 1].flatten())
        network = self.parts.network
        everywhere = torch.ones(self.x.shape[:2], dtype=torch.bool, device=self.x.device)
        stream = network.stream(self.x, self.x.new_zeros(len(self.x)), self.condition, everywhere)
        denoiser = network.denoiser
        assert isinstance(denoiser, Causal), "it provides what the process needs"
        h, past = denoiser.extend(stream, place, self.past)
        logits = self.parts.embedding.logits(network.write(h)[:, 0].float())
        if barred is not None:
            logits = logits.masked_fill(barred, -torch.inf)
        return logits.log_softmax(1).view(*ids.shape[:2], -1), replace(self, past=past)

    def of(self, parent: Tensor) -> Reader:
        """What it has read of these beams B K."""
        b, k = parent.shape
        if k == 1:
            return self
        rows = (torch.arange(b, device=parent.device)[:, None] * k + parent).flatten()
        past = [(keys[rows], values[rows]) for keys, values in self.past or ()]
        return replace(self, x=self.x[rows], past=past)
