"""Drawn scenes: splits apart, captions true, pictures clear; and a judge that lets nothing pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor

from cdlm.errors import DataError
from cdlm.parts.datasets.shapes import drawing
from cdlm.parts.datasets.shapes.dataset import Shapes, TrueCaption
from cdlm.parts.datasets.shapes.language import (
    is_true,
    say,
    understand,
    vocabulary,
    word_ids,
    wordings,
)
from cdlm.parts.datasets.shapes.scenes import (
    ATTRIBUTES,
    AXES,
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    GAP,
    SHAPES,
    SIZES,
    Codes,
    Scene,
    Thing,
    arrange,
    distinct,
    random_codes,
    sample_codes,
    split_of,
)
from cdlm.records import Answers

MIX = torch.tensor([1.0, 2.0, 2.0])
SPLITS = ("train", "val", "test")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(count: int = 60, seed: int = 0) -> list[Scene]:
    return sample_codes(count, "train", MIX, generator(seed)).scenes()


def captions_of(scene: Scene) -> list[str]:
    return [say(scene, way) for way in wordings(len(scene.things), scene.axis)]


# --------------------------------------------------------------------------------------- contents


def test_every_content_is_in_one_split_and_in_the_share_that_is_said() -> None:
    codes = random_codes(20_000, MIX, generator())
    inside = torch.stack([split_of(codes, name) for name in SPLITS])
    assert bool((inside.sum(0) == 1).all())
    share = inside.float().mean(1)
    torch.testing.assert_close(share, torch.tensor([0.88, 0.06, 0.06]), rtol=0, atol=0.01)


def test_no_scene_of_val_or_test_is_ever_trained_on() -> None:
    """By content, as a person sees it: things in order, axis and background."""
    data = Shapes(train=3000, held_out=300, things=1), Shapes(train=3000, held_out=300)
    for shapes in data:
        found = {name: set(shapes.split(name).truths) for name in SPLITS}
        assert not found["train"] & found["val"]
        assert not found["train"] & found["test"]
        assert not found["val"] & found["test"]


def test_the_axis_of_a_single_thing_is_no_part_of_its_content() -> None:
    """It can't be seen, so it must not put one scene into two splits."""
    codes = random_codes(500, torch.tensor([1.0]), generator())
    other = Codes(codes.things, 1 - codes.axis, codes.background)
    for name in SPLITS:
        assert torch.equal(split_of(codes, name), split_of(other, name))
    assert codes.scenes() == other.scenes()


def test_the_same_content_is_in_the_same_split_whatever_the_data_set() -> None:
    """A small and a large one, of other seeds, and with room for more things."""
    codes = sample_codes(500, "test", MIX[:2], generator(5))
    assert bool(split_of(codes, "test").all())
    assert not bool(split_of(codes, "train").any() | split_of(codes, "val").any())


def test_equal_numbers_are_equal_contents() -> None:
    """All 864 scenes of one thing have numbers of their own."""
    sizes, colours, shapes = (torch.arange(n) for n in ATTRIBUTES)
    grid = torch.cartesian_prod(sizes, colours, shapes, torch.arange(len(BACKGROUNDS)))
    codes = Codes(grid[:, None, :3], torch.zeros(len(grid), dtype=torch.long), grid[:, 3])
    assert len(codes.content().unique()) == len(grid) == 864


def test_no_two_things_of_a_scene_are_alike() -> None:
    codes = sample_codes(2000, "train", MIX, generator())
    assert bool(distinct(codes).all())
    assert all(len(set(scene.things)) == len(scene.things) for scene in codes.scenes())


def test_there_are_one_two_and_three_things_and_no_more_than_asked_for() -> None:
    for most in (1, 2, 3):
        split = Shapes(train=300, things=most).split("train")
        counts = {len(scene.things) for scene in split.truths}
        assert counts == set(range(1, most + 1))


# --------------------------------------------------------------------------------------- captions


def test_every_wording_is_true_of_its_scene_and_understood() -> None:
    for scene in scenes():
        for caption in captions_of(scene):
            assert is_true(caption, scene), caption
            assert is_true("  ".join(caption.upper().split(" ")), scene)  # case and spaces are free
            claim = understand(caption)
            assert claim is not None
            assert replace(claim, background=scene.background) == scene


def test_wordings_are_different_sentences() -> None:
    for count, axis in ((1, None), (2, "across"), (2, "down"), (3, "across"), (3, "down")):
        ways = wordings(count, axis)
        assert len(set(ways)) == len(ways) >= 4


def changed(scene: Scene) -> Iterator[Scene]:
    """Every scene that differs in one attribute of one thing, the background, axis or order."""
    for i, thing in enumerate(scene.things):
        others = [Thing(s, thing.colour, thing.shape) for s in SIZES]
        others += [Thing(thing.size, c, thing.shape) for c in COLOURS]
        others += [Thing(thing.size, thing.colour, h) for h in SHAPES]
        for other in others:
            if other != thing:
                yield replace(scene, things=(*scene.things[:i], other, *scene.things[i + 1 :]))
    for order in permutations(scene.things):
        if order != scene.things:
            yield replace(scene, things=order)
    for axis in AXES:
        if scene.axis and axis != scene.axis:
            yield replace(scene, axis=axis)
    if len(scene.things) > 1:
        fewer = scene.things[:-1]
        yield replace(scene, things=fewer, axis=scene.axis if len(fewer) > 1 else None)


