"""A tiny captioner around any component: whatever it is, the captioner trains and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cdlm import plugins, signature
from cdlm.compose import SINGLE, Parts, make
from cdlm.data import Captions
from cdlm.gaussian import Gaussian
from cdlm.network import Network
from cdlm.objective import ProcessLoss
from cdlm.parts import grids
from cdlm.parts.conditioning import CrossAttention, ExtraToken, TimeAdd, TimeNorm
from cdlm.parts.denoisers.modern import Modern
from cdlm.parts.denoisers.transformer import Transformer
from cdlm.parts.embeddings import Learned
from cdlm.parts.guidance import Classifier, Plain
from cdlm.parts.lengths import Generated, Predicted
from cdlm.parts.losses import Mse, Rounding
from cdlm.parts.noise import Independent
from cdlm.parts.rounding import Free
from cdlm.parts.samplers import Ddim
from cdlm.parts.schedules import Cosine
from cdlm.parts.selections import First
from cdlm.parts.self_conditioning import Forgetful
from cdlm.parts.targets import X0
from cdlm.parts.timesteps import Uniform
from cdlm.parts.tokenizers import Words
from cdlm.parts.variances import Fixed
from cdlm.protocols import Conditioning, Denoiser
from cdlm.recipe import Choice, TrainTable
from cdlm.records import Condition
from cdlm.sample import captions, sample
from cdlm.testing.examples import CAPTIONS, DIMS, IDS, begun, rng
from cdlm.train import learner, train

KINDS = frozenset({*SINGLE, "tokenizer", "conditioning", "denoiser", "loss", "constraint"})


@dataclass(frozen=True)
class NoEncoder:
    """Stands for an encoder where features are at hand already."""

    def shape(self) -> tuple[int, int]:
        return DIMS.image_tokens, DIMS.image_width

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Letters counted, as if that were what a caption means."""
        counts = [[text.count(chr(97 + i)) for i in range(DIMS.image_width)] for text in captions]
        return torch.tensor(counts, dtype=torch.float32)[:, None]


def captioner(**others: Any) -> Parts:
    """A tiny captioner of built-in parts, with others in place of some. Its weights never vary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts: dict[str, Any] = {
            "dims": DIMS,
            "encoder": NoEncoder(),
            "tokenizer": Words(),
            "process": Gaussian(),
            "length": Generated(dims=DIMS),
            "embedding": Learned(dims=DIMS),
            "schedule": Cosine(),
            "noise": Independent(),
            "timesteps": Uniform(),
            "target": X0(),
            "network": network(),
            "self_conditioning": Forgetful(),
            "guidance": Plain(),
            "variance": Fixed(),
            "loss": {"mse": Mse(), "rounding": Rounding()},
            "objective": ProcessLoss(),
            "rounding": Free(),
            "grid": grids.Uniform(),
            "sampler": Ddim(steps=4),
            "constraint": [],
            "selection": First(),
        } | others
        parts["tokenizer"].fit(CAPTIONS)
        begun(parts["selection"])
    return Parts(**parts)


def network(mode: Conditioning | None = None, denoiser: Denoiser | None = None) -> Network:
    """Time, one more mode (the image as extra tokens, unless given), and a denoiser.

    A denoiser that reads more than tokens gets it; a mode that writes more is read.
    """
    modes: list[Conditioning] = [TimeAdd(dims=DIMS), mode or ExtraToken(dims=DIMS)]
    reads = denoiser.reads if denoiser else set()
    modes += [TimeNorm(dims=DIMS)] if "time" in reads else []
    modes += [CrossAttention(dims=DIMS)] if "context" in reads else []
    written = frozenset[str]().union(*(it.writes for it in modes))
    dims = replace(DIMS, seen=DIMS.length + modes[1].extra, written=written)
    reader = Transformer if written <= {"tokens"} else Modern
    return Network(modes, denoiser or reader(layers=1, heads=2, dims=dims), dims)


def data(parts: Parts) -> Captions:
    """The four captions of `examples`, each with an image of its own, and its only reference."""
    ids, mask = parts.tokenizer.encode(CAPTIONS, DIMS.length)
    features = torch.randn(len(IDS), DIMS.image_tokens, DIMS.image_width, generator=rng())
    texts = torch.randn(len(CAPTIONS), 1, DIMS.image_width, generator=rng(1))
    image, references = torch.arange(len(IDS)), tuple([text] for text in CAPTIONS)
    return Captions(ids, mask, image, features, texts=texts, image=image, references=references)


def plan(**others: Any) -> TrainTable:
    """[train] for a few steps on four captions."""
    usual: dict[str, Any] = {"steps": 3, "batch": 4, "warmup": 0, "log_every": 1, "ema": 0.9}
    return TrainTable(**(usual | others))


def trained(parts: Parts, **others: Any) -> dict[str, float]:
    """Train these parts in place; the last value of every event by name."""
    chosen = plan(**others)
    events = train(parts, learner(parts, chosen, "cpu"), data(parts), chosen, seed=0)
    return {event.name: event.value for event in events}


def around(kind: str, component: Any) -> Parts:
    """A tiny captioner with this component in its place, and beside it what it needs."""
    return captioner(**_placed(kind, component))


def check_captioner_works(kind: str, component: Any) -> None:
    """With this component in place a captioner trains with finite loss, and samples captions."""
    parts = around(kind, component)
    assert math.isfinite(trained(parts)["loss"]), "the loss is not finite"
    parts.modules().eval()
    features = data(parts).features
    condition = Condition(features=features, keep=torch.ones(len(IDS), dtype=torch.bool))
    mask = parts.length.draw(condition, rng())
    *_, last = sample(parts, condition, mask, None, rng())
    assert bool(last.x.isfinite().all()), "the sample is not finite"
    said = [it.caption for it in captions(parts, features, rng())]
    assert [type(text) for text in said] == [str] * len(IDS), f"captions are texts, got {said}"


def _placed(kind: str, component: Any) -> dict[str, Any]:
    """The field of Parts in which a component of this kind stands."""
    if kind == "loss":  # beside the parts that some losses teach
        taught = {"guidance": Classifier(dims=DIMS), "length": Predicted(dims=DIMS)}
        return {"loss": {"mse": Mse(), "checked": component}} | taught
    if kind == "constraint":
        return {"constraint": [component]}
    if kind == "tokenizer":
        component.fit(CAPTIONS)
        dims = replace(DIMS, vocab=len(component))
        return {"tokenizer": component, "dims": dims, "embedding": Learned(dims=dims)}
    if kind == "conditioning":
        return {"network": network(mode=component)}
    if kind == "denoiser":
        return {"network": network(denoiser=component)}
    if kind == "process":
        return {"process": component} | _reader(component)
    if kind == "objective" and (process := _provider("process", component)):
        return {"objective": component, "process": process} | _reader(process)
    return {kind: component}


def _reader(process: Any) -> dict[str, Any]:
    """The network of a process that needs another denoiser than the usual: the first that fits."""
    denoiser = _provider("denoiser", process)
    return {"network": network(denoiser=denoiser)} if denoiser else {}


def _provider(kind: str, component: Any) -> Any:
    """The first of a kind that provides what the component needs; None where there is none."""
    needs: set[str] = getattr(component, "needs", set())
    for entry in plugins.load().registry.entries():
        if entry.kind == kind and needs & signature.read(entry).sets.get("provides", frozenset()):
            return make(Choice(kind, entry.name, {}), dims=DIMS)
    return None
