"""One checkpoint, every sampler: what is measured, counted, shown and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Command, Finished
from PIL import Image

from cdlm import frontier, plugins
from cdlm.errors import CdlmError
from cdlm.frontier import Frontier, Point, measure, samplers, table, write
from cdlm.job import Job
from cdlm.run import evaluate_run
from cdlm.rundir import RunDir

PLAIN = ["guidance.scale=1.0"]


@pytest.fixture(scope="module")
def job(tiny_run: Finished) -> Job:
    return Job.open(RunDir(tiny_run.path), "cpu", PLAIN)


def frontier_of(*points: tuple[str, int, float]) -> Frontier:
    """A frontier of (sampler, calls, score), of a recipe whose first metric is BLEU."""
    found = [
        Point(
            sampler=name, steps=calls, calls=calls, seconds=0.1 * calls,
            scores={"bleu_1": 1 - score, "bleu_4": score, "cider_d": 2.0},
        )
        for name, calls, score in points
    ]  # fmt: skip
    return Frontier(split="val", images=9, step=40, device="cpu", sets=[], points=found)


def test_every_sampler_is_tried_unless_some_are_asked_for(job: Job) -> None:
    assert samplers(job) == plugins.load().registry.names("sampler")
    assert samplers(job, "ddpm, ddim,ddpm") == ["ddpm", "ddim"]
    with pytest.raises(CdlmError, match='no sampler is called "dimd"; did you mean "ddim"'):
        samplers(job, "dimd")


def test_a_sampler_that_can_not_be_used_is_left_out_unless_it_is_asked_for(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = frontier._with

    def without_heun(job: Job, name: str, steps: int) -> Job:
        if name == "heun":
            raise CdlmError("sampler heun can't be tried as it is: something is missing")
        return real(job, name, steps)

    monkeypatch.setattr(frontier, "_with", without_heun)
    left = [name for name in plugins.load().registry.names("sampler") if name != "heun"]
    assert samplers(job) == left
    assert "left out: sampler heun can't be tried" in caplog.text
    with pytest.raises(CdlmError, match="something is missing"):
        samplers(job, "ddim,heun")


def test_the_best_are_those_that_none_reaches_with_as_few_calls() -> None:
    found = frontier_of(
        ("a", 5, 0.2), ("a", 10, 0.5), ("a", 20, 0.5), ("b", 5, 0.3), ("b", 10, 0.1), ("b", 40, 0.6)
    )
    assert [(it.sampler, it.calls) for it in found.best] == [("b", 5), ("a", 10), ("b", 40)]


def test_of_bleu_only_bleu_4_is_shown_and_counts(tmp_path: Path) -> None:
    found = frontier_of(("a", 3, 0.2), ("b", 3, 0.4))
    assert found.metrics == ["bleu_4", "cider_d"]
    columns = [str(column.header) for column in table(found, "t").columns]
    assert columns == ["sampler", "steps", "calls", "seconds", "BLEU-4", "CIDEr-D"]
    assert [str(cell) for cell in table(found, "t").columns[4].cells] == ["0.2000", "* 0.4000"]
    write(found, tmp_path / "frontier", "one number of steps, which is no round one")
    kept = json.loads((tmp_path / "frontier" / "frontier.json").read_text())
    assert kept["points"][1]["scores"]["bleu_1"] == pytest.approx(0.6)


def test_progress_is_told_in_steps_of_images(job: Job) -> None:
    told: list[tuple[int, int, str]] = []

    def tell(what: str, done: int, total: int, detail: str = "") -> None:
        if what == "image steps":
            told.append((done, total, detail))

    found = measure(job, ["ddim", "ddpm"], [2, 1], 5, tell)
    assert told == [
        (5, 30, "ddim, 1 steps"), (10, 30, "ddpm, 1 steps"), (20, 30, "ddim, 2 steps"),
        (30, 30, "ddpm, 2 steps"),
    ]  # fmt: skip
    assert [it.sampler for it in found.points] == ["ddim", "ddim", "ddpm", "ddpm"]


def test_network_calls_are_counted_not_assumed(job: Job) -> None:
    """Heun asks twice a step but the last; guidance asks twice wherever it counts."""
    found = measure(job, ["ddim", "heun"], [1, 3], 5)
    assert [(it.sampler, it.steps, it.calls) for it in found.points] == [
        ("ddim", 1, 1), ("ddim", 3, 3), ("heun", 1, 1), ("heun", 3, 5),
    ]  # fmt: skip
    guided = measure(job.sampling(["guidance.scale=2.0"]), ["ddim"], [3], 5)
    assert guided.points[0].calls == 6


def test_a_point_is_what_eval_would_print(tiny_run: Finished, job: Job) -> None:
    (point,) = measure(job, ["ddim"], [4], 0).points
    sets = [*PLAIN, 'sampler={ use = "ddim", steps = 4 }']
    outcome = evaluate_run(Job.open(RunDir(tiny_run.path), "cpu", sets))
    assert point.scores == {score.name: score.value for score in outcome.scores}


def test_the_recipe_s_own_sampler_keeps_its_parameters(tiny_run: Finished) -> None:
    sets = [*PLAIN, 'sampler={ use = "ddim", eta = 1.0, steps = 4 }']
    eager = Job.open(RunDir(tiny_run.path), "cpu", sets)
    (own,) = measure(eager, ["ddim"], [4], 0).points
    outcome = evaluate_run(Job.open(RunDir(tiny_run.path), "cpu", sets))
    assert own.scores == {score.name: score.value for score in outcome.scores}


def test_the_command_leaves_numbers_and_a_chart(
    tiny_run: Finished, tmp_path: Path, cdlm: Command
) -> None:
    run = shutil.copytree(tiny_run.path, tmp_path / "copy")
    said = cdlm("frontier", run, "--samplers", "ddim,dpm_solver", "--steps", "4,2", "--limit", 6)
    assert said.code == 0, said.err
    found = json.loads((run / "frontier" / "frontier.json").read_text())
    assert [(it["sampler"], it["steps"]) for it in found["points"]] == [
        ("ddim", 2), ("ddim", 4), ("dpm_solver", 2), ("dpm_solver", 4),
    ]  # fmt: skip
    assert found["images"] == 6 and found["split"] == "val"
    assert all(it["seconds"] > 0 for it in found["points"])
    with Image.open(run / "frontier" / "frontier.png") as chart:
        assert min(chart.size) > 600
    assert "dpm_solver" in said.out and "first 6 images" in " ".join(said.out.split())


@pytest.mark.parametrize("steps", ["", "0,5", "ten"])
def test_steps_that_are_none(steps: str, tiny_run: Finished, cdlm: Command) -> None:
    said = cdlm("frontier", tiny_run.path, "--steps", steps)
    assert said.code == 2 and "expected numbers from 1 on" in said.err
