"""Every command, as a person types it: what it prints, how it ends, and how it fails."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from conftest import CDLM, RECIPE, Command, Finished
from PIL import Image
from safetensors.torch import save_file

from cdlm import cli as command_line
from cdlm import describe, plugins
from cdlm.cli import captions
from cdlm.plugins import Failure
from cdlm.registry import KINDS
from cdlm.rundir import RunDir

MISTAKES = [  # (what stands in the recipe, what is written instead, what must be said)
    ("train = 60", 'train = "many"', 'expected a whole number above 0, got "many"'),
    ("train = 60", "train = 0", "expected a whole number above 0, got 0"),
    ("train = 60", "trian = 60", 'did you mean "train"?'),
    ("train = 60", "train = 60, train = 61", "not valid TOML"),
    ("steps = 160", "steps = inf", "expected a finite number"),
    ("steps = 160", "steps = 1e3", "expected a whole number above 0"),
    ("steps = 160", "stepz = 160", 'did you mean "steps"?'),
    ("steps = 160", "steps = [1, 2]", "expected a whole number above 0, got [1, 2]"),
    ("steps = 160", "steps = 99999999999999999999", "at most 64 bits"),
    ("width = 8", "", "model.width: missing"),
    ("[model]", "[modell]", 'did you mean "model"?'),
    ("[train]", "[train", "not valid TOML"),
    ('"ddpm"', '"dpm"', 'did you mean "ddpm"?'),
    ('"ddpm"', '"x0"', 'there is a target called "x0"'),
    ('"ddpm"', "3", "expected the name of a sampler"),
    ('"learned"', '"film"', 'no embedding is called "film"'),
    ('"uniform"', '"ünïform"', "no timesteps is called"),
    ('[{{ use = "mse" }}, {{ use = "rounding" }}]', "[]", "at least 1"),
    ('[{{ use = "mse" }}, {{ use = "rounding" }}]', '{{ use = "mse" }}', "a list of tables"),
    ('use = "rounding"', 'use = "mse"', "mse stands in the list already"),
    ('{{ use = "cosine" }}', '"cosine"', "expected a table"),
    ('{{ use = "cosine" }}', "{{ offset = 0.1 }}", "`use` is missing"),
    ("layers = 1", "layers = true", "expected a whole number above 0, got true"),
    ("drop = 0.1", "drop = 1.5", "expected a number above 0 and below 1"),
    (
        'metric       = [{{ use = "exact_match" }}',
        'metric = [{{ use = "spise" }}',
        'did you mean "spice"',
    ),
    ("about ", 'extends = "nowhere.toml"\nabout ', "there is no such file"),
    ("about ", 'extends = "wrong.toml"\nabout ', "extends itself"),
    ("about ", "abuot ", 'did you mean "about"?'),
    ('"As small', '"\x00As small', "not valid TOML"),
]


def mistaken(folder: Path, old: str, new: str) -> Path:
    """The tiny recipe with a mistake in it."""
    assert old in RECIPE
    recipe = folder / "wrong.toml"
    recipe.write_text(RECIPE.replace(old, new, 1).format(features="nowhere.safetensors"))
    return recipe


def assert_message(said: object, *words: str) -> None:
    """Exit code 2, a message that a person can read, and no traceback."""
    code, out, err = vars(said).values()
    assert code == 2, (out, err)
    assert "Traceback" not in out + err
    assert len(err.splitlines()) <= 25
    for word in words:
        assert word in err


# --------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("old", "new", "words"), MISTAKES, ids=[new for _, new, _ in MISTAKES])
def test_a_mistake_in_a_recipe_is_named(
    process: Command, tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert_message(process("check", mistaken(tmp_path, old, new)), "wrong.toml", words)


def test_all_mistakes_are_named_at_once(cdlm: Command, tmp_path: Path) -> None:
    recipe = mistaken(tmp_path, "[model]", "[modell]")
    recipe.write_text(recipe.read_text().replace("lr", "lrr").replace('"ddpm"', '"dpm"'))
    said = cdlm("run", recipe, "--set", "train.batch=many", "--set", "seed=-1")
    assert_message(said, "modell", '"dpm"', "--set train.batch", "--set seed", "model.width")


def test_a_hundred_mistakes_are_counted(process: Command, tmp_path: Path) -> None:
    wrong = "\n".join(f"wrong_{i} = 1" for i in range(100))
    recipe = mistaken(tmp_path, "[model]", f"{wrong}\n[model]")
    assert_message(process("check", recipe), "more")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("run", "nowhere.toml"), "nowhere.toml: there is no such file"),
        (("run", "."), "this is not a file"),
        (("run",), "Missing argument"),
        (("run", "x.toml", "--frob"), "No such option"),
        (("frobnicate",), "No such command"),
        (("list", "schedul"), 'did you mean "schedule"?'),
        (("show", "schedul", "cosine"), 'did you mean "schedule"?'),
        (("show", "schedule", "cosin"), 'did you mean "cosine"?'),
        (("show", "none"), "show guidance none, show rounding none"),
        (("show", "schedule", "--set", "a=1"), "--set is for recipes"),
        (("eval", "nowhere"), "nowhere: there is no run here"),
        (("caption", "nowhere.png", "--run", "."), "nowhere.png: no such file or folder"),
        (("caption", "nowhere.png"), "Missing option"),
    ],
    ids=lambda it: " ".join(it) if isinstance(it, tuple) else "",
)
def test_a_mistake_on_the_command_line_is_named(
    cdlm: Command, argv: tuple[str, ...], words: str
) -> None:
    assert_message(cdlm(*argv), words)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--device", "nonsense"), "--device nonsense"),
        (("--threads", "-1"), "--threads"),
        (("--runs", "{recipe}"), "can't make the run's folder there"),
        (("--set", "model.hidden=100000000"), "the memory is too small"),
        (("--set", "dataset.things=4"), "expected 1 or 2 or 3, got 4"),
    ],
    ids=str,
)
def test_a_run_that_cannot_be_is_refused(
    cdlm: Command, tiny_recipe: Path, tmp_path: Path, argv: tuple[str, ...], words: str
) -> None:
    given = [word.format(recipe=tiny_recipe) for word in argv]
    assert_message(cdlm("run", tiny_recipe, "--runs", tmp_path / "runs", *given), words)


def test_what_is_not_a_mistake_of_a_person_keeps_its_traceback(
    cdlm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(kind: str) -> str:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(describe, "components", fail)
    with pytest.raises(KeyError, match="a fault of ours"):
        cdlm("list")


def test_a_missing_file_deep_inside_is_named(
    cdlm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe, "components", lambda kind: Path("nowhere/at/all").read_text())
    assert_message(cdlm("list"), "nowhere/at/all: No such file or directory")


# ---------------------------------------------------------------------------------------- looking


def test_list_names_every_component_of_every_kind(cdlm: Command) -> None:
    said = cdlm("list")
    assert said.code == 0
    for entry in plugins.load().registry.entries():
        assert f"\n  {entry.name} " in said.out
    assert all(f"{kind}: " in said.out for kind in KINDS)


def test_a_kind_alone_is_listed(cdlm: Command) -> None:
    assert cdlm("show", "schedule").out == cdlm("list", "schedule").out


def test_show_prints_docstring_parameters_owner_and_a_line_of_toml(cdlm: Command) -> None:
    said = cdlm("show", "sampler", "ddim")
    assert said == cdlm("show", "ddim")
    for words in ("Song et al. 2021", "cdlm.parts.samplers:Ddim", "steps ", "default 0.0"):
        assert words in said.out
    assert said.out.rstrip().endswith('sampler = { use = "ddim", steps = 20, eta = 0.0 }')


def test_show_names_the_origin_of_every_value(cdlm: Command, tiny_recipe: Path) -> None:
    said = cdlm("show", tiny_recipe, "--set", "train.lr=0.5")
    lines = {line.split(" = ")[0]: line for line in said.out.splitlines()[1:]}
    ends = {
        "train.lr": "# --set",
        "train.clip": "# default of train",
        "train.steps": "tiny.toml:31",
        "constraint": "tiny.toml:21",  # an empty list
    }
    for key, end in ends.items():
        assert lines[key].endswith(end)


def test_check_says_that_a_recipe_is_right(cdlm: Command, tiny_recipe: Path) -> None:
    said = cdlm("check", tiny_recipe)
    assert (said.code, "no mistakes" in said.out) == (0, True)


def test_a_file_named_like_a_kind_is_a_recipe(
    cdlm: Command, tmp_path: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("schedule").write_text(tiny_recipe.read_text())
    assert cdlm("show", "schedule").out.startswith("# schedule, hash")


def test_version_and_help(cdlm: Command) -> None:
    assert cdlm("--version").out == "cdlm 0.1.0\n"
    listed = cdlm("--help").out.partition("Commands:")[2]
    for command in (it for it in command_line.app.registered_commands if not it.hidden):
        assert f"  {command.name or command.callback.__name__} " in listed  # type: ignore[union-attr]
    assert "..." not in listed  # no sentence is cut


def test_doctor_says_how_this_machine_is(cdlm: Command) -> None:
    said = cdlm("doctor")
    assert said.code in (0, 1)
    assert (said.code == 1) == any(line.startswith("bad") for line in said.out.splitlines())
    assert all(word in said.out for word in ("Python", "torch", "disk"))


def test_plugins_that_failed_are_listed_and_mentioned_by_a_run(
    cdlm: Command, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = Failure("film", "cdlm-film", "0.1", "ImportError: no film", "Traceback: its own")
    found = replace(plugins.load(), failures=[failure])
    monkeypatch.setattr(plugins, "load", lambda: found)
    said = cdlm("plugins")
    assert 'plugin "film" of cdlm-film 0.1 failed: ImportError: no film' in said.out
    assert "its own" not in said.out
    assert "its own" in cdlm("plugins", "--verbose").out
    argv = ("train", tiny_recipe, "--runs", tmp_path / "runs", "--set", "train.steps=1")
    assert cdlm(*argv).err.count("ImportError: no film") == 1


@pytest.mark.parametrize("argv", [("list",), ("show", "{recipe}"), ("--help",)], ids=str)
def test_a_reader_that_goes_away_is_no_fault(argv: tuple[str, ...], tiny_recipe: Path) -> None:
    words = [word.format(recipe=tiny_recipe) for word in argv]
    process = subprocess.Popen([*CDLM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate()[1] == b""


# --------------------------------------------------------------------------------------- captions


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three pictures, one of them in a folder within."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "b").mkdir()
    for name in ("c.png", "a.jpg", "b/z.png"):
        Image.new("RGB", (100, 80), "red").save(folder / name)
    return folder


def test_caption_prints_a_line_for_each_image(
    cdlm: Command, photos: Path, seeing_run: Path
) -> None:
    said = cdlm("caption", photos / "c.png", photos / "a.jpg", "--run", seeing_run)
    assert said.code == 0, said.err
    names = [line.split("\t")[0] for line in said.out.splitlines()]
    assert names == [str(photos / "c.png"), str(photos / "a.jpg")]


def test_caption_writes_a_record_for_each_image_in_order(
    cdlm: Command, photos: Path, seeing_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "captions.jsonl"
    argv = ("caption", photos, "--run", seeing_run, "--out", out, "--seed", 1)
    assert cdlm(*argv).code == 0
    first = out.read_text()
    records = [json.loads(line) for line in first.splitlines()]
    assert [Path(record["image"]).name for record in records] == ["a.jpg", "z.png", "c.png"]
    keys = {"image", "caption", "confidence", "candidates"}
    assert all(set(record) == keys and len(record["candidates"]) == 5 for record in records)
    assert cdlm(*argv).code == 0
    assert out.read_text() == first


def test_caption_prints_several_captions_as_asked_for(
    cdlm: Command, photos: Path, seeing_run: Path
) -> None:
    argv = ("caption", photos / "c.png", photos / "a.jpg", "--run", seeing_run, "--n", 3)
    said = cdlm(*argv, "--template", "a [ ] ...", "--forbid", "red", "--forbid", "blue")
    assert said.code == 0, said.err
    lines = [line.split("\t") for line in said.out.splitlines()]
    assert [path for path, _ in lines] == [str(photos / "c.png")] * 3 + [str(photos / "a.jpg")] * 3
    assert len({text for _, text in lines[:3]}) == 3
    assert all(text.split()[0] == "a" for _, text in lines)
    assert not {"red", "blue"} & {word for _, text in lines for word in text.split()}


def test_caption_says_where_fewer_captions_were_found(
    cdlm: Command, photos: Path, seeing_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "captions.jsonl"
    argv = ("caption", photos / "c.png", "--run", seeing_run, "--n", 3, "--out", out)
    said = cdlm(*argv, "--template", "a star")
    assert said.code == 0
    assert "c.png: only 1 of 3 different captions found" in said.err
    assert json.loads(out.read_text()) == {"image": str(photos / "c.png"), "captions": ["a star"]}


@pytest.mark.parametrize(
    ("given", "limits"),
    [("5-12", (5, 12)), ("5-", (5, None)), ("-12", (0, 12)), ("7", (7, 7)), (" 1-2 ", (1, 2))],
)
def test_limits_of_words_are_read(given: str, limits: tuple[int, int | None]) -> None:
    assert captions._limits(given) == limits


def test_caption_takes_any_choice_of_sampling(
    cdlm: Command, photos: Path, seeing_run: Path
) -> None:
    mbr = 'selection={ use = "mbr", count = 3 }'
    argv = ("caption", photos / "c.png", "--run", seeing_run, "--words", "-3")
    said = cdlm(*argv, "--set", mbr, "--set", 'rounding={ use = "clamp" }')
    assert said.code == 0, said.err
    (line,) = said.out.splitlines()
    assert len(line.split("\t")[1].split()) <= 3


def test_a_run_on_ready_features_is_given_an_encoder_for_photos(
    cdlm: Command, photos: Path, seeing_run: Path, tmp_path: Path
) -> None:
    ready, gone = tmp_path / "ready", 'encoder={use="features", path="gone.safetensors"}'
    assert cdlm("export", seeing_run, "--out", ready, "--set", gone).code == 0
    assert_message(cdlm("caption", photos, "--run", ready), "no file gone.safetensors")
    clip = 'encoder={use="open_clip", model="cdlm:shapes_clip"}'
    said = cdlm("caption", photos, "--run", ready, "--set", clip, "--set", "sampler.steps=3")
    assert said.code == 0, said.err
    assert len(said.out.splitlines()) == len(list(photos.iterdir()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--n", "0"), "--n"),
        (("--candidates", "0"), "--candidates"),
        (("--n", "2", "--candidates", "3"), "--candidates has no effect beside --n"),
        (("--n", "2", "--trace"), "--trace has no effect beside --n"),
        (("--template", "a [ ] sqare"), 'near "sqare": "square"'),
        (("--template", "..."), "has no word and no [ ]"),
        (("--forbid", "dog"), '"dog": not in the vocabulary of this run'),
        (("--forbid", "a", "--template", "a star"), "no word is left for place 1"),
        (("--words", "five"), '--words five: expected "5-12", "5-", "-12" or "7"'),
        (("--words", "-"), "--words -: expected"),
        (("--words", "9-5"), "no caption has at least 9 and at most 5 words"),
        (("--words", "5-99"), "captions have at most 19 tokens"),
        (("--set", "train.steps=3"), "--set train.steps: it does not say how your images are"),
        (("--set", "seed=3"), "guidance, variance, rounding, grid, sampler"),
        (("--sampler", "dpm"), 'did you mean "ddpm"?'),
        (("--steps", "0"), "--steps"),
        (("--guidance", "-1"), "--guidance"),
        (("--seed", "-1"), "--seed"),
        (("--out", "nowhere/captions.jsonl"), "there is no folder nowhere"),
        (("--out", "."), "can't write there: it is a folder"),
        (("--device", "nonsense"), "--device nonsense"),
    ],
    ids=str,
)
def test_a_wrong_option_of_caption_is_named(
    cdlm: Command, photos: Path, seeing_run: Path, options: tuple[str, ...], words: str
) -> None:
    assert_message(cdlm("caption", photos, "--run", seeing_run, *options), words)


def test_unreadable_images_are_named_and_stop_no_other(
    cdlm: Command, seeing_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions, "AT_ONCE", 2)
    photos = tmp_path / "photos"
    photos.mkdir()
    names = ["a.png", "b.png", "c.png", "d.png", "e.png"]
    for name in names:
        Image.new("RGB", (9, 9)).save(photos / name)
    (photos / "b.png").write_bytes(b"<html>404</html>")
    (photos / "c.png").write_bytes(b"")
    (photos / "d.png").write_bytes(b"")
    out = tmp_path / "captions.jsonl"
    said = cdlm("caption", photos, "--run", seeing_run, "--jsonl", out)
    assert_message(
        said, "b.png: this is a web page", "3 of 5 photos can't be read", "others are captioned"
    )
    records = {Path(it["image"]).name: it for it in map(json.loads, out.read_text().splitlines())}
    assert sorted(records) == names
    assert [name for name in names if "error" in records[name]] == ["b.png", "c.png", "d.png"]
    assert [name for name in names if "caption" in records[name]] == ["a.png", "e.png"]
    assert_message(cdlm("caption", photos / "b.png", "--run", seeing_run), "b.png: this is a web")


def test_caption_shows_candidates_confidence_and_every_step(
    cdlm: Command, photos: Path, seeing_run: Path, tmp_path: Path
) -> None:
    argv = ("caption", photos / "c.png", "--run", seeing_run, "--candidates", 3, "--trace")
    said = cdlm(*argv)
    assert said.code == 0, said.err
    first, *steps = said.out.splitlines()
    _, text, confidence = first.split("\t")
    assert [line.split("\t")[0] for line in steps] == ["  step 0", "  step 1", "  step 2"]
    assert steps[-1].split("\t")[1] == text
    out = tmp_path / "captions.jsonl"
    assert cdlm(*argv, "--out", out).code == 0
    record = json.loads(out.read_text())
    assert (record["caption"], len(record["candidates"])) == (text, 3)
    assert record["trace"] == [line.split("\t")[1] for line in steps]
    assert f"{record['confidence']:.2f}" == confidence
    (alone,) = cdlm(*argv[:-2], 1).out.splitlines()
    assert len(alone.split("\t")) == 2  # no rivals, no confidence


def test_a_name_that_is_not_utf8_is_printed_all_the_same(
    cdlm: Command, seeing_run: Path, tmp_path: Path
) -> None:
    name = os.fsdecode(bytes(tmp_path) + b"/f\xf6to.png")
    Image.new("RGB", (9, 9)).save(name)
    said = cdlm("caption", name, "--run", seeing_run)
    assert said.code == 0, said.err
    assert "\\udcf6to.png\t" in said.out


def test_a_run_on_ready_features_says_that_it_sees_no_photos(
    cdlm: Command, photos: Path, tiny_run: Finished
) -> None:
    said = cdlm("caption", photos, "--run", tiny_run.path)
    assert_message(said, "holds ready features and can't encode new photos")


# ------------------------------------------------------------------------------ run, train, eval


def test_train_then_run_with_resume_evaluates(
    cdlm: Command, tiny_recipe: Path, tmp_path: Path
) -> None:
    argv = (tiny_recipe, "--runs", tmp_path / "runs", "--threads", 1, "--set", "train.steps=3")
    said = cdlm("train", *argv)
    assert (said.code, said.out.startswith("run: ")) == (0, True)
    run = RunDir(Path(said.out.removeprefix("run: ").strip()))
    assert not run.finished
    assert_message(cdlm("run", *argv), "its last checkpoint is of step 3", "--resume")
    assert cdlm("run", *argv, "--resume").code == 0
    assert run.finished


def test_resume_where_nothing_is_begins(cdlm: Command, tiny_recipe: Path, tmp_path: Path) -> None:
    argv = ("train", tiny_recipe, "--runs", tmp_path / "runs", "--set", "train.steps=2", "--resume")
    said = cdlm(*argv)
    assert (said.code, "nothing to go on with" in said.err) == (0, True)
    run = RunDir(next((tmp_path / "runs").glob("*/*")))
    assert run.last_step == 2
    assert "nothing to go on with" not in cdlm(*argv).err
    other = cdlm(*argv, "--set", "seed=3").err
    assert "nothing to go on with" in other
    assert f"unfinished, set otherwise: {run.path}\n" in other


def test_eval_prints_the_table_of_what_is_set(cdlm: Command, tiny_run: Finished) -> None:
    argv = ("eval", tiny_run.path, "--set", "evaluate.split=test", "--set", "evaluate.limit=5")
    said = cdlm(*argv, "--set", "sampler.steps=5")
    assert said.code == 0, said.err
    assert ": test split of shapes, ddpm of 5 steps," in " ".join(said.out.split())
    (row,) = [line for line in said.out.splitlines() if "exact match" in line]
    assert row.split()[-1] == "5"


def test_eval_keeps_what_it_found_with_all_that_a_published_number_needs(
    cdlm: Command, tiny_run: Finished, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run.path, tmp_path / "runs" / "tiny" / "copy"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    out = tmp_path / "results.json"
    argv = ("eval", "--run", run, "--split", "test", "--out", out)
    said = cdlm(*argv, "--set", "sampler.steps=5", "--set", "seed=3")
    assert said.code == 0, said.err
    place = run / "eval" / "test-steps=5.json"
    assert said.out.rstrip().endswith(f"result: {place}")
    kept = json.loads(place.read_text())
    assert (kept["recipe"], kept["split"], kept["n"], kept["seed"]) == ("tiny", "test", 12, 3)
    assert kept["sets"] == ["evaluate.split=test", "sampler.steps=5", "seed=3"]
    assert kept["device"] == f"cpu, {torch.get_num_threads()} threads"
    assert (kept["step"], kept["captions"], kept["date"][:2]) == (160, "single sample", "20")
    assert "commit" in kept and "ddpm of 5 steps" in kept["about"]
    for name, value in kept["scores"].items():
        low, high = kept["intervals"][name]
        assert low <= value <= high
    said_of = [json.loads(line) for line in place.with_suffix(".jsonl").read_text().splitlines()]
    found = json.loads(out.read_text())
    assert [(it["image_id"], it["caption"]) for it in said_of] == [
        (it["image_id"], it["caption"]) for it in found
    ]
    assert len(found) == 12 and set(found[0]) == {"image_id", "caption"}
    assert {path: path.read_bytes() for path in before} == before  # nothing else was touched


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "which run? give its folder once"),
        (("{run}", "--run", "{run}"), "which run? give its folder once"),
        (
            ("{run}", "--split", "dev"),
            'evaluate.split: expected "train" or "held" or "val" or "test", got "dev"',
        ),
        (("{run}", "--out", "nowhere/x.json"), "there is no folder nowhere"),
        (("{run}", "--out", "."), "it is a folder"),
    ],
    ids=str,
)
def test_a_mistake_of_eval_is_named_before_anything_slow(
    cdlm: Command, tiny_run: Finished, argv: tuple[str, ...], words: str
) -> None:
    assert_message(cdlm("eval", *(it.format(run=tiny_run.path) for it in argv)), words)


def test_a_file_of_captions_is_scored_without_a_run(cdlm: Command, tmp_path: Path) -> None:
    files = {"said": [{"image_id": 1, "caption": "A dog."}, {"image_id": 3, "caption": "a cat"}]}
    notes = [{"image_id": i, "caption": text} for i in (3, 2, 1) for text in ("a dog", "one cat")]
    files["notes"] = {"images": [], "annotations": notes}  # type: ignore[assignment]
    for name, found in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    out = tmp_path / "scores.json"
    said = cdlm("score", tmp_path / "said.json", tmp_path / "notes.json", "--out", out)
    assert said.code == 0, said.err
    (row,) = [line.split() for line in said.out.splitlines() if "BLEU-1" in line]
    assert (row[1], row[-1]) == ("1.0000", "2")
    assert "n/a: SPICE" in said.out and "captions of a file" in said.out
    kept = json.loads(out.read_text())
    assert (kept["n"], kept["scores"]["unique_captions"]) == (2, 1.0)
    assert "spice" in kept["not_scored"]


def test_a_run_is_evaluated_zero_shot_on_coco_by_one_command(
    cdlm: Command, tiny_run: Finished, tmp_path: Path
) -> None:
    """Weights and words are those of drawn scenes; images, references and features are COCO's."""
    ids = [f"{i:012}.jpg" for i in range(3)]
    found = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(ids)],
        "annotations": [{"image_id": i, "caption": f"Photo {i}."} for i in range(3)],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps(found))
    own = tmp_path / "coco.safetensors"
    save_file({"features": torch.ones(3, 8)}, own, metadata={"image_ids": json.dumps(ids)})
    coco = ("--set", f'dataset={{use="coco", root="{tmp_path}"}}')
    said = cdlm("eval", tiny_run.path, *coco)
    assert_message(said, "no features for 3 of 3 images", "--set encoder.path=FILE")
    said = cdlm("eval", tiny_run.path, *coco, "--set", f"encoder.path={own}")
    assert said.code == 0, said.err
    assert ": val split of coco, ddpm" in " ".join(said.out.split()) and "Photo 2." in said.out


