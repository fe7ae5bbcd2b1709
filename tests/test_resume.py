"""A run that is killed, or asked to stop, and resumed ends as the undisturbed one, bit for bit."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import CDLM, Command, Finished, environment

from cdlm import checkpoint
from cdlm.rundir import METRICS, SAMPLES, RunDir, runs

KILLS = 4
STEPS = 160


def begun(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    """`cdlm run RECIPE --resume`, on its way."""
    words = ["run", str(recipe), "--runs", str(folder / "runs"), "--threads", "1", "--resume"]
    return subprocess.Popen(
        [*CDLM, *words],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def newest_step(folder: Path) -> int:
    """The newest acknowledged checkpoint's step; 0 where there is none."""
    return max((run.last_step or 0 for run in map(RunDir, runs(folder / "runs"))), default=0)


def wait_until_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while newest_step(folder) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"no step {step} after a minute"
        time.sleep(0.002)


def assert_same_run(run: Path, undisturbed: Path) -> None:
    """Metrics, vocabulary and captions byte by byte; weights and optimizer tensor by tensor."""
    for name in (METRICS, SAMPLES, "recipe.toml", "tokenizer.json"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    ours, theirs = (checkpoint.newest(path / "checkpoints") for path in (run, undisturbed))
    assert ours is not None
    assert theirs is not None
    assert ours.step == theirs.step == STEPS
    torch.testing.assert_close(ours.tensors, theirs.tensors, rtol=0, atol=0)
    assert RunDir(run).summary()["scores"] == RunDir(undisturbed).summary()["scores"]


def test_the_same_recipe_elsewhere_is_the_same_run(
    cdlm: Command, tmp_path: Path, tiny_recipe: Path, tiny_run: Finished
) -> None:
    torch.rand(3)  # what this process has drawn before does not count
    said = cdlm("run", tiny_recipe, "--runs", tmp_path / "elsewhere", "--threads", 1)
    assert said.code == 0, said.err
    assert_same_run(next((tmp_path / "elsewhere").glob("*/*")), tiny_run.path)


def test_killed_at_random_moments_and_resumed(
    tmp_path: Path, tiny_recipe: Path, tiny_run: Finished
) -> None:
    draw = random.Random(time.time_ns())
    moments = sorted(draw.sample(range(20, STEPS - 20), KILLS))
    print(f"killed once step {moments} has been passed")
    for moment in moments:
        process = begun(tiny_recipe, tmp_path)
        wait_until_step(process, tmp_path, moment)
        time.sleep(draw.uniform(0, 0.1))
        acknowledged = newest_step(tmp_path)
        process.kill()
        process.communicate()
        found = checkpoint.newest(runs(tmp_path / "runs")[0] / "checkpoints")
        assert found is not None
        assert found.step >= acknowledged
    process = begun(tiny_recipe, tmp_path)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert_same_run(runs(tmp_path / "runs")[0], tiny_run.path)


def test_asked_to_stop_and_resumed(tmp_path: Path, tiny_recipe: Path, tiny_run: Finished) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        before = newest_step(tmp_path)
        process = begun(tiny_recipe, tmp_path)
        wait_until_step(process, tmp_path, before + 1)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number, said
        assert f"stopped by {number.name} at step " in said
        assert "--resume" in said
        run = RunDir(runs(tmp_path / "runs")[0])
        found = checkpoint.newest(run.checkpoints)
        assert found is not None
        assert before < found.step < STEPS
        assert all(record["step"] <= found.step for record in run.records(METRICS))
        assert not run.finished
    process = begun(tiny_recipe, tmp_path)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert_same_run(runs(tmp_path / "runs")[0], tiny_run.path)


def test_one_flipped_bit_makes_another_run(tiny_run: Finished, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run.path, tmp_path / "run"))
    assert_same_run(run, tiny_run.path)
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None
    found.tensors["training"]["model.network.read.bias"].view(torch.int32)[0] ^= 1
    checkpoint.save(run / "checkpoints", STEPS, found.tensors, found.state, keep=3)
    with pytest.raises(AssertionError, match=r"read\.bias"):
        assert_same_run(run, tiny_run.path)
