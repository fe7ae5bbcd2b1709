"""The forward data flow: batches of captions to an objective, in a loop that yields events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cdlm import ranks
from cdlm.data import Captions, mixed
from cdlm.errors import CdlmError
from cdlm.records import Event

if TYPE_CHECKING:
    from cdlm.compose import Parts
    from cdlm.recipe import TrainTable


VALIDATED = 1024  # captions of which the validation loss is the mean

# ------------------------------------------------------------------------------------ the learner


@dataclass(frozen=True)
class Learner:
    """What training changes: the modules, their moving average, and the optimizer's memory."""

    model: nn.ModuleDict
    average: dict[str, Tensor]  # of every parameter and buffer, by name
    optimizer: torch.optim.Optimizer

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def learner(parts: Parts, plan: TrainTable, device: str) -> Learner:
    """Everything trainable of these parts, on a device. Matrices decay, vectors do not."""
    model = parts.modules().to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.98), fused=True)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    return Learner(model, average, optimizer)


def snapshot(learner: Learner) -> dict[str, dict[str, Tensor]]:
    """All that is needed to sample (`weights`) and to go on training (`training`)."""
    memory = learner.optimizer.state_dict()["state"]
    return {
        "weights": learner.average,
        "training": {f"model.{name}": value for name, value in learner.model.state_dict().items()}
        | {f"optimizer.{i}.{key}": v for i, slots in memory.items() for key, v in slots.items()},
    }


def restore(learner: Learner, tensors: dict[str, dict[str, Tensor]]) -> None:
    """Become the learner of a snapshot, bit for bit."""
    for name, value in tensors["weights"].items():
        learner.average[name].copy_(value)
    model: dict[str, Tensor] = {}
    memory: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors["training"].items():
        owner, rest = name.split(".", 1)
        if owner == "model":
            model[rest] = value
        else:
            index, key = rest.split(".", 1)
            memory.setdefault(int(index), {})[key] = value
    learner.model.load_state_dict(model)
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": memory, "param_groups": groups})


# --------------------------------------------------------------------------------------- the loop


def train(
    parts: Parts,
    learner: Learner,
    data: Captions,
    plan: TrainTable,
    seed: int,
    first: int = 0,
    unseen: Captions | None = None,
) -> Iterator[Event]:
    """Train from step `first` on, yielding events; "step" after every step, "checkpoint" when due.

    With captions that are `unseen`, "validation_loss" and its terms every `plan.validate_every`
    steps. All randomness of a step comes from (seed, step), so a resumed run is the same run.
    Several processes share every step; see `cdlm.ranks`.
    Raises CdlmError where loss or gradient is not finite; the step is not taken.
    """
    learner.model.train()
    parts.objective.begin(data.references)
    device = learner.device
    parts = replace(parts, network=_called(parts.network, plan, device))  # type: ignore[arg-type]
    for step in range(first, plan.steps):
        torch.manual_seed(mixed(seed, step))  # dropout draws from the global generator
        rng = Generator(device).manual_seed(mixed(seed, step))
        rate = plan.lr * pace(step, plan)
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        terms = _backward(parts, learner, data, plan, seed, step, rng)
        norm = nn.utils.clip_grad_norm_(learner.model.parameters(), plan.clip)
        if not torch.isfinite(norm):
            raise CdlmError(_diverged(step, terms, norm))
        learner.optimizer.step()
        _average(learner, plan.ema, step)
        if unseen and _due(step + 1, plan.validate_every, plan):
            yield from _validated(parts, learner, unseen, plan.batch, step + 1)
        yield from _events(step + 1, plan, terms, norm, rate)


def _backward(
    parts: Parts,
    learner: Learner,
    data: Captions,
    plan: TrainTable,
    seed: int,
    step: int,
    rng: Generator,
) -> dict[str, Tensor]:
    """Gradients of one step, over its micro-batches; the terms' means."""
    learner.optimizer.zero_grad(set_to_none=True)
    total: dict[str, Tensor] = {}
    for part in range(plan.accumulate):
        batch = data.batch(step * plan.accumulate + part, plan.batch, seed)
        terms = parts.objective(parts, batch, rng)
        torch.stack(list(terms.values())).sum().div(plan.accumulate).backward()
        for name, value in terms.items():
            total[name] = total.get(name, 0) + value.detach() / plan.accumulate
    ranks.average(learner.model)
    return total


