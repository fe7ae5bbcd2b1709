"""What is wrong with the features of a recipe's images and captions, if anything.

Caches of features go wrong silently: rows moved by one, images and captions swapped, NaN, vectors
that were not normalised. Training on them works, and gives captions of other photos. What tells:
features of one image are one row; features of its captions differ; images whose captions share
words have features that are alike, more than they would if rows were shuffled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cdlm.compose import dataset, make
from cdlm.doctor import Finding
from cdlm.features import features, text_features
from cdlm.places import cache_dir
from cdlm.progress import Tell, silent
from cdlm.protocols import Encoder, Split
from cdlm.recipe import Recipe

MOST = 1500  # images whose captions are compared with each other
SHUFFLES = 30
CERTAIN = 6.0  # standard deviations above shuffled rows
EQUAL = 1 - 1e-5  # cosine of rows that are the same


def examine(recipe: Recipe, tell: Tell = silent) -> list[Finding]:
    """Findings on the features of the recipe's evaluation split. Raises CdlmError."""
    encoder: Encoder = make(recipe.one("encoder"))
    split = dataset(recipe).split(recipe.evaluate.split)
    table = features(encoder, split, cache_dir(), tell)
    found = [*rows(table, "images"), alignment(table.mean(1), split)]
    if "texts" in getattr(encoder, "provides", ()):
        texts = [text for captions in split.captions for text in captions]
        said = text_features(encoder, texts, cache_dir(), tell)
        found += [*rows(said, "captions"), *pairs(table[:, 0], said[:, 0], split)]
    return found


def rows(table: Tensor, what: str) -> list[Finding]:
    """Numbers, lengths and repetitions of features. Shapes: images N C."""
    flat = table.flatten(1)
    bad = int((~flat.isfinite().all(1)).sum())
    if bad:
        return [Finding(f"{what}: numbers", "bad", f"NaN or infinity in {bad:,} of {len(flat):,}")]
    size = f"{len(flat):,} of {' x '.join(map(str, table.shape[1:]))}"
    found = [
        Finding(f"{what}: numbers", "ok", f"all finite: {size}"),
        _lengths(table, what),
        _constant(table, what),
    ]
    return [*found, _repeated(flat)] if what == "images" else found


def _lengths(table: Tensor, what: str) -> Finding:
    norms = table.flatten(0, 1).norm(dim=1)
    least, most = float(norms.min()), float(norms.max())
    if least == 0:
        text = f"{int((norms == 0).sum()):,} vectors are 0"
        return Finding(f"{what}: length", "bad", text, "images that the encoder never saw?")
    if most - least < 0.02 * most:
        return Finding(f"{what}: length", "ok", f"all of about {most:.3g}")
    text = f"not normalised: from {least:.3g} to {most:.3g}"
    mend = "no harm to cdlm's conditioning, which normalises; cosines need it"
    return Finding(f"{what}: length", "warn", text, mend)


def _repeated(flat: Tensor) -> Finding:
    count = len(flat) - len(torch.unique(flat, dim=0))
    text = f"{count:,} of {len(flat):,} repeat another row"
    if count <= 0.01 * len(flat):
        return Finding("images: rows", "ok", text)
    return Finding("images: rows", "bad", text, "each image has one row; captions may have several")


def _constant(table: Tensor, what: str) -> Finding:
    still = int((table.flatten(0, 1).std(0) < 1e-8).sum())
    text = f"{still:,} of {table.shape[-1]:,} are the same everywhere"
    bad = still > table.shape[-1] / 2
    return Finding(f"{what}: columns", "bad" if bad else "ok", text)


# --------------------------------------------------------------------- rows against their captions


def alignment(pooled: Tensor, split: Split) -> Finding:
    """Whether images with like captions have like features. Shapes: pooled images C.

    A Mantel test: the correlation, over all pairs of images, of the cosine of their captions'
    words (tf-idf) with the cosine of their centred features, against shuffled rows.
    """
    some = torch.randperm(len(pooled), generator=Generator().manual_seed(0))[:MOST].sort().values
    words = _off_diagonal(_tf_idf([split.captions[i] for i in some.tolist()]))
    centred = F.normalize(pooled[some] - pooled[some].mean(0), dim=1)
    alike = centred @ centred.T
    draw = Generator().manual_seed(1)
    if len(some) < 20:
        text = f"{len(some)} images are too few to tell"
        return Finding("rows against captions", "warn", text)

    def match(order: Tensor) -> float:
        return float((_off_diagonal(alike[order][:, order]) * words).mean())

    chance = torch.tensor(
        [match(torch.randperm(len(some), generator=draw)) for _ in range(SHUFFLES)]
    )
    here = match(torch.arange(len(some)))
    certain = (here - float(chance.mean())) / max(float(chance.std()), 1e-12)
    text = f"correlation {here:.3f}, {certain:.1f} standard deviations above shuffled rows"
    if certain > CERTAIN:
        return Finding("rows against captions", "ok", text)
    mend = "the rows are probably in another order than their names"
    return Finding("rows against captions", "bad", text, mend)


def _tf_idf(captions: Sequence[Sequence[str]]) -> Tensor:
    """Cosines of the words of all captions of each image. -> images images."""
    bags = [Counter(word for text in texts for word in text.lower().split()) for texts in captions]
    seen = Counter(word for bag in bags for word in bag)
    telling = [word for word, images in seen.items() if 1 < images < len(bags) / 2]
    column = {word: i for i, word in enumerate(telling)}
    table = torch.zeros(len(bags), max(1, len(column)))
    for row, bag in enumerate(bags):
        for word, count in bag.items():
            if word in column:
                rare = math.log(len(bags) / seen[word])
                table[row, column[word]] = (1 + math.log(count)) * rare
    unit = F.normalize(table, dim=1)
    return unit @ unit.T


def _off_diagonal(square: Tensor) -> Tensor:
    """The pairs of different images, standardised."""
    one, two = torch.triu_indices(len(square), len(square), 1)
    values = square[one, two]
    return (values - values.mean()) / values.std().clamp(min=1e-12)


def pairs(images: Tensor, captions: Tensor, split: Split) -> list[Finding]:
    """Images beside the features of their own captions. Shapes: images C, captions C."""
    owner = torch.tensor([i for i, texts in enumerate(split.captions) for _ in texts])
    several = [i for i, texts in enumerate(split.captions) if len(set(texts)) > 1]
    found = []
    if several:
        starts = torch.tensor([len(texts) for texts in split.captions]).cumsum(0).roll(1)
        starts[0] = 0
        first, second = captions[starts[several]], captions[starts[several] + 1]
        same = float((F.cosine_similarity(first, second) > EQUAL).float().mean())
        text = f"{same:.0%} of images have captions of one and the same feature"
        mend = "" if same < 0.5 else "the features of images and captions are swapped"
        found.append(Finding("captions: differ", "bad" if mend else "ok", text, mend))
    own = F.cosine_similarity(captions, images[owner])
    order = torch.randperm(len(images), generator=Generator().manual_seed(2))
    other = F.cosine_similarity(captions, images[order][owner])
    gap = float(own.mean() - other.mean())
    certain = gap / max(float((own - other).std()) / len(own) ** 0.5, 1e-12)
    text = (
        f"cosine {float(own.mean()):.3f} with the own image, {float(other.mean()):.3f} with another"
    )
    good = certain > CERTAIN
    mend = "" if good else "not from one model, swapped, or in another order"
    return [*found, Finding("captions: own image", "ok" if good else "bad", text, mend)]
