"""From a resolved recipe to parts: the only place that builds anything."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cdlm import contract, plugins, schema, signature
from cdlm import recipe as recipes
from cdlm.errors import CdlmError
from cdlm.network import Network
from cdlm.protocols import (
    Constraint,
    Dataset,
    Embedding,
    Encoder,
    Grid,
    Guidance,
    Length,
    Loss,
    Metric,
    Noise,
    Objective,
    Process,
    Rounding,
    Sampler,
    Schedule,
    Selection,
    SelfConditioning,
    Target,
    Timesteps,
    Tokenizer,
    Variance,
)
from cdlm.records import Dims

if TYPE_CHECKING:
    from cdlm.recipe import Choice, Recipe
    from cdlm.registry import Entry


SINGLE = (
    "process", "length", "embedding", "schedule", "noise", "timesteps", "target",
    "self_conditioning", "guidance", "variance", "objective", "rounding", "grid", "sampler",
    "selection",
)  # fmt: skip
"""Kinds of which a captioner has one, built once the widths are known."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that a captioner is made of; Missing where its process goes without a kind."""

    dims: Dims
    encoder: Encoder
    tokenizer: Tokenizer
    process: Process
    length: Length
    embedding: Embedding
    schedule: Schedule
    noise: Noise
    timesteps: Timesteps
    target: Target
    network: Network
    self_conditioning: SelfConditioning
    guidance: Guidance
    variance: Variance
    loss: dict[str, Loss]  # by name
    objective: Objective
    rounding: Rounding
    grid: Grid
    sampler: Sampler
    constraint: list[Constraint]
    selection: Selection
    beside: tuple[Parts, ...] = ()  # captioners that say the same captions together with this one

    @property
    def voices(self) -> tuple[Parts, ...]:
        """All that say captions together: itself first."""
        return (self, *self.beside)

    def modules(self) -> nn.ModuleDict:
        """Every part that is a module, by kind: what is trained, moved to a device and saved.

        The encoder is frozen and keeps its own weights; so do those `beside`.
        """
        named = {**vars(self), **{f"loss_{name}": term for name, term in self.loss.items()}}
        del named["encoder"]
        return nn.ModuleDict({k: part for k, part in named.items() if isinstance(part, nn.Module)})


@dataclass(frozen=True)
class Missing:
    """Stands for a part that the process goes without: whoever asks anything of it is told so."""

    kind: str
    process: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise CdlmError(f"process {self.process} has no {self.kind}")

    def __call__(self, *_: Any) -> Any:
        raise CdlmError(f"process {self.process} has no {self.kind}")


def make(choice: Choice, **injected: Any) -> Any:
    """One component, with its parameters and what of `injected` its signature asks for.

    Raises CdlmError for values that it refuses; PluginError, naming it and its owner, where it
    can't be built or lacks what `cdlm.protocols` asks of its kind.
    """
    entry = plugins.load().registry.get(choice.kind, choice.use)
    factory = entry.load()
    wanted = inspect.signature(factory).parameters
    given = {name: value for name, value in injected.items() if name in wanted}
    parts = {
        parameter.name: _made(choice.parameters[parameter.name], parameter.annotation, injected)
        for parameter in signature.read(entry).parameters
        if parameter.name in choice.parameters
    }
    component = _built(entry, factory, choice.parameters | parts | given)
    if faults := contract.faults(choice.kind, component):
        raise entry.broken(f"{'; '.join(faults)}; see {choice.kind} in cdlm/protocols.py")
    return component


def _built(entry: Entry, factory: Any, arguments: dict[str, Any]) -> Any:
    try:
        return factory(**arguments)
    except CdlmError:
        raise
    except ValueError as error:
        raise CdlmError(f'{entry.kind} "{entry.name}": {error}') from error
    except Exception as error:
        if entry.built_in:
            raise
        raise entry.broken(f"it can't be built: {type(error).__name__}: {error}") from error


def _made(value: Any, annotation: Any, injected: dict[str, Any]) -> Any:
    """A parameter's value; where it picks components, they are built."""
    kind = schema.kind_of(annotation)
    if kind is None:
        return value
    if isinstance(value, list | tuple):
        return [_made(item, annotation, injected) for item in value]
    rest = {name: it for name, it in value.items() if name != "use"}
    return make(recipes.Choice(kind, value["use"], rest), **injected)


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
    seen = replace(
        dims,
        seen=dims.length + sum(mode.extra for mode in modes),
        written=frozenset().union(*(mode.writes for mode in modes)),
    )
    denoiser = make(recipe.one("denoiser"), dims=seen)
    lists = {
        "loss": {choice.use: make(choice, dims=seen) for choice in recipe.many("loss")},
        "constraint": [make(choice, dims=seen) for choice in recipe.many("constraint")],
    }
    return Parts(
        dims=seen,
        encoder=encoder,
        tokenizer=tokenizer,
        network=Network(modes, denoiser, seen, recipe.model.bias),
        **lists,  # type: ignore[arg-type]
        **{kind: _single(recipe, kind, seen) for kind in SINGLE},
    )


def _single(recipe: Recipe, kind: str, dims: Dims) -> Any:
    if kind in recipe.without:
        return Missing(kind, recipe.one("process").use)
    return make(recipe.one(kind), dims=dims)