def test_no_caption_is_true_of_a_scene_that_differs() -> None:
    for scene in scenes(12):
        caption = captions_of(scene)[0]
        for other in changed(scene):
            assert not is_true(caption, other), (caption, other)
            for wrong in captions_of(other)[:4]:
                assert not is_true(wrong, scene), (wrong, scene)


def test_a_wrong_background_is_refused_and_none_is_not() -> None:
    for scene in scenes(12):
        named = [c for c in captions_of(scene) if "background" in c]
        silent = [c for c in captions_of(scene) if "background" not in c]
        assert named and silent and all(is_true(caption, scene) for caption in silent)
        for behind in set(BACKGROUNDS) - {scene.background}:
            old, new = (f"{tone} background" for tone in (scene.background, behind))
            assert not any(is_true(caption.replace(old, new), scene) for caption in named)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c + " a",
        lambda c: "a " + c,
        lambda c: c + " " + c,
        lambda c: c.rsplit(" ", 1)[0],
        lambda c: c.split(" ", 1)[1],
        lambda c: c.replace("a ", "the ", 1),
        lambda c: c + " .",
        lambda c: "",
        lambda c: c.replace(" ", "", 1),
    ],
)  # fmt: skip
def test_words_too_many_and_too_few_are_refused(spoil) -> None:  # type: ignore[no-untyped-def]
    for scene in scenes(12):
        for caption in captions_of(scene):
            assert not is_true(spoil(caption), scene), spoil(caption)


def test_two_words_in_each_others_place_are_refused() -> None:
    """Unless what comes of it is another true wording, which a swap of two words never is."""
    for scene in scenes(12):
        words = captions_of(scene)[0].split()
        for i, j in combinations(range(len(words)), 2):
            swapped = list(words)
            swapped[i], swapped[j] = words[j], words[i]
            if swapped != words:
                assert not is_true(" ".join(swapped), scene), " ".join(swapped)


def test_the_metric_is_the_share_of_true_captions() -> None:
    split = Shapes(held_out=4).split("test")
    first = [texts[0] for texts in split.captions]
    answers = Answers(
        image_ids=split.ids,
        captions=[first[0], first[1], "a dog", first[0] if first[0] != first[3] else ""],
        references=split.captions,
        truths=split.truths,
    )
    assert TrueCaption().marks(answers) == [True, True, False, False]
    assert TrueCaption()(answers) == {"true_caption": 0.5}


# ---------------------------------------------------------------------------------- captions, fast


def test_word_ids_say_what_wordings_say() -> None:
    """Every number is a word; the sentences are those of `say` that name the background."""
    codes = sample_codes(200, "train", MIX, generator())
    choice = torch.arange(200)
    ids = word_ids(codes, choice, length=32)
    end, names = len(vocabulary()) + 1, _names()
    for row, scene, pick in zip(ids.tolist(), codes.scenes(), choice.tolist(), strict=True):
        stop = row.index(end)
        assert set(row[stop + 1 :]) <= {0}
        assert " ".join(names[i] for i in row[:stop]) == _in_full(scene, pick)
    assert sorted(names) == list(range(1, end)) and set(names.values()) == set(vocabulary())


def _names() -> dict[int, str]:
    """Words by number, read off many captions; no number may stand for two words."""
    names: dict[int, str] = {}
    codes, choice = sample_codes(3000, "train", MIX, generator(1)), torch.arange(3000)
    rows = word_ids(codes, choice, length=32).tolist()
    for row, scene, pick in zip(rows, codes.scenes(), choice.tolist(), strict=True):
        for number, word in zip(row, _in_full(scene, pick).split(), strict=False):
            assert names.setdefault(number, word) == word
    return names


def _in_full(scene: Scene, pick: int) -> str:
    """The scene in the pick-th wording that names the background."""
    full = [w for w in wordings(len(scene.things), scene.axis) if "{b}" in w]
    return say(scene, full[pick % len(full)])


def test_the_vocabulary_is_that_of_the_captions() -> None:
    said = {word for scene in scenes(2000) for c in captions_of(scene) for word in c.split()}
    assert said == set(vocabulary())


# --------------------------------------------------------------------------------------- pictures


def placed(count: int = 2000) -> tuple[Codes, Tensor]:
    codes = sample_codes(count, "train", MIX, generator())
    return codes, arrange(codes, generator(1))


def test_things_stay_inside_and_apart() -> None:
    codes, places = placed()
    there = codes.things[:, :, 0] >= 0
    x, y, r = places.unbind(2)
    inside = (x - r >= GAP / 2) & (x + r <= CANVAS - GAP / 2)
    inside &= (y - r >= GAP / 2) & (y + r <= CANVAS - GAP / 2)
    assert bool(inside[there].all())
    for i, j in ((0, 1), (0, 2), (1, 2)):
        both = there[:, i] & there[:, j]
        gap = torch.hypot(x[:, i] - x[:, j], y[:, i] - y[:, j]) - r[:, i] - r[:, j]
        assert float(gap[both].min()) >= GAP - 1e-3


