"""Laws of what brings data and judges captions.

Kinds dataset, encoder, views, tokenizer, length and metric.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cdlm.errors import CdlmError, DataError
from cdlm.protocols import Dataset, Encoder, Length, Metric, Split, Tokenizer, Views
from cdlm.records import Answers
from cdlm.testing.examples import CAPTIONS, DIMS, IDS, B, answers, batch, condition, pictures, rng

SPLITS = ("train", "val", "test")

# --------------------------------------------------------------------------------------- dataset


def _splits(dataset: Dataset) -> dict[str, Split]:
    """The splits that are to be had; there must be one to train on."""
    found = {}
    for name in SPLITS:
        try:
            found[name] = dataset.split(name)
        except DataError:
            assert name != "train", "there is no split to train on"
    return found


def check_dataset_captions_every_image(dataset: Dataset) -> None:
    """Ids are unique; every image has a truth (or None) and a caption, and none is blank."""
    for name, split in _splits(dataset).items():
        count = len(split.ids)
        assert count == len(set(split.ids)) > 0, f"{name}: an id comes twice, or there is none"
        assert len(split.captions) == len(split.truths) == count, f"{name}: lists of other lengths"
        assert all(texts for texts in split.captions), f"{name}: an image without a caption"
        assert all(text.strip() for texts in split.captions for text in texts), f"{name}: a blank"


def check_dataset_keeps_splits_apart(dataset: Dataset) -> None:
    """No image id stands in two splits: a test on what was trained on measures nothing."""
    home: dict[str, str] = {}
    for name, split in _splits(dataset).items():
        for image in split.ids:
            assert home.setdefault(image, name) == name, f"{image} is in {home[image]} and {name}"


def check_dataset_names_its_splits(dataset: Dataset) -> None:
    """No two splits have one fingerprint, by which ready features are found again."""
    found = _splits(dataset)
    assert len({split.fingerprint for split in found.values()}) == len(found), "one fingerprint"


def check_dataset_weighs_every_image(dataset: Dataset) -> None:
    """Every image has a weight, finite and above 0."""
    for name, split in _splits(dataset).items():
        assert len(split.weights) == len(split.ids), f"{name}: {len(split.weights)} weights"
        good = all(math.isfinite(weight) and weight > 0 for weight in split.weights)
        assert good, f"{name}: a weight that is no number above 0"


def check_dataset_is_judged_on_photos(dataset: Dataset) -> None:
    """It says of every image whether there is a photo; only training has captions without."""
    for name, split in _splits(dataset).items():
        assert len(split.pictured) == len(split.ids), f"{name}: {len(split.pictured)} pictured"
        assert name == "train" or all(split.pictured), f"{name}: images that have no photo"


def check_dataset_repeats(dataset: Dataset) -> None:
    """Asked twice, a split has the same ids, captions, fingerprint and pixels."""
    for name in _splits(dataset):
        one, two = dataset.split(name), dataset.split(name)
        assert one.ids == two.ids and one.captions == two.captions, f"{name}: other captions"
        assert one.fingerprint == two.fingerprint, f"{name}: another fingerprint"
        pairs = zip(one.images([0]), two.images([0]), strict=True)
        assert all(a.tobytes() == b.tobytes() for a, b in pairs), f"{name}: other pixels"


def check_dataset_gives_the_images_asked_for(dataset: Dataset) -> None:
    """`images` gives as many as asked for, in that order, RGB; none for none."""
    for name, split in _splits(dataset).items():
        last = len(split.ids) - 1
        found = split.images([last, 0, last])
        assert [image.mode for image in found] == ["RGB"] * 3, f"{name}: not three RGB images"
        alone = [*split.images([last]), *split.images([0])]
        assert found[0].tobytes() == found[2].tobytes() == alone[0].tobytes(), f"{name}: order"
        assert found[1].tobytes() == alone[1].tobytes(), f"{name}: order"
        assert split.images([]) == [], f"{name}: images for no indices"


def check_dataset_refuses_unknown_splits(dataset: Dataset) -> None:
    """A split that is not to be had is a DataError; `provides` is a set of texts."""
    try:
        dataset.split("no such split")
    except DataError:
        pass
    else:
        raise AssertionError("it has a split called 'no such split'")
    assert all(isinstance(name, str) for name in dataset.provides)


# --------------------------------------------------------------------------------------- encoder


def _features(encoder: Encoder) -> Tensor:
    """What the encoder has ready for the ids of `examples`, or else makes of its pictures."""
    ready = encoder.lookup(IDS)
    return encoder.encode(pictures()) if ready is None else ready


def check_encoder_gives_its_shape(encoder: Encoder) -> None:
    """B N C, as `shape` says; float32 on the CPU, finite, without a gradient."""
    features = _features(encoder)
    wanted = (len(IDS), *encoder.shape())
    assert features.shape == wanted, f"{tuple(features.shape)}, but shape() says {wanted}"
    assert features.dtype == torch.float32, f"{features.dtype}, not float32"
    assert features.device.type == "cpu" and not features.requires_grad, "not a plain CPU tensor"
    assert bool(features.isfinite().all()), "not finite"


def check_encoder_repeats(encoder: Encoder) -> None:
    """Twice the same features; different images have different ones."""
    one, two = _features(encoder), _features(encoder)
    assert torch.equal(one, two), "two calls differ"
    apart = torch.cdist(one.flatten(1), one.flatten(1)) + torch.eye(len(one)) * 1e9
    assert float(apart.min()) > 0, "two images have the same features"


def check_encoder_sees_each_image_alone(encoder: Encoder) -> None:
    """An image's features do not depend on the others of the batch."""
    whole = _features(encoder)
    ready = encoder.lookup(IDS[2:3])
    alone = encoder.encode(pictures()[2:3]) if ready is None else ready
    assert_close(alone, whole[2:3], rtol=1e-4, atol=1e-5)


