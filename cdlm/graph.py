"""A network's call as a CUDA graph: captured once, replayed at every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdlm.network import Network
from cdlm.records import Condition


class Replayed(nn.Module):
    """A network that launches all its kernels as one, for one condition.

    Calls of the same shapes share a graph: their inputs are copied in, and what comes out is copied
    out. Whatever depends on the image alone is computed before the capture, and stays.
    Source: PyTorch's notes on CUDA graphs, "whole-network capture".
    """

    def __init__(self, network: Network):
        super().__init__()
        self.network = network
        self._graphs: dict[tuple[object, ...], _Graph] = {}

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        mask: Tensor,
        recalled: Tensor | None = None,
    ) -> Tensor:
        key = (x_t.shape, x_t.dtype, recalled is None)
        if key not in self._graphs:
            self._graphs[key] = _Graph(self.network, x_t, t, condition, mask, recalled)
        return self._graphs[key](x_t, t, mask, recalled)


class _Graph:
    """One captured call, for inputs of the same shapes and types and this very condition."""

    def __init__(
        self,
        network: Network,
        x_t: Tensor,
        t: Tensor,
        condition: Condition,
        mask: Tensor,
        recalled: Tensor | None,
    ):
        x_t, t, mask = x_t.clone(), t.clone(), mask.clone()
        recalled = None if recalled is None else recalled.clone()
        self.given = x_t, t, mask, recalled
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # the first call chooses algorithms and fills caches
            network(x_t, t, condition, mask, recalled)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.said = network(x_t, t, condition, mask, recalled)

    def __call__(self, *given: Tensor | None) -> Tensor:
        for place, value in zip(self.given, given, strict=True):
            if place is not None and value is not None:
                place.copy_(value)
        self.graph.replay()
        return self.said.clone()
