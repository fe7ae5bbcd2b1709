"""The gradient against sums over all captions, and a captioner that learns by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cdlm_self_critical.objective import SelfCritical
from torch import Tensor

from cdlm.records import Drawn
from cdlm.testing import build, conformance
from cdlm.testing.examples import rng
from cdlm.testing.whole import around, captioner, data, trained

pytest.importorskip("cdlm_autoregressive", reason="a process that draws")

test_self_critical = conformance("objective", "self_critical")
test_self_critical_of_two = conformance("objective", "self_critical", draws=2)


def test_one_draw_has_none_to_be_judged_by() -> None:
    with pytest.raises(ValueError, match="draw more"):
        SelfCritical(draws=1)


# -------------------------------------------------------------------------------------- gradient


class Coins:
    """Says one of two words by a share that is learnt; all that the objective asks of a process."""

    def __init__(self) -> None:
        self.score = torch.tensor(0.3, requires_grad=True)

    def draw(self, parts: Any, condition: Any, rng: torch.Generator) -> Drawn:
        heads = torch.rand(len(condition.features), 1, generator=rng) < self.score.sigmoid()
        ids = parts.tokenizer.encode(["dog", "ball"], 2)[0][:, :1][heads.long()[:, 0]]
        return Drawn(ids=ids, mask=torch.ones_like(heads), order=torch.zeros_like(ids))

    def log_p(self, parts: Any, drawn: Drawn, condition: Any, rng: torch.Generator) -> Tensor:
        ball = parts.tokenizer.encode(["ball"], 2)[0][0, 0]
        heads = (drawn.ids[:, 0] == ball).float()
        return torch.nn.functional.logsigmoid(self.score * (2 * heads - 1))


def test_the_gradient_is_that_of_the_expected_reward() -> None:
    coins, objective = Coins(), SelfCritical(draws=3)
    parts = replace(captioner(), process=coins)  # type: ignore[arg-type]
    objective.begin(data(parts).references)
    batch = data(parts).batch(0, 4, 0)
    batch = replace(batch, references=[["a red ball"]] * 4)
    ball, dog = (objective.reward(it, ["a red ball"]) for it in ("ball", "dog"))
    share = coins.score.detach().sigmoid()
    draw, values, slopes = rng(), [], []
    for _ in range(3000):
        (value,) = objective(parts, batch, draw).values()
        (slope,) = torch.autograd.grad(value, [coins.score])
        values.append(value.detach())
        slopes.append(slope)
    assert ball > dog == 0
    assert torch.stack(values).mean() == pytest.approx(float(-share * ball), rel=0.02)
    wanted = float(-share * (1 - share) * ball)
    assert torch.stack(slopes).mean() == pytest.approx(wanted, rel=0.05)


# ----------------------------------------------------------------------------------- in training


@pytest.mark.parametrize("process", ["masked", "autoregressive"])
def test_training_makes_captions_better(process: str) -> None:
    """The reward of what a tiny captioner says by chance, before and after; nothing else taught."""
    pytest.importorskip(f"cdlm_{process}", reason="a process that draws")
    parts = around("process", build("process", process))
    objective = build("objective", "self_critical")
    before, after = (
        -trained(replace(parts, objective=objective), steps=steps, lr=3e-3)["loss"]
        for steps in (1, 150)
    )
    assert after > 2 * before, f"from {before:.2f} to {after:.2f}"