def _called(
    network: Callable[..., Tensor], plan: TrainTable, device: torch.device
) -> Callable[..., Tensor]:
    """The network as training calls it; it alone is compiled, in half precision, and shared.

    Its weights stay as they are, so that a checkpoint knows nothing of this.
    """
    call: Callable[..., Tensor] = torch.compile(network) if plan.compile else network
    return ranks.shared(call if plan.precision == "float32" else _half(call, device))


def _half(network: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Multiply in bfloat16; what comes out is float32 again, as are losses and rounding."""

    def call(*given: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return network(*given).float()

    return call


def pace(step: int, plan: TrainTable) -> float:
    """The learning rate as a share of its peak: a linear warm-up, then the recipe's decay."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    if plan.decay == "constant":
        return 1.0
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    left = 1 - done if plan.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return plan.lr_end + (1 - plan.lr_end) * left


@torch.no_grad()
def _average(learner: Learner, decay: float, step: int) -> None:
    """Move the average towards the weights; slowly only once there is a history to keep."""
    keep = min(decay, (1 + step) / (10 + step))
    now = learner.model.state_dict()
    moving = [name for name, mean in learner.average.items() if mean.is_floating_point()]
    move = get_ema_multi_avg_fn(keep)  # all at once: a GPU is not asked once per tensor
    move([learner.average[name] for name in moving], [now[name] for name in moving], None)
    for name in now.keys() - set(moving):
        learner.average[name].copy_(now[name])


def _events(
    done: int, plan: TrainTable, terms: dict[str, Tensor], norm: Tensor, rate: float
) -> Iterator[Event]:
    if _due(done, plan.log_every, plan):
        yield Event(step=done, name="loss", value=float(sum(terms.values())))
        for name, value in terms.items():
            yield Event(step=done, name=f"loss/{name}", value=float(value))
        yield Event(step=done, name="gradient_norm", value=float(norm))
        yield Event(step=done, name="learning_rate", value=rate)
    if _due(done, plan.checkpoint_every, plan):
        yield Event(step=done, name="checkpoint", value=done)
    yield Event(step=done, name="step", value=done)


def _due(done: int, every: int, plan: TrainTable) -> bool:
    return done == plan.steps or done % every == 0


@torch.no_grad()
def _validated(
    parts: Parts, learner: Learner, unseen: Captions, batch: int, done: int
) -> Iterator[Event]:
    """The loss of the averaged weights on captions that are not trained on.

    Of the same captions with the same noise each time; training goes on as if nothing had been.
    """
    rng = Generator(learner.device).manual_seed(0)
    count = math.ceil(min(len(unseen.ids), VALIDATED) / batch)
    total: dict[str, float] = {}
    with _averaged(learner):
        for k in range(count):
            terms = parts.objective(parts, unseen.batch(k, batch, seed=0), rng)
            total = {name: total.get(name, 0) + float(terms[name]) / count for name in terms}
    yield Event(step=done, name="validation_loss", value=sum(total.values()))
    for name, value in total.items():
        yield Event(step=done, name=f"validation_loss/{name}", value=value)


@contextmanager
def _averaged(learner: Learner) -> Iterator[None]:
    """The modules with their averaged weights, not training; then as they were, to the bit."""
    model = learner.model
    now = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(learner.average)
    model.eval()
    yield
    model.load_state_dict(now)
    model.train()


def _diverged(step: int, terms: dict[str, Tensor], norm: Tensor) -> str:
    parts = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
    return (
        f"training stopped before step {step + 1}: the gradient is {norm.item()} (loss: {parts})\n"
        "    the last checkpoint is intact; a smaller train.lr or a longer train.warmup may help"
    )
