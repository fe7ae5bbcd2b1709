"""Small inputs for the laws: the same at every call, ragged where a batch can be ragged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from cdlm.parts.guidance import Classifier
from cdlm.parts.lengths import Predicted
from cdlm.protocols import Selection
from cdlm.records import Answers, Batch, Condition, Dims, Guess, Level, Noised, Stream

B = 3
DIMS = Dims(length=6, width=8, hidden=16, vocab=13, image_tokens=2, image_width=10, seen=8)
LENGTHS = (6, 3, 1)  # positions of each caption, its end token among them

# 10 different words: with padding, end and unknown the 13 words of DIMS.
CAPTIONS = ["a dog runs", "a red ball", "two dogs run on grass", "a dog on grass"]
SOME = [2, 0]  # two of the three captions of a batch, in another order
IDS = ["image-0", "image-1", "image-2", "image-3"]  # of the images to which they belong


def begun(selection: Selection) -> Selection:
    """The selection, which has been shown these captions as those of training, if it asks."""
    if begin := getattr(selection, "begin", None):
        shape = len(CAPTIONS), DIMS.image_tokens, DIMS.image_width
        begin([[text] for text in CAPTIONS], torch.randn(shape, generator=rng()))
    return selection


def rng(seed: int = 0) -> Generator:
    """A generator on the CPU."""
    return Generator().manual_seed(seed)


def quarter_circle(t: Tensor) -> Level:
    """The plainest schedule: alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""
    angle = t * torch.pi / 2
    return Level(angle.cos(), angle.sin())


def mask() -> Tensor:
    """B L bool: captions of 6, 3 and 1 positions."""
    return torch.arange(DIMS.length) < torch.tensor(LENGTHS)[:, None]


def batch(seed: int = 0) -> Batch:
    """Random words (0 pads, 1 ends a caption) and features."""
    seen, draw = mask(), rng(seed)
    ids = torch.randint(2, DIMS.vocab, seen.shape, generator=draw)
    last = torch.tensor(LENGTHS)[:, None] - 1
    ids = ids.scatter(1, last, 1).masked_fill(~seen, 0)
    features, text = _features(draw), torch.randn(B, 1, DIMS.image_width, generator=draw)
    references = [[text] for text in CAPTIONS[:B]]
    return Batch(ids=ids, mask=seen, features=features, text=text, references=references)


def condition(keep: bool = True, seed: int = 0) -> Condition:
    """Random features, all of them given or all withheld."""
    features, text = _features(rng(seed)), torch.randn(B, 1, DIMS.image_width, generator=rng(seed))
    return Condition(features=features, keep=torch.full((B,), keep), text=text)


def _features(draw: Generator) -> Tensor:
    return torch.randn(B, DIMS.image_tokens, DIMS.image_width, generator=draw)


def stream(ahead: int = 0, behind: int = 0, seed: int = 0) -> Stream:
    """A caption's stream with so many extra tokens before and behind it, and everything written."""
    draw, length = rng(seed), ahead + DIMS.length + behind
    extra = [torch.ones(B, n, dtype=torch.bool) for n in (ahead, behind)]
    return Stream(
        h=torch.randn(B, length, DIMS.hidden, generator=draw),
        mask=torch.cat([extra[0], mask(), extra[1]], dim=1),
        t=torch.tensor([0.2, 0.5, 0.9]),
        text=slice(ahead, ahead + DIMS.length),
        time=torch.randn(B, DIMS.hidden, generator=draw),
        context=torch.randn(B, DIMS.image_tokens, DIMS.hidden, generator=draw),
    )


def noised(dtype: torch.dtype = torch.float64) -> Noised:
    """Embedded captions at 49 levels from 0.02 to 0.98, on the quarter circle."""
    t, draw = torch.linspace(0.02, 0.98, 49, dtype=dtype), rng()
    shape = (len(t), DIMS.length, DIMS.width)
    x0, eps = (torch.randn(shape, generator=draw, dtype=dtype) for _ in range(2))
    level = quarter_circle(t).over(x0)
    return Noised(x0=x0, eps=eps, x_t=level.alpha * x0 + level.sigma * eps, t=t)


class Codes(nn.Module):
    """The plainest embedding: a random vector of length sqrt(E) for every word."""

    def __init__(self) -> None:
        super().__init__()
        rows = torch.randn(DIMS.vocab, DIMS.width, generator=rng())
        self.weight = nn.Parameter(F.normalize(rows, dim=1) * DIMS.width**0.5)

    def table(self) -> Tensor:
        return self.weight

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def guess() -> Guess:
    """What a loss sees of a network that says pure noise where it should say x0."""
    embedding, given, t = Codes(), batch(), torch.tensor([0.2, 0.5, 0.9])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        guidance, length = Classifier(dims=DIMS), Predicted(dims=DIMS)
    x0 = embedding(given.ids).detach()
    eps, said = (torch.randn(x0.shape, generator=rng(seed)) for seed in (1, 2))
    level = quarter_circle(t).over(x0)
    corrupt = Noised(x0=x0, eps=eps, x_t=level.alpha * x0 + level.sigma * eps, t=t)
    return Guess(
        batch=given,
        condition=Condition(features=given.features, keep=torch.ones(B, dtype=torch.bool)),
        noised=corrupt,
        mask=mask(),
        wanted=x0,
        got=said,
        x0_hat=said,
        spread=torch.zeros(()),
        think=lambda x_t, t: said,
        embedding=embedding,
        schedule=quarter_circle,
        guidance=guidance,
        length=length,
    )


def saying(before: Guess, said: Tensor) -> Guess:
    """The same guess of a network that says this."""
    return replace(before, got=said, x0_hat=said, think=lambda x_t, t: said)


def pictures() -> list[Image.Image]:
    """Four random images of different sizes, RGB."""
    sizes = ((48, 48), (60, 40), (33, 64), (48, 48))
    draw = rng()
    pixels = (torch.randint(0, 256, (h, w, 3), generator=draw).to(torch.uint8) for w, h in sizes)
    return [Image.fromarray(values.numpy()) for values in pixels]


def answers() -> Answers:
    """Captions of eight drawn scenes: right, worded otherwise, of another scene, and empty."""
    from cdlm.parts.datasets.shapes.dataset import Shapes

    split = Shapes(train=8, held_out=8).split("test")
    right, other = split.captions, [*split.captions[1:], split.captions[0]]
    said = [texts[0] for texts in [*right[:4], *other[4:7]]]
    return Answers(
        image_ids=split.ids,
        captions=[*said, ""],
        references=[texts[:3] for texts in right],
        truths=split.truths,
        features=lambda encoder: encoder.encode(split.images(range(len(split.ids)))),
        training=lambda: [texts[0] for texts in right[:3]],
    )


def gradients(out: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of a random weighted sum of `out` at each input; None where there is no path."""
    if not out.requires_grad:
        return [None] * len(inputs)
    pull = torch.randn(out.shape, generator=rng(1)).to(out)
    return list(torch.autograd.grad((out * pull).sum(), inputs, allow_unused=True))


def stir(module: nn.Module) -> nn.Module:
    """Shake every trainable weight, so that one that starts at zero has an effect."""
    draw = rng(99)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.1)
    return module
