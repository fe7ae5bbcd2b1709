"""One checkpoint, every sampler: what is measured, counted, shown and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Command, Finished
from PIL import Image

from cdlm import plugins
from cdlm.errors import CdlmError
from cdlm.frontier import measure, samplers
from cdlm.run import Job, evaluate_run
from cdlm.rundir import RunDir

PLAIN = ["guidance.scale=1.0"]


@pytest.fixture(scope="module")
def job(tiny_run: Finished) -> Job:
    return Job.open(RunDir(tiny_run.path), "cpu", PLAIN)


def test_every_sampler_is_tried_unless_some_are_asked_for() -> None:
    assert samplers("") == plugins.load().registry.names("sampler")
    assert samplers("ddpm, ddim,ddpm") == ["ddpm", "ddim"]
    with pytest.raises(CdlmError, match='no sampler is called "dimd"; did you mean "ddim"'):
        samplers("dimd")


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
    assert found["images"] == 6 and all(it["seconds"] > 0 for it in found["points"])
    with Image.open(run / "frontier" / "frontier.png") as chart:
        assert min(chart.size) > 600
    assert "dpm_solver" in said.out and "first 6 images" in " ".join(said.out.split())


@pytest.mark.parametrize("steps", ["", "0,5", "ten"])
def test_steps_that_are_none(steps: str, tiny_run: Finished, cdlm: Command) -> None:
    said = cdlm("frontier", tiny_run.path, "--steps", steps)
    assert said.code == 2 and "expected numbers from 1 on" in said.err