def check_encoder_reads_captions_if_it_says_so(encoder: Encoder) -> None:
    """`provides` texts: captions -> B 1 C, each by itself; else it refuses, and says why."""
    if "texts" not in getattr(encoder, "provides", ()):
        with suppress(CdlmError):
            encoder.texts(CAPTIONS)
            raise AssertionError("it reads captions, but does not provide texts")
        return
    found, width = encoder.texts(CAPTIONS), encoder.shape()[1]
    assert found.shape == (len(CAPTIONS), 1, width), f"{tuple(found.shape)}, not B 1 C"
    assert found.dtype == torch.float32 and found.device.type == "cpu", "not float32 on the CPU"
    assert bool(found.isfinite().all()), "not finite"
    assert_close(encoder.texts(CAPTIONS[2:3]), found[2:3], rtol=1e-4, atol=1e-5)
    assert float(torch.pdist(found[:, 0]).min()) > 0, "two captions have the same feature"


def check_encoder_knows_itself(encoder: Encoder) -> None:
    """`identity` can be stored as JSON and is the same at every call; `needs` is a set of texts."""
    one, two = (json.dumps(encoder.identity(), sort_keys=True) for _ in range(2))
    assert one == two, "the identity changes between two calls"
    assert len(encoder.identity()) > 0, "the identity is empty"
    assert all(isinstance(name, str) for name in encoder.needs)


# ----------------------------------------------------------------------------------------- views


def check_views_gives_its_count(views: Views) -> None:
    """As many as `count` says, RGB, none empty; the photo stays as it was."""
    picture = pictures()[0]
    before, found = picture.tobytes(), list(views(picture, Random(0)))
    assert len(found) == views.count >= 0, f"{len(found)} views, but count says {views.count}"
    assert [view.mode for view in found] == ["RGB"] * len(found), "not all of them are RGB"
    assert all(min(view.size) > 0 for view in found), "an empty view"
    assert picture.tobytes() == before, "the photo is another one now"


def check_views_repeats(views: Views) -> None:
    """The same generator gives the same views, by which ready features are found again."""
    picture = pictures()[0]
    one, two = ([(it.size, it.tobytes()) for it in views(picture, Random(0))] for _ in range(2))
    assert one == two, "other views of the same photo"


def check_views_knows_itself(views: Views) -> None:
    """`identity` can be stored as JSON, is the same at every call, and is not empty."""
    one, two = (json.dumps(views.identity(), sort_keys=True) for _ in range(2))
    assert one == two and len(views.identity()) > 0, "the identity changes, or is empty"


# ------------------------------------------------------------------------------------- tokenizer

LONG = [" ".join(CAPTIONS), *CAPTIONS]  # the first of them is longer than any L here


def check_tokenizer_gives_captions_back(tokenizer: Tokenizer) -> None:
    """decode(encode(caption)) is the caption, where it is lower case and of known words."""
    ids, _ = tokenizer.encode(CAPTIONS, 32)
    assert tokenizer.decode(ids) == CAPTIONS, f"got {tokenizer.decode(ids)}"


