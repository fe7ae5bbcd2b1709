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
from copy import copy
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cdlm.compose import dataset, make
from cdlm.data import flat
from cdlm.doctor import Finding
from cdlm.errors import DataError
from cdlm.features import features, text_features
from cdlm.places import cache_dir
from cdlm.progress import Tell, silent
from cdlm.protocols import Encoder, Split
from cdlm.recipe import Recipe

MOST = 1500  # images whose captions are compared with each other
SHUFFLES = 30
CERTAIN = 6.0  # standard deviations above shuffled rows
FAINT = 0.02  # on Flickr8k: moved rows 0.005, mean colours 0.04, MobileNet 0.33
STRETCHES = 10  # of rows, each looked at by itself
LEAST = 20  # images of a stretch; fewer say too little
FAR_BELOW = 1 / 3  # of what good stretches have: intact Flickr8k keeps above 0.7, shifted below 0.3
EQUAL = 1 - 1e-5  # cosine of rows that are the same


def examine(recipe: Recipe, splits: Sequence[str] = (), tell: Tell = silent) -> list[Finding]:
    """Findings on the features of these splits: training and evaluation, unless named.

    Raises CdlmError for a recipe that can't be built and splits that are not to be had.
    """
    encoder: Encoder = make(recipe.one("encoder"))
    data = dataset(recipe)
    names = splits or ("train", recipe.evaluate.split)
    return [
        replace(finding, name=f"{name} {finding.name}")
        for name in dict.fromkeys(names)
        for finding in _of_split(encoder, data.split(name), tell)
    ]


def _of_split(encoder: Encoder, split: Split, tell: Tell) -> list[Finding]:
    try:
        return _of_features(encoder, split, tell)
    except DataError as error:  # rows that the file lacks, or that are not finite
        what, *hints = (line.strip() for line in str(error).splitlines())
        return [Finding("features", "bad", what, "; ".join(hints))]


def _with_photos(split: Split) -> Split:
    """The images that have features, and their captions."""
    if all(split.pictured):
        return split
    seen = copy(split)
    seen.ids = [it for it, there in zip(split.ids, split.pictured, strict=True) if there]
    seen.captions = [it for it, there in zip(split.captions, split.pictured, strict=True) if there]
    return seen


def _of_features(encoder: Encoder, split: Split, tell: Tell) -> list[Finding]:
    table, split = features(encoder, split, cache_dir(), tell), _with_photos(split)
    found = rows(table, "images")
    if not bool(table.isfinite().all()):  # nothing can be compared with it
        return found
    found += alignment(table.mean(1), split)
    if "texts" in getattr(encoder, "provides", ()):
        texts = flat(split)
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


def alignment(pooled: Tensor, split: Split) -> list[Finding]:
    """Whether images with like captions have like features: of all, and of each stretch of rows.

    A Mantel test: the correlation, over all pairs of images, of the cosine of their captions'
    words (tf-idf) with the cosine of their centred features, against shuffled rows.
    Shapes: pooled images C.
    """
    if len(pooled) < LEAST:
        text = f"{len(pooled)} images are too few to tell"
        return [Finding("rows against captions", "warn", text)]
    some = torch.randperm(len(pooled), generator=Generator().manual_seed(0))[:MOST].sort().values
    words = _standard(_tf_idf([split.captions[i] for i in some.tolist()]))
    centred = F.normalize(pooled[some] - pooled[some].mean(0), dim=1)
    alike = _standard(centred @ centred.T)
    whole = _against_captions(words, alike)
    if whole.status == "bad":
        return [whole]
    return [whole, _stretches(words, alike, [split.ids[i] for i in some.tolist()])]


def _against_captions(words: Tensor, alike: Tensor) -> Finding:
    """Of all rows. Shapes: words, alike images images."""
    chance = torch.stack([it.mean() for it in _shuffled(words, alike)])
    here = float(_agreement(words, alike).mean())
    certain = (here - float(chance.mean())) / max(float(chance.std()), 1e-12)
    text = f"correlation {here:.3f}, {certain:.1f} standard deviations above shuffled rows"
    if certain > CERTAIN and here > FAINT:  # neighbours are a little alike: sure, but not enough
        return Finding("rows against captions", "ok", text)
    mend = "the rows are probably in another order than their names"
    return Finding("rows against captions", "bad", text, mend)


