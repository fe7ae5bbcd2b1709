"""Whole captioners with random weights: the time of a caption does not depend on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from problems import BERT, SMALL, Walk
from providers import diffusion_lm
from torch import Generator, Tensor

if TYPE_CHECKING:
    from cdlm.compose import Parts

LENGTH = 16  # tokens of a caption
VOCAB = 700 if SMALL else BERT
CHANNELS = 512  # of a pooled CLIP feature
SIZES = {  # H, layers, heads: 12 H^2 weights a layer
    "19M": (64, 2, 4) if SMALL else (512, 6, 8),
    "85M": (64, 4, 4) if SMALL else (768, 12, 12),
}
RECIPE = """
process      = {{ use = "gaussian", graph = {graph} }}
dataset      = {{ use = "shapes" }}
encoder      = {{ use = "features", path = "not read" }}
tokenizer    = {{ use = "words" }}
length       = {{ use = "generated" }}
embedding    = {{ use = "learned" }}
schedule     = {{ use = "cosine", noise = 4.0 }}
noise        = {{ use = "independent" }}
timesteps    = {{ use = "uniform" }}
target       = {{ use = "x0" }}
conditioning = [{{ use = "time_add" }}, {{ use = "extra_token", segment = true }}]
denoiser     = {{ use = "transformer", layers = {layers}, heads = {heads} }}
self_conditioning = {{ use = "none" }}
guidance     = {{ use = "none" }}
variance     = {{ use = "fixed" }}
loss         = [{{ use = "mse" }}]
rounding     = {{ use = "clamp" }}
grid         = {{ use = "uniform" }}
sampler      = {{ use = "ddim" }}
constraint   = []
selection    = {{ use = "first" }}
metric       = [{{ use = "exact_match" }}]

[model]
width  = 128
hidden = {hidden}
length = {length}
"""


class PooledFeatures:
    """Stands for an encoder where features are at hand already: one vector an image."""

    def shape(self) -> tuple[int, int]:
        return 1, CHANNELS


class Numbers:
    """Stands for a tokenizer: V words without texts."""

    pad, end = 0, 1

    def __len__(self) -> int:
        return VOCAB


def captioner(size: str, device: str, graph: bool = False) -> Parts:
    """A diffusion captioner of cdlm's parts, its denoiser of a size, as a CUDA graph or not."""
    from cdlm.compose import compose
    from cdlm.recipe import loads

    hidden, layers, heads = SIZES[size]
    text = RECIPE.format(
        hidden=hidden, layers=layers, heads=heads, length=LENGTH, graph=str(graph).lower()
    )
    parts = compose(loads(text), PooledFeatures(), Numbers())  # type: ignore[arg-type]
    parts.modules().to(device).eval()
    return parts


def weights(parts: Parts) -> int:
    """How many the denoiser has."""
    return sum(it.numel() for it in parts.network.denoiser.parameters())


def features(batch: int, device: str) -> Tensor:
    """B 1 C."""
    rng = Generator(device).manual_seed(0)
    return torch.randn(batch, 1, CHANNELS, generator=rng, device=device)


def sampled(parts: Parts, given: Tensor, steps: int) -> Callable[[], Tensor]:
    """cdlm's own sampler, to the words. -> ids B L."""
    from cdlm.records import Condition
    from cdlm.sample import sample, words

    condition = Condition(features=given, keep=torch.ones_like(given[:, 0, 0], dtype=torch.bool))

    def call() -> Tensor:
        rng = Generator(given.device).manual_seed(0)
        mask = parts.length.draw(condition, rng)
        *_, last = sample(parts, condition, mask, steps, rng)
        return words(parts, last, mask)

    return call


def eager(parts: Parts, given: Tensor, steps: int) -> Callable[[], Tensor]:
    """The same network and noise in a plain loop that rounds as Diffusion-LM does. -> ids B L."""
    from cdlm.records import Condition

    condition = Condition(features=given, keep=torch.ones_like(given[:, 0, 0], dtype=torch.bool))

    @torch.no_grad()
    def call() -> Tensor:
        rng = Generator(given.device).manual_seed(0)
        mask = parts.length.draw(condition, rng)
        x = torch.randn(*mask.shape, parts.dims.width, generator=rng, device=given.device)
        for t, s in parts.grid(steps, parts.schedule):
            x0_hat = parts.network(x, x.new_full((len(x),), t), condition, mask)
            table = parts.embedding.table()
            ids = diffusion_lm(x0_hat.flatten(0, 1), table)
            clean = table[ids].view_as(x)
            here, there = parts.schedule(x.new_tensor(t)), parts.schedule(x.new_tensor(s))
            x = there.alpha * clean + there.sigma * (x - here.alpha * clean) / here.sigma
        return ids.view(mask.shape)

    return call


def gpt2(batch: int, device: str, cached: bool) -> Callable[[], Tensor]:
    """GPT-2 of 124M weights behind one image vector, 16 tokens, the likeliest each. -> ids B L.

    With `cached` each step reads one token; without, the whole text again, as ClipCap's does.
    """
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    small = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": VOCAB} if SMALL else {}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**small)).to(device).eval()
    image = torch.randn(batch, 1, model.config.n_embd, device=device)

    @torch.no_grad()
    def call() -> Tensor:
        read, past, found = image, None, []
        for _ in range(LENGTH):
            out = model(inputs_embeds=read, past_key_values=past, use_cache=cached)
            found.append(out.logits[:, -1].argmax(-1))
            word, past = model.transformer.wte(found[-1])[:, None], out.past_key_values
            read = word if cached else torch.cat([read, word], 1)
        return torch.stack(found, 1)

    return call


# ---------------------------------------------------------------------------------- a real run


@dataclass(frozen=True)
class Listening:
    """A rounding that keeps what it was given."""

    inner: Any
    heard: list[Tensor]

    def __call__(
        self, x0_hat: Tensor, t: float, embedding: Any, nearest: Callable[[Tensor], Tensor]
    ) -> Tensor:
        self.heard.append(x0_hat.flatten(0, 1).clone())
        return self.inner(x0_hat, t, embedding, nearest)


def estimates(run: str, steps: int, batch: int = 32) -> Walk:
    """What a trained run's DDIM sampler rounds at every step, clamping.

    For the first images of its validation split.
    """
    from cdlm.job import Job
    from cdlm.parts.rounding import Clamp
    from cdlm.parts.samplers import Ddim
    from cdlm.rundir import RunDir

    job = Job.open(RunDir.open(Path(run)), "cpu")
    job.load_weights()
    heard: list[Tensor] = []
    parts = replace(job.parts, rounding=Listening(Clamp(), heard), sampler=Ddim(steps=steps))
    given = job.features("val")[:batch]
    sampled(parts, given, steps)()
    return Walk(heard, parts.embedding.table().detach().clone())