def test_eval_shows_single_samples_and_the_oracle_beside_what_was_selected(
    cdlm: Command, tiny_run: Finished
) -> None:
    said = cdlm("eval", tiny_run.path, "--set", 'selection={ use = "mbr", count = 4 }')
    assert said.code == 0, said.err
    words = " ".join(said.out.split())
    assert "metric single sample selected oracle 95 % N" in words
    assert "selected of 4 by mbr (bleu); oracle: chosen by the references, not a fair" in words
    (row,) = [line.split() for line in said.out.splitlines() if "BLEU-1" in line]
    single, selected, oracle = map(float, row[1:4])
    assert oracle > max(single, selected)


def test_a_run_that_selects_writes_all_of_it_down(
    cdlm: Command, tiny_recipe: Path, tmp_path: Path
) -> None:
    selection = 'selection={ use = "mbr", count = 3, by = "cider" }'
    sets = ("--set", "train.steps=2", "--set", selection)
    assert cdlm("run", tiny_recipe, "--runs", tmp_path / "runs", *sets).code == 0
    folder = next((tmp_path / "runs").glob("*/*"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["captions"] == "selected of 3 by mbr (cider)"
    assert set(summary["scores"]) == set(summary["single_sample"]) == set(summary["oracle"])
    for line in (folder / "samples.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["caption"] in record["candidates"] and len(record["candidates"]) == 3


def test_eval_refuses_what_would_change_the_weights(cdlm: Command, tiny_run: Finished) -> None:
    said = cdlm("eval", tiny_run.path, "--set", "model.hidden=32", "--set", "train.lr=1")
    assert_message(said, "--set model.hidden", "--set train.lr", "sampler")


def test_eval_of_a_run_whose_recipe_was_spoilt_names_the_place(
    cdlm: Command, tiny_run: Finished, tmp_path: Path
) -> None:
    for name in ("recipe.toml", "provenance.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_run.path / name).read_bytes())
    spoilt = (tmp_path / "recipe.toml").read_text().replace("batch = 8", "batch = eight", 1)
    (tmp_path / "recipe.toml").write_text(spoilt)
    assert_message(cdlm("eval", tmp_path), str(tmp_path / "recipe.toml"), "not valid TOML")


def test_progress_is_silent_about_a_loss_that_is_not_known_yet(tiny_run: Finished) -> None:
    first, *_, last = [line for line in tiny_run.said.err.splitlines() if "training:" in line]
    assert first.startswith("training: 1/160 ")
    assert "loss" not in first
    assert "loss" in last
    assert "nan" not in tiny_run.said.err


def test_warnings_go_to_the_log_of_the_run_too(
    cdlm: Command, tiny_recipe: Path, tmp_path: Path
) -> None:
    sets = ("--set", "train.steps=1", "--set", "model.length=4")
    said = cdlm("train", tiny_recipe, "--runs", tmp_path / "runs", *sets)
    assert "warning: 292 of 292 training captions are cut" in said.err
    log = next((tmp_path / "runs").glob("*/*/log.txt")).read_text()
    assert "292 of 292 training captions are cut" in log
    assert logging.getLevelName(logging.WARNING) in log


def test_an_interruption_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    app = typer.Typer()
    app.command()(interrupted)
    monkeypatch.setattr(command_line, "app", app)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # main adds one for good
    monkeypatch.setattr(sys, "argv", ["cdlm"])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == 130
    assert "stopped by SIGINT" in capsys.readouterr().err
