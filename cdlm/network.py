"""The network: widths, conditioning and denoiser in one module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from cdlm.protocols import Conditioning, Denoiser
from cdlm.records import Batch, Condition, Dims, Once, Stream

if TYPE_CHECKING:
    from cdlm.compose import Parts


class Network(nn.Module):
    """x_t -> read (E to H) -> conditioning, in order -> denoiser -> write (H to E).

    Only the text positions are written; where E = H nothing is projected.
    """

    def __init__(
        self,
        conditioning: Sequence[Conditioning],
        denoiser: Denoiser,
        dims: Dims,
        bias: bool = True,
    ):
        super().__init__()
        same = dims.width == dims.hidden
        self.read = nn.Identity() if same else nn.Linear(dims.width, dims.hidden, bias=bias)
        self.conditioning = nn.ModuleList(conditioning)  # type: ignore[arg-type]
        self.denoiser = denoiser
        self.write = nn.Identity() if same else nn.Linear(dims.hidden, dims.width, bias=bias)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        mask: Tensor,
        recalled: Tensor | None = None,
    ) -> Tensor:
        """What the network says of x_t.

        Shapes: x_t B L E, t B, mask B L, recalled B L H -> B L E.
        """
        stream = self.stream(x_t, t, condition, mask, recalled)
        return self.write(self.denoiser(stream)[:, stream.text])

    def stream(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        mask: Tensor,
        recalled: Tensor | None = None,
    ) -> Stream:
        """What the denoiser gets to read, conditioning written."""
        h = self.read(x_t)
        if recalled is not None:
            h = h + recalled
        text = slice(0, x_t.shape[1])
        stream = Stream(h=h, mask=mask, t=t, text=text, once=condition.once)
        for mode in self.conditioning:
            stream = mode(stream, condition)
        return stream


def withhold(batch: Batch, drop: float, rng: Generator) -> Condition:
    """What the captions of a batch are conditioned on; a share `drop` goes without its image.

    So do all that have no photo.
    """
    features = batch.features
    keep = torch.rand(len(features), generator=rng, device=features.device) >= drop
    if batch.pictured is not None:
        keep &= batch.pictured
    return Condition(features=features, keep=keep, text=batch.text)


@dataclass(frozen=True)
class Answer:
    """What the guided network says, and the x0 that it implies. Shapes: B L E."""

    said: Tensor
    x0_hat: Tensor


def answer(
    parts: Parts,
    x_t: Tensor,
    t: Tensor,
    condition: Condition,
    mask: Tensor,
    before: Tensor | None = None,
) -> Answer:
    """The network's answer to x_t, told its last estimate `before`, under guidance.

    Shapes: x_t, before B L E; t B; mask B L.
    """
    recalled = parts.self_conditioning(before, x_t)
    said = guided(parts, x_t, t, condition, mask, recalled).float()
    return Answer(said, parts.target.decode(said, x_t, t, parts.schedule))


def guided(
    parts: Parts,
    x_t: Tensor,
    t: Tensor,
    condition: Condition,
    mask: Tensor,
    recalled: Tensor | None = None,
) -> Tensor:
    """What the network says under guidance; where both branches are needed they share one batch.

    Shapes: x_t B L E, t B, mask B L, recalled B L H -> B L E.
    """
    if not parts.guidance.both(t):
        said = parts.network(x_t, t, condition, mask, recalled)
        return parts.guidance(said, said, t, mask, condition)
    said = parts.network(
        x_t.repeat(2, 1, 1),
        t.repeat(2),
        condition.once(_with_and_without, condition.features, lambda: _with_and_without(condition)),
        mask.repeat(2, 1),
        None if recalled is None else recalled.repeat(2, 1, 1),
    )
    with_, without = said.chunk(2)
    return parts.guidance(with_, without, t, mask, condition)


def _with_and_without(condition: Condition) -> Condition:
    text = condition.text
    return Condition(
        features=condition.features.repeat(2, 1, 1),
        keep=torch.cat([condition.keep, torch.zeros_like(condition.keep)]),
        text=None if text is None else text.repeat(2, 1, 1),
        once=Once(None if condition.once.made is None else {}),
    )
