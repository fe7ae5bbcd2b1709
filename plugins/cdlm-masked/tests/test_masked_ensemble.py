"""Runs of several seeds that say captions together: from `cdlm export --with` to their words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cdlm
from cdlm import recipe, rundir
from cdlm.errors import CdlmError, RunError
from cdlm.export import export
from cdlm.job import Job
from cdlm.records import Condition
from cdlm.run import begin, evaluate_run, train_run
from cdlm.rundir import RunDir

RECIPE = """
about        = "As small as it can be"
dataset      = {{ use = "shapes", train = 60, held_out = 8 }}
encoder      = {{ use = "features", path = "{features}" }}
tokenizer    = {{ use = "words" }}
process      = {{ use = "masked", order = "left", temperature = 0.0, weighting = "even" }}
length       = {{ use = "predicted" }}
embedding    = {{ use = "learned" }}
timesteps    = {{ use = "uniform" }}
conditioning = [{{ use = "extra_token" }}]
denoiser     = {{ use = "transformer", layers = 1, heads = 2, dropout = 0.1 }}
guidance     = {{ use = "scale", scale = 1.0, drop = 0.1 }}
constraint   = []
selection    = {{ use = "first" }}
metric       = [{{ use = "bleu" }}]

[model]
width = 16
hidden = 16
length = 20

[train]
steps = 40
batch = 8
checkpoint_every = 20
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunDir]:
    """Three runs: of two seeds, and one of other captions. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    ids = [f"{split}-{i:06d}" for split, n in (("train", 60), ("val", 8)) for i in range(n)]
    features = torch.randn(len(ids), 8, generator=torch.Generator().manual_seed(0))
    place = folder / "features.safetensors"
    save_file({"features": features}, place, metadata={"image_ids": json.dumps(ids)})
    (folder / "tiny.toml").write_text(RECIPE.format(features=place))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDLM_CACHE", str(folder / "cache"))
        return [
            trained(folder, *sets)
            for sets in (["seed=0"], ["seed=1", "model.hidden=24"], ["tokenizer.min_count=9"])
        ]


def trained(folder: Path, *sets: str) -> RunDir:
    run = begin(recipe.load(folder / "tiny.toml", sets), folder / "runs", False, [])
    train_run(Job.open(run, "cpu"))
    return run


def said(run: RunDir, *sets: str) -> list[str]:
    return [it.caption for it in evaluate_run(Job.open(run, "cpu", sets)).said]


def test_the_mean_of_what_each_says(runs: list[RunDir], tmp_path: Path) -> None:
    """Of words and of lengths, by networks of different sizes."""
    out = export(runs[0], tmp_path / "both", precision=torch.float32, members=runs[1:2])
    jobs = [Job.open(it, "cpu") for it in (RunDir(out), *runs[:2])]
    for job in jobs:
        job.load_weights()
    ids = torch.randint(0, 5, (3, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 4:] = jobs[0].parts.process.vocab  # type: ignore[attr-defined]
    given = Condition(features=torch.randn(3, 1, 8), keep=torch.ones(3, dtype=torch.bool))
    t, mask = torch.full((3,), 0.8), torch.ones(3, 20, dtype=torch.bool)
    with torch.no_grad():
        together, one, two = (
            job.parts.process.log_shares(job.parts, ids, t, given, mask)  # type: ignore[attr-defined]
            for job in jobs
        )
        lengths = [job.parts.length.logits(given).softmax(1) for job in jobs]  # type: ignore[attr-defined]
    torch.testing.assert_close(together.exp(), (one.exp() + two.exp()) / 2)
    torch.testing.assert_close(lengths[0], (lengths[1] + lengths[2]) / 2)


@pytest.mark.parametrize("beams", [1, 3])
def test_three_that_are_alike_say_what_one_says(
    runs: list[RunDir], tmp_path: Path, beams: int
) -> None:
    """And `sets`, given when a run is opened or afterwards, are heeded by all of them."""
    out = RunDir(export(runs[0], tmp_path / "same", precision=torch.float32, members=[runs[0]] * 2))
    assert said(out, f"process.beams={beams}") == said(runs[0], f"process.beams={beams}")
    job = Job.open(out, "cpu").sampling([f"process.beams={beams}", "length.draw=most_likely"])
    assert [it.recipe.one("process").parameters["beams"] for it in job.members] == [beams] * 2
    assert [it.caption for it in evaluate_run(job).said] == said(
        runs[0], f"process.beams={beams}", "length.draw=most_likely"
    )


def test_it_is_a_run_like_any_other(runs: list[RunDir], tmp_path: Path) -> None:
    """To captioners, to the list of runs, and to another export, which leaves no member behind."""
    out = export(runs[0], tmp_path / "both", step=20, members=runs[1:2])
    assert rundir.runs(tmp_path) == [out]
    assert [it.last_step for it in (RunDir(out), *RunDir(out).members)] == [20, 20]
    outcome = evaluate_run(Job.open(RunDir(out), "cpu"))
    assert "by 2 runs together" in outcome.about
    again = export(RunDir(out), tmp_path / "again")
    assert said(RunDir(again)) == [it.caption for it in outcome.said]
    flat = export(runs[0], tmp_path / "flat", members=[RunDir(out)])
    assert len(RunDir(flat).members) == 2
    captioner = cdlm.Captioner.load(out, "cpu")
    assert len(captioner.of_features(torch.randn(4, 1, 8), sets=["process.beams=2"])) == 4


def test_all_of_it_see_by_the_encoder_that_is_set(runs: list[RunDir], tmp_path: Path) -> None:
    before = Path(str(recipe.load(runs[0].recipe).one("encoder").parameters["path"]))
    moved = shutil.copy(before, tmp_path / "moved.safetensors")
    sets = [f'encoder.path="{moved}"']
    out = RunDir(export(runs[0], tmp_path / "both", sets=sets, members=runs[1:2]))
    assert str(before) not in "".join(it.recipe_text() for it in (out, *out.members))
    assert len(said(out)) == 8


def test_a_captioner_with_beams_says_the_best_it_finds(runs: list[RunDir]) -> None:
    """Different ones, the chosen one first; steps of sampling would be of no effect."""
    captioner = cdlm.Captioner.load(runs[0].path, "cpu", ["process.beams=4"])
    features = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(1))
    for (first, *others), alone in zip(
        captioner.of_features(features, n=3), captioner.of_features(features), strict=True
    ):
        assert first == alone
        assert len({first, *others}) == 3
    with pytest.raises(CdlmError, match="steps = 3: of no effect"):
        captioner.of_features(features, steps=3)


def test_other_words_are_refused(runs: list[RunDir], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="its tokenizer is another"):
        export(runs[0], tmp_path / "both", members=runs[2:])
    assert not (tmp_path / "both").exists()
