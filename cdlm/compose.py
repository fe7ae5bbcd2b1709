"""From a resolved recipe to parts: the only place that builds anything."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cdlm import plugins
from cdlm.errors import CdlmError
from cdlm.network import Network
from cdlm.protocols import (
    Dataset,
    Embedding,
    Encoder,
    Guidance,
    Length,
    Loss,
    Metric,
    Rounding,
    Sampler,
    Schedule,
    Target,
    Timesteps,
    Tokenizer,
)
from cdlm.records import Dims

if TYPE_CHECKING:
    from cdlm.recipe import Choice, Recipe


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that a diffusion captioner is made of."""

    dims: Dims
    encoder: Encoder
    tokenizer: Tokenizer
    length: Length
    embedding: Embedding
    schedule: Schedule
    timesteps: Timesteps
    target: Target
    network: nn.Module
    guidance: Guidance
    loss: dict[str, Loss]  # by name
    rounding: Rounding
    sampler: Sampler

    def modules(self) -> nn.ModuleDict:
        """Every part that is a module, by kind: what is trained, moved to a device and saved.

        The encoder is frozen and keeps its own weights.
        """
        named = {**vars(self), **{f"loss_{name}": term for name, term in self.loss.items()}}
        del named["encoder"]
        return nn.ModuleDict({k: part for k, part in named.items() if isinstance(part, nn.Module)})


def make(choice: Choice, **injected: Any) -> Any:
    """One component, with its parameters and what of `injected` its signature asks for."""
    factory = plugins.load().registry.get(choice.kind, choice.use).load()
    wanted = inspect.signature(factory).parameters
    given = {name: value for name, value in injected.items() if name in wanted}
    try:
        return factory(**choice.parameters, **given)
    except ValueError as error:
        raise CdlmError(f'{choice.kind} "{choice.use}": {error}') from error


def dataset(recipe: Recipe) -> Dataset:
    """The recipe's dataset."""
    return make(recipe.one("dataset"))


def metrics(recipe: Recipe) -> list[Metric]:
    """The recipe's metrics, in order."""
    return [make(choice) for choice in recipe.many("metric")]


def compose(recipe: Recipe, encoder: Encoder, tokenizer: Tokenizer) -> Parts:
    """The parts of a recipe, with first weights drawn from its seed.

    The tokenizer has its vocabulary already. Raises CdlmError where parts do not fit together.
    """
    torch.manual_seed(recipe.seed)
    tokens, channels = encoder.shape()
    dims = Dims(
        length=recipe.model.length,
        width=recipe.model.width,
        hidden=recipe.model.hidden,
        vocab=len(tokenizer),
        image_tokens=tokens,
        image_width=channels,
        seen=recipe.model.length,
    )
    modes = [make(choice, dims=dims) for choice in recipe.many("conditioning")]
    seen = replace(dims, seen=dims.length + sum(mode.extra for mode in modes))
    denoiser = make(recipe.one("denoiser"), dims=seen)
    single = ("length", "embedding", "schedule", "timesteps", "target", "guidance", "rounding")
    return Parts(
        dims=seen,
        encoder=encoder,
        tokenizer=tokenizer,
        network=Network(modes, denoiser, seen),
        loss={choice.use: make(choice, dims=seen) for choice in recipe.many("loss")},
        sampler=make(recipe.one("sampler"), dims=seen),
        **{kind: make(recipe.one(kind), dims=seen) for kind in single},
    )
