"""What one step restores, and the trial of a few captions."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import Command, Finished
from PIL import Image

from cdlm.job import Job
from cdlm.kernels import nearest_token
from cdlm.parts.schedules import Cosine, Discrete
from cdlm.probe import NEAREST, WITH, WITHOUT, Probe, Trial, probe, verdicts, write
from cdlm.recipe import load
from cdlm.run import begin, train_run
from cdlm.rundir import RunDir

PLAIN = "guidance={ use = 'none', drop = %s }"


@dataclass(frozen=True)
class Table:
    """Stands for an encoder: features at random, others for every seed."""

    ids: list[str]
    seed: int

    def identity(self) -> dict[str, object]:
        return {"seed": self.seed}

    def shape(self) -> tuple[int, int]:
        return 1, 8

    def lookup(self, ids: list[str]) -> torch.Tensor:
        assert ids == self.ids
        return torch.randn(len(ids), 1, 8, generator=torch.Generator().manual_seed(self.seed))


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


def test_without_the_image_only_if_the_run_has_learnt_to_do_without(
    tiny_run: Finished, tiny_recipe: Path, tmp_path: Path
) -> None:
    """What counts is how it was trained, not the guidance that it is sampled with now."""
    always = begin(load(tiny_recipe, [PLAIN % 0.0, "train.steps=2"]), tmp_path, False, [])
    train_run(Job.open(always, "cpu"))
    found = probe(Job.open(always, "cpu", [PLAIN % 0.5]), 2, 2)
    assert set(found.curves) == {WITH, NEAREST}
    assert "without the image  not asked: this run was always trained" in "\n".join(verdicts(found))
    found = probe(Job.open(RunDir(tiny_run.path), "cpu", [PLAIN % 0.0]), 2, 2)
    assert set(found.curves) == {WITH, WITHOUT, NEAREST}


def test_the_image_is_withheld(job: Job) -> None:
    """Its features make no difference to the curve without it, and one to the curve with it."""
    rows = range(12)
    ids = [job.split("val").ids[row] for row in rows]
    found, others = (
        probe(replace(job, parts=replace(job.parts, encoder=Table(ids, seed))), 3, 0)
        for seed in (1, 2)
    )
    assert found.curves[WITHOUT] == others.curves[WITHOUT]
    assert found.curves[WITH] != others.curves[WITH]


def test_the_batch_does_not_matter(job: Job) -> None:
    small = job.recipe.with_sets(["evaluate.batch=5"])
    assert probe(replace(job, recipe=small), 4, 0) == probe(job, 4, 0)


def test_a_schedule_may_end_in_pure_noise(job: Job, tmp_path: Path) -> None:
    """alpha(1) = 0: no word is left, and the numbers are still JSON."""
    parts = replace(job.parts, schedule=Cosine(floor=0.0))
    found = probe(replace(job, parts=parts), 2, 0)
    assert parts.schedule(torch.ones(1)).alpha == 0
    assert found.curves[NEAREST][-1] < 0.5
    write(found, tmp_path, "tiny")
    assert json.loads((tmp_path / "probe.json").read_text())["log_snr"] == found.log_snr


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
    assert "with the image     up to t = 0.50 (log-SNR +0.0, step 50 of 100)" in said
    assert "nearest word alone not at t = 0.25, the least that was asked" in said


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


def test_a_trial_of_several_captions_counts_images(tiny_recipe: Path, tmp_path: Path) -> None:
    """Any trained caption of an image is right; with a limit, so are those beyond it."""
    job = Job.open(begin(load(tiny_recipe, ["train.limit=13", "train.steps=2"]), tmp_path, False,
                         []), "cpu")  # fmt: skip
    train_run(job)
    per_image = [len(texts) for texts in job.split("train").captions]
    images = next(i for i in range(9) if sum(per_image[:i]) >= 13)
    found = probe(job, 1, 0)
    assert found.captions == 13
    assert found.trial is not None
    assert (found.trial.captions, found.trial.images) == (13, images)
    found = probe(job, 1, 2)
    assert found.captions == 2
    assert found.trial is not None
    assert (found.trial.captions, found.trial.images) == (per_image[0], 1)
