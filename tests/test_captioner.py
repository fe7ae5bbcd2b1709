"""The Python API: images in, captions out; equal calls give equal captions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Finished
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import cdlm
from cdlm.captioner import CANDIDATES, Captioner, _drawing
from cdlm.errors import CdlmError, DataError, RecipeError, RunError
from cdlm.export import export
from cdlm.parts.metrics import tokenize
from cdlm.parts.selections import agreement, sentence_bleu
from cdlm.rundir import RunDir


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures of different colours."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{colour}.png" for colour in ("red", "green", "blue")]
    for path in paths:
        Image.new("RGB", (96, 96), path.stem).save(path)
    return paths


@pytest.fixture(scope="module")
def features(captioner: Captioner) -> Tensor:
    """Forty features at random, of the shape that the encoder gives. B N C."""
    return torch.randn(40, *captioner._job.parts.encoder.shape(), generator=rng())


def test_a_path_a_text_and_a_picture_are_one_image(
    captioner: Captioner, photos: list[Path]
) -> None:
    caption = captioner(photos[0])
    assert isinstance(caption, str)
    assert captioner(str(photos[0])) == caption
    with Image.open(photos[0]) as picture:
        assert captioner(picture) == caption


def test_a_list_gives_a_list_in_its_order(captioner: Captioner, photos: list[Path]) -> None:
    captions = captioner(photos)
    assert [type(caption) for caption in captions] == [str] * 3
    with Image.open(photos[0]) as first:
        assert captioner([first, str(photos[1]), photos[2]]) == captions
    assert captioner(tuple(photos)) == captions
    assert captioner([photos[0]]) == [captioner(photos[0])]
    assert captioner([]) == []


def test_equal_seeds_give_equal_captions_and_others_do_not(
    captioner: Captioner, features: Tensor
) -> None:
    again = [captioner.of_features(features, seed=seed) for seed in (0, 0, 1)]
    assert again[0] == again[1]
    assert again[0] != again[2]


def test_captions_of_features_are_those_of_their_images(
    captioner: Captioner, photos: list[Path]
) -> None:
    pictures = [Image.open(photo) for photo in photos]
    features = captioner._job.parts.encoder.encode(pictures)
    assert captioner.of_features(features, seed=3) == captioner(photos, seed=3)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 5},
        {"sampler": "ddim"},
        {"sampler": {"use": "ddim", "eta": 0.5}},
        {"guidance": 4.0},
    ],
    ids=str,
)
def test_every_option_has_an_effect_and_leaves_no_trace(
    captioner: Captioner, features: Tensor, options: dict[str, object]
) -> None:
    before = captioner.of_features(features)
    assert captioner.of_features(features, **options) != before  # type: ignore[arg-type]
    assert captioner.of_features(features) == before


def test_what_the_recipe_says_may_be_said_again(captioner: Captioner, features: Tensor) -> None:
    same = captioner.of_features(features, steps=2, sampler="ddpm", guidance=1.5, seed=0)
    assert same == captioner.of_features(features)


def test_other_options_share_the_weights(captioner: Captioner) -> None:
    job = captioner._job
    other = job.sampling(["sampler.steps=7"])
    assert other.parts.sampler.steps == 7
    assert other.parts.network is job.parts.network
    assert other.parts.guidance is job.parts.guidance


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "dpm"}, 'no sampler is called "dpm"\n    did you mean "ddpm"?'),
        ({"steps": 0}, "sampler.steps: expected a whole number above 0, got 0"),
        ({"sampler": {"use": "ddim", "etta": 1}}, 'did you mean "eta"?'),
        ({"guidance": -1.0}, "guidance.scale: expected a number at least 0"),
        ({"guidance": float("nan")}, "guidance.scale: expected a finite number"),
    ],
    ids=str,
)
def test_a_wrong_option_names_the_right_ones(
    captioner: Captioner, features: Tensor, options: dict[str, object], words: str
) -> None:
    with pytest.raises(RecipeError) as said:
        captioner.of_features(features, **options)  # type: ignore[arg-type]
    assert words in str(said.value)


def test_guidance_needs_a_run_that_withheld_images(tiny_run: Finished) -> None:
    job = Captioner.load(tiny_run.path, "cpu")._job.sampling(["guidance={ use = 'none' }"])
    features = torch.randn(2, *job.parts.encoder.shape())
    blind = Captioner(job)  # its guidance is now "none", and drops nothing
    with pytest.raises(CdlmError, match="without the image"):
        blind.of_features(features, guidance=2.0)
    assert blind.of_features(features, guidance=1.0) == blind.of_features(features)


def test_a_run_without_guidance_that_withheld_images_can_be_guided(tiny_run: Finished) -> None:
    job = Captioner.load(tiny_run.path, "cpu")._job
    features = torch.randn(20, *job.parts.encoder.shape(), generator=rng())
    plain = Captioner(job.sampling(["guidance={ use = 'none', drop = 0.1 }"]))
    assert plain.of_features(features, guidance=1.5) == Captioner(job).of_features(features)


# --------------------------------------------------------------------- several captions, and words


def test_n_gives_so_many_different_captions_in_a_list(
    captioner: Captioner, features: Tensor, photos: list[Path]
) -> None:
    said = captioner.of_features(features[:5], n=3)
    assert [len(texts) for texts in said] == [3] * 5
    assert all(len(set(texts)) == 3 for texts in said)
    assert said == captioner.of_features(features[:5], n=3)
    assert said != captioner.of_features(features[:5], n=3, seed=1)
    one = captioner(photos[0], n=2)
    assert isinstance(one, list) and [type(text) for text in one] == [str, str]
    assert [len(texts) for texts in captioner(photos, n=1)] == [1, 1, 1]
    assert captioner([], n=2) == []


def test_fewer_captions_where_there_are_no_more(captioner: Captioner, features: Tensor) -> None:
    said = captioner.of_features(features[:2], n=3, template="a large red square")
    assert said == [["a large red square"]] * 2


def test_n_asks_again_only_where_captions_are_missing(
    captioner: Captioner, features: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first image gets equal captions at first, the second one different ones."""
    asked: list[int] = []
    texts = [[["a", "a"], ["b", "c"]], [["a", "d"]]]

    def drawn(parts: object, rows: Tensor, rng: object, count: int) -> list[list[str]]:
        asked.append(len(rows))
        return texts[len(asked) - 1]

    monkeypatch.setattr("cdlm.captioner.candidates", drawn)
    assert captioner.of_features(features[:2], n=2) == [["a", "d"], ["b", "c"]]
    assert asked == [2, 1]