def check_tokenizer_ends_and_pads(tokenizer: Tokenizer) -> None:
    """The mask is True up to the only end token, its last; padding and only padding follows.

    Also for captions that are cut, for an empty one, and for one that spells the end token.
    """
    assert tokenizer.pad != tokenizer.end, "padding and end are one token"
    for length in (2, DIMS.length, 32):
        ids, mask = tokenizer.encode([*LONG, "", *_special(tokenizer)], length)
        assert ids.shape == mask.shape and ids.shape[1] == length, f"shape {tuple(ids.shape)}"
        assert mask.dtype == torch.bool and not ids.is_floating_point(), "wrong types"
        used = mask.sum(1)
        assert torch.equal(mask, torch.arange(length) < used[:, None]), "the mask has holes"
        ends = ids == tokenizer.end
        assert torch.equal(ends.sum(1), torch.ones_like(used)), "not one end token for each caption"
        assert torch.equal(ends.int().argmax(1), used - 1), "the mask does not stop at the end"
        assert bool((ids[~mask] == tokenizer.pad).all()), "not padding behind the end"
        assert not bool((ids[mask] == tokenizer.pad).any()), "padding inside a caption"


def _special(tokenizer: Tokenizer) -> list[str]:
    """Captions that spell what well-known tokenizers call their end and padding."""
    names = ("[END]", "[SEP]", "[PAD]", "</s>", "<pad>", "<|endoftext|>")
    return [f"a dog {name} runs" for name in names]


def check_tokenizer_cuts_long_captions(tokenizer: Tokenizer) -> None:
    """A caption that is too long keeps its beginning, then ends."""
    whole, _ = tokenizer.encode(LONG[:1], 64)
    cut, mask = tokenizer.encode(LONG[:1], 4)
    assert torch.equal(cut[:, :3], whole[:, :3]), "the beginning is not kept"
    assert int(cut[0, 3]) == tokenizer.end and bool(mask.all()), "it does not end"


def check_tokenizer_stops_at_the_end(tokenizer: Tokenizer) -> None:
    """What follows the first end token does not change the caption."""
    ids, mask = tokenizer.encode(CAPTIONS, 32)
    junk = torch.randint(0, len(tokenizer), ids.shape, generator=rng())
    assert tokenizer.decode(torch.where(mask, ids, junk)) == tokenizer.decode(ids)


def check_tokenizer_reads_any_ids(tokenizer: Tokenizer) -> None:
    """Any ids below V decode to a text, without an end too; what it encodes to lies below V."""
    ids = torch.randint(0, len(tokenizer), (16, 8), generator=rng())
    assert [type(text) for text in tokenizer.decode(ids)] == [str] * 16
    known, _ = tokenizer.encode([*LONG, "nobody knows these ŵörds ☃"], 32)
    assert int(known.min()) >= 0 and int(known.max()) < len(tokenizer), "an id outside V"


def check_tokenizer_repeats(tokenizer: Tokenizer) -> None:
    """Fitted again on the same captions, it gives the same ids."""
    first, _ = tokenizer.encode(LONG, 32)
    tokenizer.fit(CAPTIONS)
    assert torch.equal(first, tokenizer.encode(LONG, 32)[0]), "other ids"


