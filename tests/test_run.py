"""A run from beginning to end, and what is refused on the way."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, Finished
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close

from cdlm.checkpoint import find
from cdlm.errors import CdlmError, RecipeError, RunError
from cdlm.job import AFTERWARDS, Job, altered, choose_device
from cdlm.progress import silent
from cdlm.recipe import Choice, load
from cdlm.records import Condition, Said
from cdlm.report.charts import learning
from cdlm.report.facts import Facts, _curves
from cdlm.run import (
    Stop,
    _but_for_its_place,
    _captions,
    answers_of,
    begin,
    begin_point,
    borrow,
    evaluate_run,
    train_run,
)
from cdlm.rundir import METRICS, SAMPLES, RunDir


@pytest.fixture
def copy(tiny_run: Finished, tmp_path: Path) -> Path:
    """The tiny run, to be damaged."""
    return Path(shutil.copytree(tiny_run.path, tmp_path / "copy"))


def new_job(recipe: Path, folder: Path, *sets: str) -> Job:
    """A job that has not begun yet."""
    return Job.open(begin(load(recipe, sets), folder, False, []), "cpu")


# ------------------------------------------------------------------------------- what a run leaves


def test_a_finished_run_holds_summary_samples_and_gallery(tiny_run: Finished) -> None:
    run = RunDir(tiny_run.path)
    summary = run.summary()
    assert (summary["split"], summary["n"], summary["step"]) == ("val", 12, 160)
    assert len(run.records(SAMPLES)) == 12
    with Image.open(tiny_run.path / "gallery.png") as gallery:
        assert gallery.format == "PNG"
        assert min(gallery.size) > 400


def test_the_printed_table_is_the_summary(tiny_run: Finished) -> None:
    scores = RunDir(tiny_run.path).summary()["scores"]
    labels = {"exact_match": "exact match"} | {f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)}
    assert list(scores) == list(labels)
    rows = [line.split() for line in tiny_run.said.out.splitlines()]
    intervals = RunDir(tiny_run.path).summary()["intervals"]
    for name, label in labels.items():
        low, high = intervals[name]
        between = [f"{low:.4f}", "to", f"{high:.4f}"]
        assert [*label.split(), f"{scores[name]:.4f}", *between, "12"] in rows


def test_samples_stand_beside_their_references(tiny_run: Finished) -> None:
    split = Job.open(RunDir(tiny_run.path), "cpu").split("val")
    for record, image, references in zip(
        RunDir(tiny_run.path).records(SAMPLES), split.ids, split.captions, strict=True
    ):
        assert (record["image_id"], record["references"]) == (image, references)


def test_metrics_name_every_term_at_every_logged_step(tiny_run: Finished) -> None:
    records = RunDir(tiny_run.path).records(METRICS)
    names = {"loss", "loss/mse", "loss/rounding", "gradient_norm", "learning_rate"}
    steps = {name: [r["step"] for r in records if r["name"] == name] for name in names}
    assert {record["name"] for record in records} == names
    assert all(seen == list(range(2, 161, 2)) for seen in steps.values())


def test_a_run_can_be_run_again_from_its_own_recipe(tiny_run: Finished) -> None:
    again = load(tiny_run.path / "recipe.toml")
    assert tiny_run.path.name.endswith(again.hash[:8])


# ------------------------------------------------------------------------------------- beginning


def test_a_run_that_is_there_is_never_overwritten(
    cdlm: Command, tiny_recipe: Path, tiny_run: Finished
) -> None:
    before = contents(tiny_run.path)
    for verb in ("run", "train"):
        said = cdlm(verb, tiny_recipe, "--runs", tiny_run.path.parents[1])
        assert said.code == 2
        assert "this run has finished, and is not overwritten" in said.err
    assert contents(tiny_run.path) == before


def test_a_finished_run_that_is_resumed_is_evaluated_again(
    cdlm: Command, tiny_recipe: Path, tiny_run: Finished, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run.path.parents[1], tmp_path / "runs")
    said = cdlm("run", tiny_recipe, "--runs", tmp_path / "runs", "--threads", 1, "--resume")
    assert said.code == 0, said.err
    assert "evaluating it again" in said.err
    assert "training" not in said.err
    path = next((tmp_path / "runs").glob("*/*"))
    for name in (SAMPLES, METRICS, "gallery.png"):
        assert (path / name).read_bytes() == (tiny_run.path / name).read_bytes()


@pytest.mark.parametrize(
    "wrong", ["encoder.path=nowhere", "dataset.train=61", "denoiser.heads=3"], ids=str
)
def test_a_run_that_fails_before_its_first_step_leaves_no_folder(
    cdlm: Command, tiny_recipe: Path, tmp_path: Path, wrong: str
) -> None:
    said = cdlm("run", tiny_recipe, "--runs", tmp_path / "runs", "--set", wrong)
    assert said.code == 2
    assert not list((tmp_path / "runs").glob("*/*"))


def test_a_run_that_fails_later_keeps_what_it_has(
    cdlm: Command, tiny_recipe: Path, tmp_path: Path
) -> None:
    sets = ("--set", "train.lr=1e38", "--set", "train.warmup=0", "--set", "train.log_every=1")
    said = cdlm("run", tiny_recipe, "--runs", tmp_path / "runs", *sets)
    assert said.code == 2
    assert "training stopped before step" in said.err
    assert RunDir(next((tmp_path / "runs").glob("*/*"))).records(METRICS)


def test_a_recipe_that_was_changed_in_its_run_is_not_resumed(copy: Path, tmp_path: Path) -> None:
    recipe = load(copy / "recipe.toml")
    place = tmp_path / "runs" / "recipe" / f"default-s0-{recipe.hash[:8]}"
    shutil.copytree(copy, place)
    assert begin(recipe, tmp_path / "runs", True, []).path == place
    text = (place / "recipe.toml").read_text()
    (place / "recipe.toml").write_text(text.replace("steps = 160", "steps = 170"))
    with pytest.raises(RunError, match="changed since the run began"):
        begin(recipe, tmp_path / "runs", True, [])


@pytest.mark.parametrize(("length", "cut"), [(20, False), (8, True)])
def test_captions_that_are_cut_are_counted(
    tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, length: int, cut: bool
) -> None:
    job = new_job(tiny_recipe, tmp_path, "train.steps=1", f"model.length={length}")
    words = [len(text.split()) for texts in job.split("train").captions for text in texts]
    longer = sum(count + 1 > length for count in words)
    with caplog.at_level(logging.WARNING):
        train_run(job)
    said = f"{longer} of {len(words)} training captions are cut: they have up to {max(words) + 1} "
    assert (said in caplog.text) == cut == (longer > 0)


def test_captions_that_are_not_trained_on_are_looked_at(tiny_recipe: Path, tmp_path: Path) -> None:
    sets = ("train.steps=5", "train.validate_every=2", "train.log_every=5")
    job = new_job(tiny_recipe, tmp_path, *sets)
    lines: list[str] = []
    train_run(job, lambda *said: lines.append(said[-1]))
    written = [it for it in job.run.records(METRICS) if it["name"] == "validation_loss"]
    assert [it["step"] for it in written] == [2, 4, 5]
    assert f"validation {written[-1]['value']:.3f}" in lines[-1]
    facts = Facts(label="", run=job.run, recipe=job.recipe, provenance={}, curves=_curves(job.run))
    charts = {it.name: it.curves for it in learning([facts])}
    assert set(charts["learning-validation-loss"]) == set(charts["learning-loss"]) > {"sum"}


def test_training_looks_at_photos_in_other_ways_and_nothing_else_does(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDLM_CACHE", str(tmp_path / "cache"))
    clip = 'encoder={use="open_clip", model="cdlm:shapes_clip"}'
    job = new_job(tiny_recipe, tmp_path, clip, 'views={use="crops", count=2}', "train.steps=2")
    shape = job.parts.encoder.shape()
    learnt, held = (_captions(job, name, 0, silent) for name in ("train", "val"))
    assert learnt.views is not None and learnt.views.shape == (60, 2, *shape)
    assert held.views is None
    away = (learnt.views - learnt.features[:, None]).flatten(2).norm(dim=2)
    others = (learnt.features - learnt.features.roll(1, 0)).flatten(1).norm(dim=1)
    assert 0 < float(away.mean()) < float(others.mean()), "views of a photo are near it"
    train_run(job)
    assert job.run.last_step == 2


def test_ready_features_can_not_be_looked_at_in_other_ways(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(CdlmError, match="views: these are ready features"):
        train_run(new_job(tiny_recipe, tmp_path, 'views={use="crops"}'))


def test_training_starts_with_the_weights_and_words_of_another_run(
    copy: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    sets = (f'train.start="{copy}"', "train.start_step=140", "train.steps=1", "train.lr=1e-9")
    job = new_job(tiny_recipe, tmp_path, *sets)
    train_run(job)
    wanted = find(RunDir(copy).checkpoints, 140).tensors["weights"]
    found = find(job.run.checkpoints, 1).tensors
    for name in wanted.keys() - {"length.counts"}:  # these go on counting
        assert_close(found["weights"][name], wanted[name], rtol=0, atol=1e-6)
        assert_close(found["training"][f"model.{name}"], wanted[name], rtol=0, atol=1e-6)
    assert job.run.tokenizer.read_bytes() == (copy / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (('train.start="nowhere"',), "train.start: nowhere: there is no run here"),
        (("train.start_step=3",), "no checkpoint of step 3"),
        (("model.hidden=32",), "these weights do not fit the model"),
    ],
)
def test_what_training_can_not_start_with_is_refused(
    copy: Path, tiny_recipe: Path, tmp_path: Path, sets: tuple[str, ...], said: str
) -> None:
    with pytest.raises(RunError, match=said):
        train_run(new_job(tiny_recipe, tmp_path, f'train.start="{copy}"', *sets))


def test_a_run_without_words_is_nothing_to_start_with(
    copy: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(RunError, match="that run has no vocabulary"):
        new_job(tiny_recipe, tmp_path, f'train.start="{copy}"')


def test_captions_are_read_only_for_a_part_that_asks_for_their_features(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    """And no more of them than are trained on: the file here has those of three captions alone."""
    job = new_job(tiny_recipe, tmp_path / "plain")
    assert _captions(job, "train", 0, silent).texts is None
    first = [text for texts in job.split("train").captions for text in texts][:3]
    known = list(dict.fromkeys(first))
    rows, place = torch.rand(len(known), 8), tmp_path / "captions.safetensors"
    save_file({"features": rows}, place, metadata={"captions": json.dumps(known)})
    files = f'path = "{job.recipe.one("encoder").parameters["path"]}", captions = "{place}"'
    encoder = f'encoder={{ use = "paired_features", {files} }}'
    modes = 'conditioning=[{ use = "time_add" }, { use = "text_token" }]'
    asking = new_job(tiny_recipe, tmp_path / "asks", encoder, modes, "train.limit=3")
    data = _captions(asking, "train", 3, silent)
    wanted = rows[[known.index(text) for text in first]]
    assert data.texts is not None and torch.equal(data.texts[:, 0], wanted)
    batch = data.batch(0, 3, seed=0)
    assert batch.text is not None and torch.equal(batch.text, data.texts[data._rows(0, 3, 0)])


@pytest.mark.parametrize("threads", [1, 2])
def test_another_number_of_threads_is_warned_of(
    copy: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    shutil.rmtree(copy / "checkpoints" / "step-00000160")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with caplog.at_level(logging.WARNING):
        train_run(Job.open(RunDir(copy), "cpu"))
    assert ("begun with 1 threads and goes on with 2" in caplog.text) == (threads == 2)


# -------------------------------------------------------------------------------------- stopping


def test_signals_only_set_a_flag_while_a_run_listens() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Stop().listening() as stop:
        assert not stop.number
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# ---------------------------------------------------------------------------------- what is damaged


def evaluated(path: Path, *sets: str) -> int:
    """Evaluate the run; the step of the weights that were used."""
    return evaluate_run(Job.open(RunDir.open(path), "cpu", sets)).step


def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = copy / "checkpoints" / "step-00000160" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert evaluated(copy) == 140
    assert "a damaged checkpoint is skipped" in caplog.text


def test_without_a_sound_checkpoint_there_is_nothing_to_evaluate(copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(RunError, match="no sound checkpoint"):
        evaluated(copy)


@pytest.mark.parametrize("text", ["", "{}", '{"version": "1.0", "trunc', "no json"])
def test_a_damaged_vocabulary_is_named(copy: Path, text: str) -> None:
    (copy / "tokenizer.json").write_text(text)
    with pytest.raises(RunError, match=r"tokenizer\.json: can't be read"):
        evaluated(copy)


def test_a_run_of_a_plugin_that_is_not_here_names_it(copy: Path) -> None:
    recipe, known = copy / "recipe.toml", copy / "provenance.json"
    recipe.write_text(recipe.read_text().replace('use = "cosine"', 'use = "bent"'))
    origin = {"owner": "cdlm-bent 0.3.0", "code": "0" * 64}
    known.write_text(
        json.dumps(json.loads(known.read_text()) | {"components": {"schedule bent": origin}})
    )
    with pytest.raises(
        RunError, match=r"cdlm-bent 0\.3\.0 \(schedule bent\)\n.*pip install cdlm-bent"
    ):
        Job.open(RunDir(copy), "cpu")


def test_another_vocabulary_is_refused(copy: Path) -> None:
    text = (copy / "tokenizer.json").read_text()
    words: dict[str, Any] = json.loads(text)
    vocabulary = words["model"]["vocab"]
    vocabulary["red"], vocabulary["blue"] = vocabulary["blue"], vocabulary["red"]
    (copy / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(RunError, match="not the vocabulary"):
        evaluated(copy)


def test_a_lost_vocabulary_is_learnt_again(copy: Path, tiny_run: Finished) -> None:
    (copy / "tokenizer.json").unlink()
    assert evaluated(copy) == 160
    again = (copy / "tokenizer.json").read_bytes()
    assert again == (tiny_run.path / "tokenizer.json").read_bytes()


def test_weights_of_another_model_are_refused(copy: Path) -> None:
    text = (copy / "recipe.toml").read_text()
    (copy / "recipe.toml").write_text(text.replace("hidden = 16", "hidden = 32"))
    with pytest.raises(RunError, match=r"do not fit the model of .*\n.*size mismatch"):
        evaluated(copy)
    with pytest.raises(RunError, match="do not fit the model"):
        train_run(Job.open(RunDir.open(copy), "cpu"))


# ------------------------------------------------------------------------------------- afterwards


@pytest.mark.parametrize(
    "sets",
    [
        ["seed=4"],
        ["dataset.held_out=8"],
        ["sampler.steps=3", "sampler.use=ddim"],
        ["rounding.use=clamp"],
        ["evaluate.split=test", "evaluate.limit=2"],
        ["guidance.scale=3"],
        ["metric=[]"],
        ["train.steps=160"],  # as it is
    ],
    ids=str,
)
def test_what_no_weight_rests_on_can_be_set_afterwards(tiny_run: Finished, sets: list[str]) -> None:
    assert evaluated(tiny_run.path, *sets) == 160


@pytest.mark.parametrize(
    "key", ["model.hidden=32", "train.steps=3", "denoiser.layers=2", "target.use=eps"]
)
def test_what_weights_rest_on_cannot_be_set_afterwards(tiny_run: Finished, key: str) -> None:
    recipe = load(tiny_run.path / "recipe.toml")
    with pytest.raises(RecipeError) as said:
        altered(recipe, ["seed=1", key])
    (mistake,) = said.value.mistakes
    assert mistake.place == f"--set {key.partition('=')[0]}"
    assert all(kind in mistake.hint for kind in AFTERWARDS)


def test_a_length_is_drawn_in_another_way_afterwards(tiny_recipe: Path, tmp_path: Path) -> None:
    """Any component may say which of its parameters no weight rests on; others it keeps."""
    sets = ['length={ use = "predicted" }', 'loss=[{ use = "mse" }, { use = "length" }]']
    job = new_job(tiny_recipe, tmp_path, *sets, "train.steps=1")
    train_run(job)
    job.load_weights()
    other = job.sampling(['length.draw="most_likely"']).parts.length
    assert other.taken == "most_likely"  # type: ignore[attr-defined]
    assert other.head is not job.parts.length.head  # type: ignore[attr-defined]
    given = Condition(features=torch.randn(2, *job.parts.encoder.shape()), keep=torch.ones(2) > 0)
    one, two = (it.logits(given) for it in (other, job.parts.length))  # type: ignore[attr-defined]
    assert torch.equal(one, two)
    with pytest.raises(RecipeError, match=r"allowed: .*length\.draw"):
        altered(job.recipe, ["length.inner=8"])


def test_guidance_set_afterwards_needs_withheld_images(tiny_recipe: Path, tmp_path: Path) -> None:
    job = new_job(tiny_recipe, tmp_path, "guidance={ use = 'none' }", "train.steps=1")
    train_run(job)
    assert evaluated(job.run.path, "guidance={ use = 'scale', scale = 1 }") == 1
    with pytest.raises(CdlmError, match="without the image"):
        evaluated(job.run.path, "guidance={ use = 'scale', scale = 2 }")


def test_guidance_that_learnt_is_set_anew_with_its_weights(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    """Its scale is free; its sizes are not, nor is a guidance that the run had not."""
    with_loss = 'loss=[{ use = "mse" }, { use = "match" }]'
    job = new_job(tiny_recipe, tmp_path, "guidance.use=classifier", with_loss, "train.steps=1")
    train_run(job)
    job.load_weights()
    other = job.sampling(["guidance.scale=3"]).parts.guidance
    assert other.scale == 3 and not other.training  # type: ignore[attr-defined]
    trained = job.parts.guidance.state_dict()  # type: ignore[attr-defined]
    for name, value in other.state_dict().items():  # type: ignore[attr-defined]
        assert value.data_ptr() == trained[name].data_ptr(), f"{name} is a copy"
    assert evaluated(job.run.path, "guidance.scale=3") == 1
    with pytest.raises(CdlmError, match='"classifier" learns in training; this run had none'):
        job.sampling(["guidance.inner=8"])


def test_evaluating_changes_nothing_in_the_run(tiny_run: Finished) -> None:
    before = contents(tiny_run.path)
    evaluated(tiny_run.path, "seed=1")
    assert contents(tiny_run.path) == before


def test_novelty_is_against_what_the_weights_have_seen(tiny_run: Finished) -> None:
    """Whatever dataset is captioned now: here one with other training captions."""
    job = Job.open(RunDir.open(tiny_run.path), "cpu", ["dataset.train=3"])
    answers = answers_of(job, [Said(["a star"], 0)])
    own = Job.open(RunDir.open(tiny_run.path), "cpu")
    flat = [text for texts in own.split("train").captions for text in texts]
    assert answers.training is not None and answers.training() == flat
    assert len(flat) > len([text for texts in job.split("train").captions for text in texts])


def test_a_dataset_that_has_moved_is_the_same() -> None:
    here, there = (Choice("dataset", "folder", {"root": root, "on_bad": "error"}) for root in "ab")
    assert _but_for_its_place(here) == _but_for_its_place(there)
    assert _but_for_its_place(here) != _but_for_its_place(Choice("dataset", "coco", {"root": "a"}))


def test_features_of_what_is_captioned_are_there_for_any_encoder(tiny_run: Finished) -> None:
    job = Job.open(RunDir.open(tiny_run.path), "cpu")
    answers = answers_of(job, [Said(["a star"], 0)] * 3)
    assert answers.features is not None
    assert torch.equal(answers.features(job.parts.encoder), job.features("val")[:3])


def test_equal_seeds_give_equal_captions_and_others_do_not(tiny_run: Finished) -> None:
    said = []
    for seed in (0, 0, 1):
        job = Job.open(RunDir(tiny_run.path), "cpu", [f"seed={seed}"])
        said.append(evaluate_run(job).answers.captions)
    assert said[0] == said[1] != said[2]


# --------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(CdlmError, match=rf"^--device {device}: .*\n    there is: cpu"):
        choose_device(device)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# -------------------------------------------------------------------------- another run's weights


def beside(tiny_recipe: Path, root: Path, *sets: str) -> tuple[RunDir, bool]:
    """A new run of the tiny recipe, set otherwise, and whether it found weights to borrow."""
    asked = load(tiny_recipe, sets)
    run = begin_point(asked, root, [])
    return run, borrow(run, asked, root) is not None


@pytest.mark.parametrize(
    ("sets", "found"),
    [
        (["sampler.steps=3", "evaluate.limit=2"], True),
        (["guidance.scale=3.0"], True),
        (["guidance.drop=0.2"], False),
        (["train.lr=1e-4"], False),
        (["seed=1"], False),
    ],
)
def test_weights_are_borrowed_of_a_run_that_was_trained_in_the_same_way(
    tiny_recipe: Path, tiny_run: Finished, tmp_path: Path, sets: list[str], found: bool
) -> None:
    shutil.copytree(tiny_run.path.parents[1], tmp_path / "runs")
    run, borrowed = beside(tiny_recipe, tmp_path / "runs", *sets)
    assert borrowed == found
    assert (run.last_step == 160) == found
    if found:
        job = Job.open(run, "cpu")
        train_run(job)  # there is nothing left to train
        assert evaluate_run(job).step == 160


def test_weights_of_a_half_trained_run_are_not_borrowed(
    tiny_recipe: Path, tiny_run: Finished, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run.path.parents[1], tmp_path / "runs")
    other = next((tmp_path / "runs").glob("*/*"))
    shutil.rmtree(other / "checkpoints" / "step-00000160")
    assert not beside(tiny_recipe, tmp_path / "runs", "sampler.steps=3")[1]


def test_a_recipe_that_has_a_run_anywhere_gets_that_one(
    tiny_recipe: Path, tiny_run: Finished, tmp_path: Path
) -> None:
    place = Path(
        shutil.copytree(tiny_run.path, tmp_path / "runs" / "elsewhere" / tiny_run.path.name)
    )
    assert begin_point(load(tiny_recipe), tmp_path / "runs", []).path == place


def test_a_runs_summary_says_how_long_it_trained_and_how_large_it_is(tiny_run: Finished) -> None:
    summary = RunDir(tiny_run.path).summary()
    assert 0 < summary["training_seconds"] < 120
    assert summary["parameters"] > 1000