def test_a_template_is_filled_in(captioner: Captioner, features: Tensor) -> None:
    said = [text.split() for text in captioner.of_features(features, template="a [ ] star is [ ]")]
    assert {(len(it), it[0], it[2], it[3]) for it in said} == {(5, "a", "star", "is")}
    assert len({it[1] for it in said}) > 1
    begun = captioner.of_features(features, template="there ...")
    assert {text.split()[0] for text in begun} == {"there"}
    assert len({len(text.split()) for text in begun}) > 1


def test_words_are_forbidden_and_counted(captioner: Captioner, features: Tensor) -> None:
    before = [text.split() for text in captioner.of_features(features)]
    common = max(
        {word for it in before for word in it}, key=lambda w: sum(w in it for it in before)
    )
    said = captioner.of_features(features, forbid=[common], words=(3, 5))
    assert not any(common in text.split() for text in said)
    assert {len(text.split()) for text in said} <= {3, 4, 5}
    least = captioner.of_features(features, words=(9, None))
    assert min(len(text.split()) for text in least) >= 9
    most = captioner.of_features(features, words=(None, 2))
    assert max(len(text.split()) for text in most) <= 2
    assert captioner.of_features(features) == [" ".join(it) for it in before]


def test_constraints_of_a_call_hold_beside_those_of_the_recipe(
    captioner: Captioner, features: Tensor
) -> None:
    recipe = 'constraint=[{ use = "template", text = "a [ ] ..." }]'
    said = captioner.of_features(features, forbid=["a"], sets=[recipe.replace('"a ', '"')])
    assert not any("a" in text.split() for text in said)
    with pytest.raises(CdlmError, match="no word is left for place 1 of the caption"):
        captioner.of_features(features, forbid=["a"], sets=[recipe])


