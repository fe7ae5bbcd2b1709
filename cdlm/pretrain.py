"""Train a small open_clip model on drawn scenes: the encoder that ships with cdlm comes from here.

    cdlm pretrain recipes/encoders/shapes_clip.toml --out my_clip

Contrastive learning as CLIP's (Radford et al. 2021, fig. 3), on scenes drawn as they are needed.
A batch is made of families: a scene and relatives that differ from it in one thing only (an
attribute, the order, the axis, the background), so that every attribute is told apart from its
nearest rivals in every batch. Only contents of the `train` split are seen.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from cdlm.errors import CdlmError, RunError
from cdlm.parts.datasets.shapes.drawing import draw
from cdlm.parts.datasets.shapes.language import vocabulary, word_ids, word_numbers
from cdlm.parts.datasets.shapes.scenes import (
    AXES,
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    Codes,
    arrange,
    distinct,
    sample_codes,
    split_of,
)
from cdlm.progress import Tell, silent
from cdlm.values import Above0, NonNegative, Positive

MODEL = ("embed_dim", "vision_cfg", "text_cfg")  # what a recipe's `model` table must have
MEAN = STD = (0.5, 0.5, 0.5)  # pixels become -1 to 1


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How long and on what an encoder is trained."""

    steps: Positive = 4_500
    families: Positive = 512  # a batch is families x relatives scenes
    relatives: Positive = 8  # scenes of a family
    mix: tuple[float, ...] = (0.1, 0.6, 0.3)  # how often a scene has 1, 2, 3 things
    lr: Above0 = 1e-3
    warmup: Positive = 500  # steps
    weight_decay: NonNegative = 0.05
    seed: int = 0


def build(model: dict[str, Any]) -> nn.Module:
    """The open_clip model of a configuration, with first weights."""
    import open_clip

    return open_clip.CLIP(model["embed_dim"], model["vision_cfg"], model["text_cfg"])


def relatives(codes: Codes, count: int, rng: Generator) -> Codes:
    """`count` scenes for each: itself, and others one edit away. Shapes: B -> B * count."""
    rows = torch.arange(len(codes.axis), device=rng.device).repeat_interleave(count)
    kin = codes[rows]
    edited = _edit(kin, rng)
    fit = distinct(edited) & split_of(edited, "train")
    fit &= torch.arange(len(rows), device=rng.device) % count > 0  # the first stays as it is
    return Codes(
        edited.things.where(fit[:, None, None], kin.things),
        edited.axis.where(fit, kin.axis),
        edited.background.where(fit, kin.background),
    )


def _edit(codes: Codes, rng: Generator) -> Codes:
    """Change one fact of every scene: a thing's size, colour or shape; the order of two things, or
    one of their attributes, exchanged; the axis; the background."""
    b, device = len(codes.axis), rng.device

    def pick(n: int) -> Tensor:
        return torch.randint(n, (b,), generator=rng, device=device)

    things, rows = codes.things.clone(), torch.arange(b, device=device)
    edit, which = pick(8), pick(1 << 20) % codes.counts
    for attribute, words in enumerate((SIZES, COLOURS, SHAPES)):
        moved = (things[rows, which, attribute] + 1 + pick(len(words) - 1)) % len(words)
        old = things[rows, which, attribute]
        things[rows, which, attribute] = moved.where(edit == attribute, old)
    other = (which + 1 + pick(1 << 20) % (codes.counts - 1).clamp(min=1)) % codes.counts
    swapped = (edit >= 3) & (edit <= 5)  # 3: one attribute, 4: colour and shape, 5: whole things
    first, lone = pick(3), edit == 3
    for attribute in range(3):
        chosen = swapped & (
            (lone & (first == attribute)) | (edit == 5) | ((edit == 4) & (attribute > 0))
        )
        a, z = things[rows, which, attribute], things[rows, other, attribute]
        things[rows, which, attribute] = z.where(chosen, a)
        things[rows, other, attribute] = a.where(chosen, z)
    axis = (codes.axis + (edit == 6)) % len(AXES)
    moved = (codes.background + 1 + pick(len(BACKGROUNDS) - 1)) % len(BACKGROUNDS)
    return Codes(things, axis, moved.where(edit == 7, codes.background))


def pixels(codes: Codes, rng: Generator) -> Tensor:
    """Pictures of scenes as the encoder gets them. B 3 CANVAS CANVAS."""
    return draw(codes, arrange(codes, rng)).float() / 127.5 - 1