def check_tokenizer_survives_saving(tokenizer: Tokenizer) -> None:
    """What loads a saved tokenizer is that tokenizer, whatever it was fitted on before."""
    other = deepcopy(tokenizer)
    other.fit(["quite another caption with other words"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        other.load(path)
    for name in ("pad", "end"):
        assert getattr(other, name) == getattr(tokenizer, name), f"another {name}"
    assert len(other) == len(tokenizer), "another vocabulary"
    ids, _ = tokenizer.encode(LONG, 32)
    assert torch.equal(other.encode(LONG, 32)[0], ids), "other ids"
    assert other.decode(ids) == tokenizer.decode(ids), "other captions"


# ---------------------------------------------------------------------------------------- length


def _seen(length: Length) -> Tensor:
    """Let it see a training batch, as it does before anything is sampled."""
    if isinstance(length, nn.Module):
        length.train()
    return length.mask(batch())


def check_length_covers_the_caption(length: Length) -> None:
    """In training: B L bool, and every word of a caption is in, its end token too."""
    mask, given = _seen(length), batch()
    assert mask.shape == given.mask.shape and mask.dtype == torch.bool, "not B L bool"
    assert bool((mask | ~given.mask).all()), "a word of a caption is left out"


def check_length_draws_positions(length: Length) -> None:
    """In sampling: B L bool, at least one position for each caption; the same for the same rng."""
    _seen(length)
    one, two = (length.draw(condition(), rng(4)) for _ in range(2))
    assert one.shape == (B, DIMS.length) and one.dtype == torch.bool, "not B L bool"
    assert bool(one.any(1).all()), "a caption without a position"
    assert torch.equal(one, two), "two draws from the same rng differ"


def check_length_draws_a_beginning(length: Length) -> None:
    """What a sampled caption occupies is the first positions, without a gap."""
    _seen(length)
    for seed in range(10):
        drawn = length.draw(condition(), rng(seed)).int()
        assert bool((drawn.diff(dim=1) <= 0).all()), "a position is used behind an unused one"


def check_length_hides_a_withheld_image(length: Length) -> None:
    """Where the image is withheld, nothing of its feature is left in the length."""
    _seen(length)
    for seed in range(10):
        given = (condition(keep=False, seed=it) for it in range(2))
        one, two = (length.draw(it, rng(seed)) for it in given)
        assert torch.equal(one, two), "a withheld image changes the length"


def check_length_learns_in_training_only(length: Length) -> None:
    """Neither masks in eval mode nor draws change what it knows; the batch stands as before."""
    _seen(length)
    given = batch()
    before, old = _state(length), given.mask.clone()
    if isinstance(length, nn.Module):
        length.eval()
    length.mask(given)
    length.draw(condition(), rng())
    for name, value in _state(length).items():
        assert torch.equal(value, before[name]), f"{name} changed outside training"
    assert torch.equal(given.mask, old), "it writes into the batch's mask"


def _state(length: Length) -> dict[str, Tensor]:
    known = length.state_dict() if isinstance(length, nn.Module) else {}
    return {name: value.clone() for name, value in known.items()}


# ---------------------------------------------------------------------------------------- metric


def check_metric_gives_finite_numbers(metric: Metric) -> None:
    """{name: number}, at least one, all finite; the same at every call; `needs` a set of texts."""
    found = metric(answers())
    assert found, "no value"
    for name, value in found.items():
        assert isinstance(name, str) and isinstance(value, float), f"{name}: {value!r}"
        assert math.isfinite(value), f"{name} is {value}"
    _must_agree(metric(answers()), found)
    assert all(isinstance(name, str) for name in metric.needs)


def check_metric_ignores_the_order(metric: Metric) -> None:
    """The order of the images, and of an image's references, changes no value."""
    given = answers()
    features = given.features
    turned = replace(
        given,
        image_ids=given.image_ids[::-1],
        captions=given.captions[::-1],
        references=[texts[::-1] for texts in given.references[::-1]],
        truths=given.truths[::-1],
        features=features and (lambda encoder: features(encoder).flip(0)),
    )
    _must_agree(metric(turned), metric(given))


def check_metric_tally_adds_up(metric: Metric) -> None:
    """Where each image has its tally, the scores are those of the sum, and of sums in a batch."""
    given = answers()
    tally = metric.tally(given)
    if tally is not None:
        assert len(tally.rows) == len(given.captions), f"{len(tally.rows)} rows"
        total, found = tally.rows.sum(0), metric(given)
        _must_agree(tally.total(), found)
        both = tally.score(np.stack([total, 2 * total]))
        assert {name: values.shape for name, values in both.items()} == dict.fromkeys(found, (2,))


def check_metric_marks_each_caption(metric: Metric) -> None:
    """`marks` is None, or True or False for each caption, in their order."""
    given = answers()
    marks = metric.marks(given)
    if marks is not None:
        assert [type(mark) for mark in marks] == [bool] * len(given.captions), f"marks: {marks}"
        half = metric.marks(_first(given, 4))
        assert half == marks[:4], "a caption's mark depends on the others"


def check_metric_tells_right_from_wrong(metric: Metric) -> None:
    """The images' own first references score otherwise than those of other images."""
    given = answers()
    right = [texts[0] for texts in given.references]
    one, two = (metric(replace(given, captions=said)) for said in (right, _shifted(right)))
    assert one != two, f"right and wrong captions both get {one}"


def _shifted(items: list[str]) -> list[str]:
    return [*items[1:], items[0]]


def _first(given: Answers, count: int) -> Answers:
    fields: dict[str, Any] = {
        name: value[:count] for name, value in vars(given).items() if isinstance(value, list)
    }
    features = given.features
    return replace(given, **fields, features=features and (lambda it: features(it)[:count]))


def _must_agree(one: dict[str, float], two: dict[str, float]) -> None:
    assert _sorted(one) == _sorted(two), f"other names: {sorted(one)}, {sorted(two)}"
    for name, value in one.items():
        assert math.isclose(value, two[name], rel_tol=1e-9, abs_tol=1e-9), f"{name} differs"


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names)