def test_selection_counts_where_n_is_not_given(captioner: Captioner, features: Tensor) -> None:
    sets = ["selection={ use = 'mbr', count = 4 }"]
    assert captioner.of_features(features, sets=sets) != captioner.of_features(features)
    assert captioner.of_features(features, n=2, sets=sets) == captioner.of_features(features, n=2)


# ------------------------------------------------------------- confidence, candidates and a trace


def test_details_give_the_caption_its_rivals_and_how_far_they_agree(
    captioner: Captioner, photos: list[Path]
) -> None:
    said = captioner.details(photos, candidates=4, seed=2)
    assert [len(it.candidates) for it in said] == [4] * 3
    for it in said:
        words = [tokenize(text) for text in it.candidates]
        chosen = it.candidates.index(it.text)
        others = [sentence_bleu(words[chosen], [other]) for other in words[:chosen]]
        others += [sentence_bleu(words[chosen], [other]) for other in words[chosen + 1 :]]
        assert it.confidence == pytest.approx(sum(others) / 3)
        assert it.confidence == max(agreement(it.candidates))  # mbr chooses the surest
        assert it.trace == []
    assert captioner.details(photos, candidates=4, seed=2) == said
    assert captioner.details(photos, candidates=4, seed=3) != said
    assert captioner.details(photos[0], candidates=4, seed=2).text
    assert captioner.details([]) == []


def test_details_draw_as_many_as_the_recipe_or_several(
    captioner: Captioner, photos: list[Path]
) -> None:
    assert len(captioner.details(photos[0]).candidates) == CANDIDATES
    ten = captioner.details(photos[0], sets=["selection={ use = 'mbr', count = 7 }"])
    assert len(ten.candidates) == 7
    alone = captioner.details(photos, candidates=1)
    assert [it.text for it in alone] == captioner(photos)
    assert [it.confidence for it in alone] == [None] * 3
    with pytest.raises(ValueError, match="candidates: expected a whole number above 0, got 0"):
        captioner.details(photos, candidates=0)


def test_an_option_that_there_is_not_is_no_option_of_details(
    captioner: Captioner, photos: list[Path]
) -> None:
    with pytest.raises(TypeError, match="no option n here"):
        captioner.details(photos, n=2)  # type: ignore[call-arg]


def test_a_selection_keeps_its_other_parameters_with_another_count(
    captioner: Captioner, photos: list[Path]
) -> None:
    by_cider = ["selection={ use = 'mbr', count = 4, by = 'cider' }"]
    job, count = _drawing(captioner._job.sampling(by_cider), 6)
    assert count == 6
    assert (job.parts.selection.count, job.parts.selection.by) == (6, "cider")  # type: ignore[attr-defined]


def test_a_selection_that_asks_is_shown_the_training_photos(
    captioner: Captioner, photos: list[Path], features: Tensor
) -> None:
    """By every way to a caption; once, and again for another."""
    sets = ["selection={ use = 'consensus', count = 3, nearest = 2 }"]
    chosen = captioner.details(photos, sets=sets)
    assert [it.text for it in chosen] == captioner(photos, sets=sets)
    assert all(it.text in it.candidates and len(it.candidates) == 3 for it in chosen)
    job = captioner._job.sampling(sets)
    job.begin_selection()
    before: Any = job.parts.selection
    shown = before.photos
    job.begin_selection()
    assert before.photos is shown and len(before.captions) == len(job.split("train").ids)
    again = job.sampling(["selection.nearest=1"])
    again.begin_selection()
    assert again.parts.selection is not before and again.parts.selection.photos is not shown  # type: ignore[attr-defined]


