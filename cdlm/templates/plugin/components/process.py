"""A process that replaces words by others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from cdlm.network import guided, withhold
from cdlm.records import Batch, Condition, State
from cdlm.sample import forbidden
from cdlm.values import Positive

if TYPE_CHECKING:
    from cdlm.compose import Parts


class Component(nn.Module):
    """At t a word has been replaced by any word of the vocabulary, with probability t.

    Training: the network says of every place which word stood there; cross-entropy, in nats.
    Sampling begins with words at random; a step from t to s draws all words that the network
    thinks of, and replaces each by any word with probability s.
    Shapes: states are ids B L.
    Source: Austin et al. 2021 (D3PM), appendix A.2.1, with the network's x0 noised again.
    """

    provides: ClassVar[set[str]] = {"times"}
    without: ClassVar[set[str]] = {
        "schedule", "noise", "target", "self_conditioning", "variance", "loss", "rounding", "grid",
        "sampler",
    }  # fmt: skip
    afterwards: ClassVar[set[str]] = {"steps"}

    def __init__(self, *, steps: Positive = 20):  # of sampling, unless a call asks for others
        super().__init__()
        self.steps = steps

    def loss(self, parts: Parts, batch: Batch, rng: Generator) -> dict[str, Tensor]:
        """How surprised the network is by the words that stood there."""
        mask = parts.length.mask(batch)
        condition = withhold(batch, parts.guidance.drop, rng)
        t, weight = parts.timesteps(len(mask), rng)
        ids = _replaced(batch.ids, t[:, None], parts.dims.vocab, rng)
        scores = _scores(parts, ids, t, condition, mask)
        missed = F.cross_entropy(scores.transpose(1, 2), batch.ids, reduction="none")
        each = (missed * mask).sum(1) / mask.sum(1)
        parts.timesteps.observe(t, each.detach())
        return {"words": (weight * each).mean()}

    def sample(
        self, parts: Parts, condition: Condition, mask: Tensor, steps: int | None, rng: Generator
    ) -> Iterator[State]:
        """From words at random to those that the network stays with."""
        barred, vocab = forbidden(parts, mask.device), parts.dims.vocab
        ids = _replaced(torch.zeros_like(mask, dtype=torch.long), 1.0, vocab, rng)
        yield State(x=ids, t=1.0)
        count = steps or self.steps
        for t, s in pairwise(1 - i / count for i in range(count + 1)):
            times = torch.full((len(ids),), t, device=ids.device)
            scores = _scores(parts, ids, times, condition, mask)
            if barred is not None:
                scores = scores.masked_fill(barred, -torch.inf)
            drawn = torch.multinomial(scores.softmax(-1).flatten(0, 1), 1, generator=rng)
            said = drawn.view(mask.shape)
            ids = _replaced(said, s, vocab, rng)
            yield State(x=ids, t=s, x0_hat=said)

    def words(self, parts: Parts, state: State, mask: Tensor) -> Tensor:
        """What the network said last, padding outside the mask."""
        ids = state.x if state.x0_hat is None else state.x0_hat
        return ids.masked_fill(~mask, parts.tokenizer.pad)


def _replaced(ids: Tensor, share: Tensor | float, vocab: int, rng: Generator) -> Tensor:
    """Each word, or with probability `share` any other. Shapes: B L."""
    other = torch.randint(0, vocab, ids.shape, generator=rng, device=ids.device)
    draw = torch.rand(ids.shape, generator=rng, device=ids.device)
    return torch.where(draw < share, other, ids)


def _scores(parts: Parts, ids: Tensor, t: Tensor, condition: Condition, mask: Tensor) -> Tensor:
    """The network's score of every word at every place, under guidance. -> B L V."""
    said = guided(parts, parts.embedding(ids), t, condition, mask)
    return parts.embedding.logits(said.float())