def _stretches(words: Tensor, alike: Tensor, ids: Sequence[str]) -> Finding:
    """Of each stretch of rows: one photo that was left out moves all rows behind it.

    The order of a file's rows is not known, so both likely ones are tried: the split's, and that
    of the names. Shapes: words, alike images images.
    """
    name, count = "stretches of rows", min(STRETCHES, len(ids) // LEAST)
    words, alike = _without_means(words), _without_means(alike)
    chance = torch.stack(_shuffled(words, alike))
    certain = (_agreement(words, alike) - chance.mean()) / chance.std().clamp(min=1e-12)
    rows = range(len(ids))
    found = [_weakest(certain, order, count) for order in (rows, sorted(rows, key=ids.__getitem__))]
    if count < 3:
        return Finding(name, "warn", f"{len(ids)} images are too few to look part by part")
    if min(good for _, good, _ in found) < CERTAIN / (1 - FAR_BELOW):
        return Finding(name, "warn", "rows fit their captions too little to look part by part")
    least, good, part = min(found, key=lambda it: it[0] / it[1])
    share = max(least / good, 0)
    text = f"of {count}, the least fits its captions {share:.0%} as well as good ones"
    if share > FAR_BELOW:
        return Finding(name, "ok", text)
    where = f"{ids[part[0]]} to {ids[part[-1]]}"
    return Finding(name, "bad", f"{text}: {where}", "rows there belong to other images")


def _weakest(certain: Tensor, order: Sequence[int], count: int) -> tuple[float, float, list[int]]:
    """The least sure stretch in this order: how sure it is, how sure good ones are, its rows.

    In standard deviations of chance. Shapes: certain images.
    """
    parts = torch.tensor(order).chunk(count)
    sure = torch.stack([certain[part].sum() / len(part) ** 0.5 for part in parts])
    return float(sure.min()), float(sure.quantile(0.75)), parts[int(sure.argmin())].tolist()


def _agreement(words: Tensor, alike: Tensor) -> Tensor:
    """How far the two agree on each image. Shapes: images images -> images."""
    return (words * alike).sum(1) / (len(words) - 1)


def _shuffled(words: Tensor, alike: Tensor) -> list[Tensor]:
    """The same with rows in other orders, which is chance."""
    draw = Generator().manual_seed(1)
    orders = (torch.randperm(len(words), generator=draw) for _ in range(SHUFFLES))
    return [_agreement(words, alike[order][:, order]) for order in orders]


def _without_means(square: Tensor) -> Tensor:
    """Without what an image has with all others, which no order of rows changes."""
    means = square.sum(1, keepdim=True) / (len(square) - 1)
    return (square - means).fill_diagonal_(0)


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


def _standard(square: Tensor) -> Tensor:
    """Standardised over the pairs of different images; 0 on the diagonal."""
    apart = ~torch.eye(len(square), dtype=torch.bool)
    values = square[apart]
    return ((square - values.mean()) / values.std().clamp(min=1e-12)).fill_diagonal_(0)


def pairs(images: Tensor, captions: Tensor, split: Split) -> list[Finding]:
    """Images beside the features of their own captions. Shapes: images C, captions C."""
    owner = torch.tensor([i for i, texts in enumerate(split.captions) for _ in texts])
    own = F.cosine_similarity(captions, images[owner])
    order = torch.randperm(len(images), generator=Generator().manual_seed(2))
    other = F.cosine_similarity(captions, images[order][owner])
    return [
        *_differing(captions, split),
        _copied(own, owner),
        _own_image(own, other, _gap(images, captions)),
    ]


def _differing(captions: Tensor, split: Split) -> list[Finding]:
    """The first two captions of an image have two features; nothing where no image has two."""
    several = [i for i, texts in enumerate(split.captions) if len(set(texts[:2])) > 1]
    if not several:
        return []
    starts = torch.tensor([len(texts) for texts in split.captions]).cumsum(0).roll(1)
    starts[0] = 0
    first, second = captions[starts[several]], captions[starts[several] + 1]
    same = float((F.cosine_similarity(first, second) > EQUAL).float().mean())
    text = f"{same:.0%} of images have captions of one and the same feature"
    mend = "" if same < 0.5 else "the features of images and captions are swapped"
    return [Finding("captions: differ", "bad" if mend else "ok", text, mend)]


def _copied(own: Tensor, owner: Tensor) -> Finding:
    """No image has the feature of one of its captions. Shapes: own, owner captions."""
    share = len(owner[own > EQUAL].unique()) / len(owner.unique())
    text = f"{share:.0%} of images have the feature of one of their captions"
    mend = "" if share < 0.5 else "features of captions stand where those of images should"
    return Finding("images: not captions", "bad" if mend else "ok", text, mend)


def _own_image(own: Tensor, other: Tensor, gap: float) -> Finding:
    """Captions are nearer to their own images than to others. Shapes: own, other captions."""
    nearer = float(own.mean() - other.mean())
    certain = nearer / max(float((own - other).std()) / len(own) ** 0.5, 1e-12)
    cosines = f"{float(own.mean()):.3f} with the own image, {float(other.mean()):.3f} with another"
    text = f"cosine {cosines}; the means of images and captions are {gap:.2f} apart"
    good = certain > CERTAIN
    mend = "" if good else "not from one model, swapped, or in another order"
    return Finding("captions: own image", "ok" if good else "bad", text, mend)


def _gap(images: Tensor, captions: Tensor) -> float:
    """The modality gap: the distance of the means of unit vectors, 0 to 2 (Liang et al. 2022)."""
    means = [F.normalize(table, dim=1).mean(0) for table in (images, captions)]
    return float((means[0] - means[1]).norm())