def test_a_trace_is_the_way_of_the_same_caption(captioner: Captioner, photos: list[Path]) -> None:
    plain = captioner.details(photos, candidates=3, steps=4)
    traced = captioner.details(photos, candidates=3, steps=4, trace=True)
    for it, other in zip(traced, plain, strict=True):
        assert replace(it, trace=[]) == other
        assert len(it.trace) == 5 and it.trace[-1] == it.text


def test_equal_candidates_are_surest() -> None:
    assert agreement(["a dog runs on grass"] * 3) == pytest.approx([1.0] * 3)
    assert agreement(["a dog", "two cats"]) == [0.0, 0.0]
    assert agreement(["a dog"]) == [0.0]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n": 0}, ValueError, "n: expected a whole number above 0, got 0"),
        ({"forbid": "dog"}, ValueError, 'expected a list of words, got "dog"'),
        ({"forbid": ["dog"]}, CdlmError, '"dog": not in the vocabulary of this run'),
        ({"template": "a sqare"}, CdlmError, 'near "sqare": "square"'),
        ({"template": " "}, CdlmError, r"has no word and no \[ \]"),
        ({"words": 5}, ValueError, r"as in \(5, 12\), got 5"),
        ({"words": (5,)}, ValueError, r"as in \(5, 12\), got \(5,\)"),
        ({"words": (5, 3)}, CdlmError, "least = 5 and most = 3: no caption is so long"),
        ({"words": (5, 99)}, CdlmError, r"model.length = 20\), got least = 5, most = 99"),
        ({"template": "a star", "words": (4, None)}, CdlmError, "no word is left for place 3"),
        ({"sets": ["train.steps=3"]}, RecipeError, "it does not say how your images are captioned"),
    ],
    ids=str,
)
def test_words_that_can_not_be_are_refused(
    captioner: Captioner,
    features: Tensor,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        captioner.of_features(features, **options)


def test_unreadable_images_are_named(captioner: Captioner, photos: list[Path]) -> None:
    wrong = photos[0].with_name("redd.png")
    with pytest.raises(DataError, match=r"redd\.png: no such photo\n.*red\.png"):
        captioner([photos[0], wrong])


def test_features_of_another_shape_are_refused(captioner: Captioner) -> None:
    with pytest.raises(ValueError, match=r"expected B x \(1, \d+\), got \(2, 3\)"):
        captioner.of_features(torch.randn(2, 3))


def test_a_run_on_ready_features_captions_photos_with_the_encoder_that_they_are_of(
    seeing_run: Path, captioner: Captioner, photos: list[Path], tmp_path: Path
) -> None:
    """Its recipe has a file of the features here, which knows no photos."""
    seen = captioner._job.parts.encoder.encode([Image.open(path) for path in photos])
    place = tmp_path / "features.safetensors"
    names = json.dumps([path.name for path in photos])
    save_file({"features": seen}, place, metadata={"image_ids": names})
    stored = f'encoder={{use="features", path="{place}"}}'
    ready = export(RunDir(seeing_run), tmp_path / "ready", sets=[stored])
    with pytest.raises(CdlmError, match="give the encoder that the features are of"):
        Captioner.load(ready, "cpu")(photos)
    clip = 'encoder={ use = "open_clip", model = "cdlm:shapes_clip" }'
    found = Captioner.load(ready, "cpu", [clip])
    assert found.of_features(seen) == found(photos)
    assert len(set(found(photos))) > 1


def test_an_encoder_of_other_features_is_refused(tiny_run: Finished) -> None:
    with pytest.raises(RunError, match=r"weights do not fit the model .*, or its encoder"):
        Captioner.load(
            tiny_run.path, "cpu", ['encoder={use="open_clip", model="cdlm:shapes_clip"}']
        )


def test_a_run_that_is_not_there_names_those_that_are(tiny_run: Finished) -> None:
    with pytest.raises(RunError, match=tiny_run.path.name):
        cdlm.Captioner.load(tiny_run.path.parent / "default")


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
