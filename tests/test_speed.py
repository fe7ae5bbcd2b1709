"""Captions per second, and the share of a known GPU's peak."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from cdlm.parts.denoisers.transformer import Transformer
from cdlm.speed import Meter, cost, peak
from cdlm.testing.examples import DIMS
from cdlm.testing.whole import captioner, network, plan


def test_peaks_of_known_gpus_alone_are_known() -> None:
    assert peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak("NVIDIA H100 80GB HBM3", "float32") == 67e12
    assert peak("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12
    assert peak("Some other GPU", "bfloat16") is None


def test_the_cost_is_that_of_the_matrices_three_times() -> None:
    """Told apart by one more layer of the transformer: attention and its matrices, M rows."""

    def costs(layers: int) -> int:
        return cost(
            captioner(network=network(denoiser=Transformer(layers=layers, heads=2, dims=dims)))
        )

    dims = replace(DIMS, written=frozenset({"tokens"}))  # no cross-attention
    h, m = dims.hidden, dims.seen
    (layer,) = Transformer(layers=1, heads=2, dims=dims).layers
    rows = sum(
        2 * it.weight.numel() * m for it in layer.modules() if isinstance(it, torch.nn.Linear)
    )
    attention = 2 * (2 * m * m * h)  # scores, and the mean of values
    assert costs(2) - costs(1) == 3 * (rows + attention)


def test_counting_changes_nothing() -> None:
    parts = captioner()
    parts.network.train()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    cost(parts)
    assert parts.network.training and torch.equal(torch.rand(1), expected)
    assert all(it.grad is None for it in parts.network.parameters())


def test_a_meter_says_what_it_knows() -> None:
    meter = Meter(captions=64, share=1e-4, began=time.monotonic() - 10)
    facts = meter.facts(50)
    assert facts["captions_per_second"] == pytest.approx(320, rel=0.01)
    assert facts["share_of_peak"] == pytest.approx(0.032, rel=0.01)
    assert meter.read(50).endswith("captions/s, 3.2% of peak")


def test_on_a_cpu_no_share_is_named() -> None:
    meter = Meter.of(captioner(), plan(batch=4, accumulate=2), "cpu")
    assert meter.captions == 8
    assert set(meter.facts(1)) == {"captions_per_second"}
    assert meter.read(1).endswith(" captions/s")


def test_on_a_gpu_the_share_is_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = captioner()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("cdlm.ranks.count", lambda: 4)
    meter = Meter.of(parts, plan(precision="bfloat16"), "cuda")
    assert meter.share == pytest.approx(cost(parts) / (4 * 989e12))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "unheard of")
    assert Meter.of(parts, plan(), "cuda").share is None
