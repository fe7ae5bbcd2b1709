"""The network: widths, conditioning and denoiser in one module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cdlm.protocols import Conditioning, Denoiser, Guidance
from cdlm.records import Condition, Dims, Stream


class Network(nn.Module):
    """x_t -> read (E to H) -> conditioning, in order -> denoiser -> write (H to E).

    Only the text positions are written; where E = H nothing is projected.
    """

    def __init__(self, conditioning: Sequence[Conditioning], denoiser: Denoiser, dims: Dims):
        super().__init__()
        same = dims.width == dims.hidden
        self.read = nn.Identity() if same else nn.Linear(dims.width, dims.hidden)
        self.conditioning = nn.ModuleList(conditioning)  # type: ignore[arg-type]
        self.denoiser = denoiser
        self.write = nn.Identity() if same else nn.Linear(dims.hidden, dims.width)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition, mask: Tensor) -> Tensor:
        """What the network says of x_t. Shapes: x_t B L E, t B, mask B L -> B L E."""
        text = slice(0, x_t.shape[1])
        stream = Stream(h=self.read(x_t), mask=mask, t=t, text=text)
        for mode in self.conditioning:
            stream = mode(stream, condition)
        return self.write(self.denoiser(stream)[:, stream.text])


def guided(
    network: nn.Module,
    guidance: Guidance,
    x_t: Tensor,
    t: Tensor,
    condition: Condition,
    mask: Tensor,
) -> Tensor:
    """The prediction under guidance; where both branches are needed they share one batch."""
    if not guidance.both:
        said = network(x_t, t, condition, mask)
        return guidance(said, said, t, mask)
    withheld = torch.zeros_like(condition.keep)
    both = Condition(
        features=condition.features.repeat(2, 1, 1), keep=torch.cat([condition.keep, withheld])
    )
    said = network(x_t.repeat(2, 1, 1), t.repeat(2), both, mask.repeat(2, 1))
    with_, without = said.chunk(2)
    return guidance(with_, without, t, mask)
