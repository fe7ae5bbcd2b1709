"""What one step restores, and the trial of a few captions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Command, Finished
from PIL import Image

from cdlm.kernels.nearest import nearest_token
from cdlm.parts.guidance import Plain
from cdlm.parts.schedules import Discrete
from cdlm.probe import NEAREST, WITH, WITHOUT, Probe, Trial, probe, verdicts
from cdlm.recipe import load
from cdlm.run import Job, begin, train_run
from cdlm.rundir import RunDir


@pytest.fixture(scope="module")
def job(tiny_run: Finished) -> Job:
    return Job.open(RunDir(tiny_run.path), "cpu")


def test_the_command_leaves_numbers_and_a_chart(
    tiny_run: Finished, tmp_path: Path, cdlm: Command
) -> None:
    run = shutil.copytree(tiny_run.path, tmp_path / "copy")
    said = cdlm("probe", run, "--points", 4, "--limit", 5)
    assert said.code == 0, said.err
    found = json.loads((run / "probe" / "probe.json").read_text())
    assert found["times"] == [0.25, 0.5, 0.75, 1.0] and found["captions"] == 5
    assert set(found["curves"]) == {WITH, WITHOUT, NEAREST} == set(found["reach"])
    with Image.open(run / "probe" / "probe.png") as chart:
        assert min(chart.size) > 600
    assert f"{found['curves'][WITH][0]:.3f}" in said.out and "one step restores 95%" in said.out


def test_the_nearest_word_alone_needs_no_network(job: Job) -> None:
    """Its curve is what rounding x_t / alpha gives; at hardly any noise all words come back."""
    found = probe(job, 20, 0)
    parts, split = job.parts, job.split("val")
    ids, mask = parts.tokenizer.encode([texts[0] for texts in split.captions], 20)
    counted = mask & (ids != parts.tokenizer.end)
    assert found.words == int(counted.sum())
    assert found.curves[NEAREST][0] > 0.99 > 0.5 > found.curves[NEAREST][-1]
    x0, table = parts.embedding(ids), parts.embedding.table()
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(job.recipe.seed))
    level = parts.schedule(torch.tensor(found.times[5]))
    noisy = (level.alpha * x0 + level.sigma * eps) / level.alpha
    back = nearest_token(noisy.flatten(0, 1), table).view(ids.shape)
    assert found.curves[NEAREST][5] == pytest.approx(float((back == ids)[counted].float().mean()))


def test_equal_calls_find_the_same(job: Job) -> None:
    assert probe(job, 3, 4) == probe(job, 3, 4)


def test_without_the_image_only_if_the_run_has_learnt_to_do_without(job: Job) -> None:
    parts = replace(job.parts, guidance=Plain(drop=0.0))
    found = probe(replace(job, parts=parts), 2, 2)
    assert set(found.curves) == {WITH, NEAREST}


def test_a_run_of_discrete_steps_is_probed_at_its_steps(job: Job) -> None:
    """20 points of 7 steps are 7 points; each is k / 7."""
    recipe = job.recipe.with_sets(["schedule={use='discrete', steps=7}"])
    parts = replace(job.parts, schedule=Discrete(steps=7))
    found = probe(replace(job, recipe=recipe, parts=parts), 20, 2)
    assert found.levels == 7 and found.times == pytest.approx([k / 7 for k in range(1, 8)])


def made(**others: object) -> Probe:
    usual: dict[str, object] = {
        "split": "val", "captions": 2, "words": 9, "step": 5, "levels": 0,
        "times": [0.25, 0.5, 0.75, 1.0], "log_snr": [2.0, 0.0, -1.0, -9.0],
        "curves": {WITH: [1.0, 0.96, 0.9, 0.99], NEAREST: [0.9, 0.5, 0.2, 0.1]}, "trial": None,
    }  # fmt: skip
    return Probe(**(usual | others))  # type: ignore[arg-type]


def test_reach_ends_at_the_first_fall() -> None:
    assert made().reach(WITH) == 0.5 and made().reach(NEAREST) == 0
    said = "\n".join(verdicts(made(levels=100)))
    assert "up to t = 0.50 (log-SNR +0.0, step 50 of 100)" in said and "nowhere" in said


def test_verdicts_say_whether_a_trial_was_passed() -> None:
    passed = Trial(captions=3, images=3, right=3)
    assert "trial of 3 captions: passed, 3 of 3" in verdicts(made(trial=passed))[-1]
    failed = Trial(captions=1, images=1, right=0)
    assert "trial of 1 caption: failed, 0 of 1" in verdicts(made(trial=failed))[-1]


def test_one_sample_is_learnt_by_heart(tiny_recipe: Path, tmp_path: Path) -> None:
    """The notes' one-sample trial, in a second; two steps do not pass it."""
    for steps, passed in ((300, True), (2, False)):
        sets = ["train.limit=1", f"train.steps={steps}", "train.lr=5e-3", "guidance.scale=1.0"]
        job = Job.open(begin(load(tiny_recipe, sets), tmp_path, False, []), "cpu")
        train_run(job)
        found = probe(job, 2, 0)
        assert found.captions == 1 and found.split == "train"
        assert found.trial is not None and found.trial.passed == passed
