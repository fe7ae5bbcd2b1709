"""How fast training goes: in captions per second and, on a GPU we know, as a share of its peak."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cdlm import ranks
from cdlm.records import Condition

if TYPE_CHECKING:
    from cdlm.compose import Parts
    from cdlm.recipe import TrainTable

PEAKS = {
    "H200": (989, 67), "GH200": (989, 67), "H100 80GB HBM3": (989, 67), "H100 PCIe": (756, 51),
    "A100": (312, 19.5), "L40S": (362, 91.6), "RTX 3090": (71, 35.6),
}  # fmt: skip
"""Of what a GPU's name contains: TFLOP/s in bfloat16, dense, and in float32 without tensor cores.

Source: NVIDIA's data sheets; for the RTX 3090 the white paper of its architecture, sums in float32.
"""


def peak(name: str, precision: str) -> float | None:
    """FLOP/s of the GPU of this name; None where it is not known."""
    for known, (half, full) in PEAKS.items():
        if known in name:
            return 1e12 * (half if precision == "bfloat16" else full)
    return None


@torch.no_grad()
def cost(parts: Parts) -> int:
    """FLOPs that the network spends on a caption in training: there, and twice that back.

    Counted on one call. What else a step asks of the network, such as self-conditioning's practice,
    is not counted; so the share of the peak is rather too small.
    """
    network, dims = parts.network, parts.dims
    device = next(network.parameters()).device
    one = torch.ones(1, device=device)
    condition = Condition(
        features=torch.zeros(1, dims.image_tokens, dims.image_width, device=device),
        keep=one.bool(),
        text=torch.zeros(1, 1, dims.image_width, device=device),
    )
    x_t = torch.zeros(1, dims.length, dims.width, device=device)
    training = network.training
    from torch.utils.flop_counter import FlopCounterMode  # brings Triton, which is slow to import

    with FlopCounterMode(display=False) as counter:
        network.eval()(x_t, one / 2, condition, one.bool().expand(1, dims.length))
    network.train(training)
    return 3 * counter.get_total_flops()


@dataclass(frozen=True)
class Meter:
    """A clock that knows what a step is worth."""

    captions: int  # of a step
    share: float | None  # of the peak of all devices, for one caption per second
    began: float

    @classmethod
    def of(cls, parts: Parts, plan: TrainTable, device: str) -> Meter:
        """Starts now."""
        share = None
        if torch.device(device).type == "cuda":
            best = peak(torch.cuda.get_device_name(device), plan.precision)
            share = cost(parts) / (best * ranks.count()) if best else None
        return cls(plan.batch * plan.accumulate, share, time.monotonic())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def facts(self, steps: int) -> dict[str, float]:
        """What so many steps until now come to."""
        pace = steps * self.captions / max(self.seconds, 1e-9)
        facts = {"captions_per_second": round(pace, 1)}
        return facts if self.share is None else facts | {"share_of_peak": pace * self.share}

    def read(self, steps: int) -> str:
        """The same in a few words."""
        facts = self.facts(steps)
        share = f", {facts['share_of_peak']:.1%} of peak" if "share_of_peak" in facts else ""
        return f"{facts['captions_per_second']:,.0f} captions/s{share}"