def loss(image: Tensor, text: Tensor, scale: Tensor, content: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy; scenes of equal content are no rivals. B C, B C, B -> ()."""
    logits = (scale * image @ text.T).float()
    same = (content[:, None] == content[None, :]).fill_diagonal_(False)
    logits = logits.masked_fill(same, float("-inf"))
    own = torch.arange(len(content), device=content.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@torch.no_grad()
def accuracy(model: nn.Module, plan: Pretraining, families: int, rng: Generator) -> float:
    """How often a held-out picture is nearest its own caption among 31 rivals one edit away."""
    held = sample_codes(families, "val", torch.tensor(plan.mix), rng)
    kin = _with_rivals(held, 32, rng)
    image = model.encode_image(pixels(held, rng), normalize=True)  # type: ignore[operator]
    choice = torch.randint(1 << 20, (len(kin.axis),), generator=rng, device=rng.device)
    text = model.encode_text(word_ids(kin, choice, _length(model)), normalize=True)  # type: ignore[operator]
    score = torch.einsum("bc,brc->br", image.float(), text.float().view(families, 32, -1))
    alike = kin.content().view(families, 32) == held.content()[:, None]
    score = score.masked_fill(alike & (torch.arange(32, device=rng.device) > 0), -2)
    return (score.argmax(1) == 0).float().mean().item()


def _with_rivals(codes: Codes, count: int, rng: Generator) -> Codes:
    kin = codes[torch.arange(len(codes.axis), device=rng.device).repeat_interleave(count)]
    edited, first = _edit(kin, rng), torch.arange(len(kin.axis), device=rng.device) % count == 0
    keep = first | ~distinct(edited)
    return Codes(
        kin.things.where(keep[:, None, None], edited.things),
        kin.axis.where(keep, edited.axis),
        kin.background.where(keep, edited.background),
    )


def _length(model: nn.Module) -> int:
    return int(model.context_length)  # type: ignore[arg-type]


def pretrain(
    model: nn.Module, plan: Pretraining, device: str = "cpu"
) -> Iterator[tuple[int, Tensor]]:
    """Train in place, yielding (steps done, loss)."""
    torch.manual_seed(plan.seed)
    rng = Generator(device).manual_seed(plan.seed)
    model.to(device).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": plan.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.98))
    pace = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        plan.lr,
        plan.steps,
        pct_start=min(0.5, plan.warmup / plan.steps),
        cycle_momentum=False,
    )
    mix = torch.tensor(plan.mix, device=device)
    for step in range(plan.steps):
        codes = relatives(sample_codes(plan.families, "train", mix, rng), plan.relatives, rng)
        choice = torch.randint(1 << 20, (len(codes.axis),), generator=rng, device=device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            image, text, scale = model(pixels(codes, rng), word_ids(codes, choice, _length(model)))
            error = loss(image, text, scale, codes.content())
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        pace.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # type: ignore[operator]  # ln 100, as CLIP
        yield step + 1, error.detach()
    model.eval()


def make(recipe: Path, out: Path, device: str, tell: Tell = silent) -> float:
    """Train the recipe's model into the new folder `out`; its accuracy on held-out scenes.

    Raises CdlmError for a recipe that can't be read, and RunError where `out` can't be made.
    """
    config, plan = read(recipe)
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"--out {out}: can't be made: {error.strerror}") from error
    torch.manual_seed(plan.seed)
    model = build(config)
    for step, value in pretrain(model, plan, device):
        if step % 10 == 0 or step == plan.steps:
            tell("pretraining", step, plan.steps, f"loss {value.item():.3f}")
    save(model, config, out)
    return accuracy(model, plan, 1024, Generator(device).manual_seed(plan.seed))


def read(recipe: Path) -> tuple[dict[str, Any], Pretraining]:
    """A recipe's open_clip configuration, its text tower made to read the words of the scenes, and
    its plan of training. Raises CdlmError."""
    try:
        tables = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CdlmError(f"{recipe}: can't be read: {error}") from error
    model, allowed = tables.get("model", {}), {field.name for field in fields(Pretraining)}
    wrong = [f"unknown: train.{key}" for key in tables.get("train", {}) if key not in allowed]
    wrong += [f"unknown: {key}" for key in tables if key not in ("model", "train")]
    wrong += [f"missing: model.{key}" for key in MODEL if key not in model]
    if wrong:
        raise CdlmError(
            f"{recipe}: {', '.join(wrong)}\n    allowed: [model], an open_clip configuration with "
            f"{', '.join(MODEL)}; [train] with {', '.join(sorted(allowed))}"
        )
    text = model["text_cfg"] | {
        "vocab_size": len(vocabulary()) + 2,
        "pool_type": "argmax",
        "hf_tokenizer_name": ".",  # the files that `save_tokenizer` writes
    }
    return {**model, "text_cfg": text}, Pretraining(**tables.get("train", {}))


def save(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """An open_clip folder: open_clip_config.json and half-precision open_clip_model.safetensors."""
    from safetensors.torch import save_file

    described = {
        "model_cfg": config,
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
    save_tokenizer(folder)
    halves = {
        name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()
    }
    save_file(halves, folder / "open_clip_model.safetensors")


def save_tokenizer(folder: Path) -> None:
    """The words of the scenes as a transformers tokenizer, numbered as `word_ids` numbers them.

    A word that no scene has is read as padding.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    end = len(vocabulary()) + 1
    words = {"[PAD]": 0, **word_numbers(), "[END]": end}
    engine = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.post_processor = processors.TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", end)]
    )
    engine.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[PAD]",
        "eos_token": "[END]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")
