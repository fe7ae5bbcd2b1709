"""A run for others: it says the same, and nothing of where it was made."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from conftest import Command, Finished

from cdlm import checkpoint
from cdlm.job import stored
from cdlm.rundir import RunDir


def scores(path: Path) -> dict[str, float]:
    return json.loads((path / "eval" / "val.json").read_text())["scores"]


def test_an_exported_run_says_the_same(cdlm: Command, tiny_run: Finished, tmp_path: Path) -> None:
    out = tmp_path / "shared" / "mine"
    said = cdlm("export", tiny_run.path, "--out", out, "--precision", "float32")
    assert (said.code, said.out.split(" (")[0]) == (0, f"exported: {out}")
    assert cdlm("eval", out).code == 0
    assert scores(out) == RunDir(tiny_run.path).summary()["scores"]
    assert stored(RunDir(out)).name == "tiny"


def test_half_the_bits_by_default(cdlm: Command, tiny_run: Finished, tmp_path: Path) -> None:
    assert cdlm("export", tiny_run.path, "--out", tmp_path / "half").code == 0
    kept = checkpoint.find(RunDir(tmp_path / "half").checkpoints).tensors
    assert set(kept) == {"weights"}
    kinds = {it.dtype for it in kept["weights"].values() if it.is_floating_point()}
    assert kinds == {torch.bfloat16}
    assert cdlm("eval", tmp_path / "half").code == 0


def test_the_mean_of_checkpoints(cdlm: Command, tiny_run: Finished, tmp_path: Path) -> None:
    folder = RunDir(tiny_run.path).checkpoints
    first, *_, last = checkpoint.steps(folder)
    argv = ("export", tiny_run.path, "--precision", "float32", "--out")
    assert cdlm(*argv, tmp_path / "mean", "--average", first).code == 0
    said = [checkpoint.find(folder, it).tensors["weights"] for it in checkpoint.steps(folder)]
    kept = checkpoint.find(RunDir(tmp_path / "mean").checkpoints)
    assert kept.step == last
    for name, value in kept.tensors["weights"].items():
        wanted = torch.stack([it[name].double() for it in said]).mean(0)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-7)
    said = cdlm(*argv, tmp_path / "one", "--average", last)
    assert said.code == 2 and "fewer than two checkpoints" in said.err


def test_it_names_no_path_and_holds_no_caption(
    cdlm: Command, tiny_run: Finished, tmp_path: Path
) -> None:
    assert cdlm("export", tiny_run.path, "--out", tmp_path / "mine").code == 0
    files = {path.name for path in (tmp_path / "mine").iterdir()}
    assert files == {
        "recipe.toml", "tokenizer.json", "metrics.jsonl", "provenance.json", "checkpoints",
    }  # fmt: skip
    known = (tmp_path / "mine" / "provenance.json").read_text()
    assert str(Path.cwd()) not in known
    assert "argv" not in known


def test_it_samples_as_it_was_told(cdlm: Command, tiny_run: Finished, tmp_path: Path) -> None:
    argv = ("export", tiny_run.path, "--out", tmp_path / "mine", "--set")
    assert cdlm(*argv, "sampler={use='ddim', steps=3}").code == 0
    assert stored(RunDir(tmp_path / "mine")).one("sampler").parameters["steps"] == 3
    assert cdlm("eval", tmp_path / "mine").code == 0
    said = cdlm("export", tiny_run.path, "--out", tmp_path / "other", "--set", "model.hidden=8")
    assert said.code == 2 and "its weights rest on this" in said.err


def test_what_is_there_is_never_overwritten(
    cdlm: Command, tiny_run: Finished, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    said = cdlm("export", tiny_run.path, "--out", tmp_path / "mine")
    assert said.code == 2
    assert f"{tmp_path / 'mine'}: can't write the run there" in said.err
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_precision_that_there_is_not(cdlm: Command, tiny_run: Finished, tmp_path: Path) -> None:
    said = cdlm("export", tiny_run.path, "--out", tmp_path / "mine", "--precision", "bfloat")
    assert said.code == 2
    assert 'did you mean "bfloat16"' in said.err


def test_an_earlier_checkpoint_is_scored_by_its_step(
    cdlm: Command, tiny_run: Finished, tmp_path: Path
) -> None:
    kept = sorted(int(path.name[5:]) for path in (tiny_run.path / "checkpoints").iterdir())
    assert len(kept) > 1
    assert cdlm("export", tiny_run.path, "--out", tmp_path / "mine", "--step", kept[0]).code == 0
    assert RunDir(tmp_path / "mine").last_step == kept[0]
    assert cdlm("eval", tiny_run.path, "--step", kept[0]).code == 0
    found = json.loads((tiny_run.path / "eval" / f"val-step={kept[0]}.json").read_text())
    assert found["step"] == kept[0]
    said = cdlm("eval", tiny_run.path, "--step", 1)
    assert said.code == 2
    assert f"there are: {', '.join(map(str, kept))}" in said.err


def test_weights_alone_are_not_trained_on(
    cdlm: Command, tiny_run: Finished, tiny_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / tiny_run.path.parent.name / tiny_run.path.name
    assert cdlm("export", tiny_run.path, "--out", out).code == 0
    said = cdlm("train", tiny_recipe, "--runs", tmp_path / "runs", "--resume")
    assert said.code == 2
    assert "weights alone" in said.err


def test_a_process_that_says_nothing_of_words_has_no_ensemble(
    cdlm: Command, tiny_run: Finished, tmp_path: Path
) -> None:
    said = cdlm("export", tiny_run.path, "--out", tmp_path / "mine", "--with", tiny_run.path)
    assert said.code == 2
    assert "its process, gaussian, can't say captions together" in said.err
    assert not (tmp_path / "mine").exists()