def test_things_stand_in_their_order_along_an_axis_that_can_be_told() -> None:
    """Every step along the axis is more than twice as long as the step across it."""
    codes, places = placed()
    pairs = (codes.things[:, 1:, 0] >= 0) & (codes.things[:, :-1, 0] >= 0)
    across = (codes.axis == 0)[:, None]
    dx, dy = places[..., 0].diff(dim=1), places[..., 1].diff(dim=1)
    along, beside = dx.where(across, dy), dy.where(across, dx)
    assert bool((along[pairs] > 0).all())
    assert bool((along[pairs] > 2 * beside[pairs].abs()).all())


def test_sizes_can_be_told() -> None:
    codes, places = placed()
    there = codes.things[:, :, 0] >= 0
    small, large = (places[..., 2][there & (codes.things[:, :, 0] == size)] for size in (0, 1))
    assert float(large.min()) > 1.4 * float(small.max())


def test_pictures_are_the_same_at_every_call_and_drawn_apart() -> None:
    split, again = (Shapes(train=4, held_out=8).split("val") for _ in range(2))
    one, two = split.images(range(8)), again.images([7, 6, 5, 4, 3, 2, 1, 0])
    assert [a.tobytes() for a in one] == [b.tobytes() for b in reversed(two)]
    assert {image.size for image in one} == {(CANVAS, CANVAS)}
    assert len({image.tobytes() for image in one}) == 8


def test_a_thing_has_its_colour_at_its_heart_and_the_paper_is_elsewhere() -> None:
    """Only the ring is open in the middle. On a white paper all else stays white."""
    for index, shape in enumerate(SHAPES):
        codes = Codes(torch.tensor([[[1, 4, index]]]), torch.zeros(1).long(), torch.zeros(1).long())
        picture = drawing.draw(codes, torch.tensor([[[48.0, 48.0, 14.0]]]))[0]
        middle, white = picture[:, 48, 48].tolist(), drawing.PAPER["white"][0]
        assert middle == ([white] * 3 if shape == "ring" else list(drawing.PAINT["blue"]))
        outside = picture.clone()
        outside[:, 32:65, 32:65] = white
        assert bool((outside == white).all())


def test_every_attribute_changes_the_picture() -> None:
    base = torch.tensor([0, 0, 0])
    places = torch.tensor([[[48.0, 48.0, 14.0]]])
    zero = torch.zeros(1, dtype=torch.long)
    pictures = set()
    for colour in range(len(COLOURS)):
        for shape in range(len(SHAPES)):
            for behind in range(len(BACKGROUNDS)):
                thing = base + torch.tensor([0, colour, shape])
                codes = Codes(thing[None, None], zero, zero + behind)
                pictures.add(drawing.draw(codes, places).numpy().tobytes())
    assert len(pictures) == len(COLOURS) * len(SHAPES) * len(BACKGROUNDS)


# ---------------------------------------------------------------------------------------- dataset


def test_captions_differ_and_are_as_many_as_asked_for() -> None:
    split = Shapes(train=50, captions=3).split("train")
    for texts, scene in zip(split.captions, split.truths, strict=True):
        assert len(set(texts)) == len(texts) == 3
        assert all(is_true(text, scene) for text in texts)


def test_no_caption_is_longer_than_is_said() -> None:
    most = max(len(c.split()) for scene in scenes(500) for c in captions_of(scene))
    assert most == 24
    two = sample_codes(500, "train", torch.tensor([1.0, 1.0]), generator()).scenes()
    assert max(len(c.split()) for scene in two for c in captions_of(scene)) < 20  # base's length


def test_the_fingerprint_changes_with_everything_that_changes_a_picture() -> None:
    base = {"train": 5, "held_out": 5}
    prints = [
        Shapes(**(base | other)).split(name).fingerprint
        for other in ({}, {"seed": 1}, {"things": 3}, {"held_out": 6})
        for name in ("val", "test")
    ]
    assert len(set(prints)) == len(prints)


def test_seeds_draw_other_scenes() -> None:
    one, two = (Shapes(train=50, seed=seed).split("train").truths for seed in (0, 1))
    assert one != two


def test_splits_that_are_not_there_are_named() -> None:
    with pytest.raises(DataError, match='did you mean "train"'):
        Shapes().split("trian")


def test_in_reading_order_things_are_named_as_they_stand() -> None:
    for count, axis in ((1, None), (2, "across"), (2, "down"), (3, "across"), (3, "down")):
        ways, every = wordings(count, axis, free=False), wordings(count, axis)
        assert set(ways) <= set(every)
        in_order = [way for way in every if sorted(places := _places(way)) == places]
        assert sorted(ways) == sorted(in_order)


def _places(wording: str) -> list[int]:
    return [int(number) for number in re.findall(r"{(\d)}", wording)]
