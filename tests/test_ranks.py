"""Several processes make the run that one makes, and notice it when one of them is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Command, environment
from test_resume import newest_step
from torch import nn
from torch.nn import functional as F

from cdlm import checkpoint, ranks
from cdlm.checkpoint import Checkpoint
from cdlm.errors import CdlmError
from cdlm.job import Job
from cdlm.ranks import Shared
from cdlm.recipe import load
from cdlm.run import begin, train_run
from cdlm.rundir import RunDir, runs
from cdlm.testing.examples import DIMS, condition
from cdlm.testing.whole import network

STEPS = 50
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]


def words(recipe: Path, folder: Path, verb: str = "train", steps: int = STEPS) -> list[str]:
    sets = ["--set", f"train.steps={steps}", "--set", "train.checkpoint_every=10"]
    return ["cdlm", verb, str(recipe), *sets, "--runs", str(folder / "runs"), "--threads", "1"]


def only_run(folder: Path) -> RunDir:
    (path,) = runs(folder / "runs")
    return RunDir(path)


def newest(run: RunDir) -> Checkpoint:
    found = checkpoint.newest(run.checkpoints)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> RunDir:
    """The run of one process: with dropout, withheld images and two batches per step."""
    folder = tmp_path_factory.mktemp("alone")
    argv = [sys.executable, "-m", *words(tiny_recipe, folder, "run")]
    subprocess.run(argv, cwd=folder, env=environment(folder), check=True, capture_output=True)
    return only_run(folder)


@contextmanager
def two(folder: Path, argv: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that share a run, started as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *argv],
            cwd=folder,
            env=environment(folder) | meet | {"RANK": str(place), "LOCAL_RANK": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in range(2)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def wait_until_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while newest_step(folder) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"no step {step} in time"
        time.sleep(0.005)


def assert_same(one: RunDir, other: RunDir) -> None:
    """Weights, optimizer and logged values; to the last digits, as sums have another order."""
    ours, theirs = newest(one), newest(other)
    assert ours.step == theirs.step == STEPS
    torch.testing.assert_close(ours.tensors, theirs.tensors, rtol=0, atol=1e-6)
    logs = [run.records("metrics.jsonl") for run in (one, other)]
    assert [(it["step"], it["name"]) for it in logs[0]] == [
        (it["step"], it["name"]) for it in logs[1]
    ]
    values = [[it["value"] for it in log] for log in logs]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


# ------------------------------------------------------------------------------------ the same run


def test_two_processes_make_the_run_that_one_makes(
    tmp_path: Path, tiny_recipe: Path, alone: RunDir
) -> None:
    argv = [*TORCHRUN, "-m", *words(tiny_recipe, tmp_path, "run")]
    done = subprocess.run(
        argv, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run: ") == 1, "only the first process speaks"
    run = only_run(tmp_path)
    assert_same(run, alone)
    assert newest(run).state["processes"] == 2
    summary = run.summary()
    assert summary["training_processes"] == 2
    assert summary["training_speed"]["captions_per_second"] > 0
    assert summary["scores"] == pytest.approx(alone.summary()["scores"], abs=1e-6)


class Rows(nn.Module):
    """Says how its dropout falls, of every row."""

    def forward(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        return F.dropout(torch.ones_like(x), 0.5)


def test_a_row_meets_the_same_dropout_in_whatever_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_reduce", lambda tensor, how: None)  # the others' rows stay zero
    x, given = torch.zeros(3, 2, 4), condition()
    torch.manual_seed(0)
    whole = F.dropout(torch.ones(3, 2, 4), 0.5)
    total = torch.zeros_like(x)
    for place in range(2):
        torch.manual_seed(0)
        total += Shared(Rows(), place, 2)(x, torch.zeros(3), given, torch.ones(3, 2).bool())
    assert torch.equal(total, whole)


@pytest.mark.parametrize("of", [1, 2, 3])
def test_gradients_of_shared_rows_average_to_those_of_the_whole(
    of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the network, which sees its rows alone, and of what every process does whole."""
    monkeypatch.setattr(ranks, "_reduce", lambda tensor, how: None)
    given, mask = condition(), torch.ones(3, DIMS.length).bool()
    pieces, plain = network(), network()
    plain.load_state_dict(pieces.state_dict())
    x, y = (torch.randn(3, DIMS.length, DIMS.width).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    whole = plain(y, torch.full((3,), 0.5), given, mask)
    (whole * whole.detach() + y).sum().backward()
    for place in range(of):
        call = Shared(pieces, place, of)
        said = call(x, torch.full((3,), 0.5), replace(given), mask)
        (said * whole.detach() + x).sum().backward()  # the rows of others are known from them
    for ours, theirs in zip([x, *pieces.parameters()], [y, *plain.parameters()], strict=True):
        if theirs.grad is not None:
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad / of, theirs.grad)


# ---------------------------------------------------------------------------------- what may happen


def test_asked_to_stop_both_stop_at_the_same_step_and_one_goes_on(
    tmp_path: Path, tiny_recipe: Path, alone: RunDir, cdlm: Command
) -> None:
    argv = words(tiny_recipe, tmp_path)
    with two(tmp_path, argv) as started:
        wait_until_step(tmp_path, 10, started[0])
        started[1].send_signal(signal.SIGTERM)  # the other hears of it from this one
        said = [process.communicate(timeout=60)[1] for process in started]
        assert [process.returncode for process in started] == [128 + signal.SIGTERM] * 2, said
    assert "stopped by SIGTERM at step " in said[0]
    assert "stopped" not in said[1]
    stopped = newest(only_run(tmp_path))
    assert stopped.step < STEPS
    assert stopped.state["processes"] == 2
    done = cdlm(*argv[1:], "--resume")
    assert done.code == 0, done.err
    assert_same(only_run(tmp_path), alone)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_is_missed_and_the_run_goes_on_from_its_checkpoint(
    lost: int, tmp_path: Path, tiny_recipe: Path
) -> None:
    with two(tmp_path, words(tiny_recipe, tmp_path, steps=5000)) as started:
        wait_until_step(tmp_path, 10, started[0])
        started[lost].kill()
        began = time.monotonic()
        said = started[1 - lost].communicate(timeout=30)[1]
        assert time.monotonic() - began < 10
    assert started[1 - lost].returncode == 2
    assert f"error: process {1 - lost} of 0 to 1: " in said
    assert "intact" in said and "--resume" in said
    assert "Traceback" not in said
    assert newest(only_run(tmp_path)).step >= 10


def test_a_process_that_stands_still_is_missed(tmp_path: Path, tiny_recipe: Path) -> None:
    """Its connections stay open; only its heart stops."""
    with two(tmp_path, words(tiny_recipe, tmp_path, steps=5000)) as started:
        wait_until_step(tmp_path, 10, started[0])
        started[1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        said = started[0].communicate(timeout=30)[1]
        assert time.monotonic() - began < 11
    assert started[0].returncode == 2
    assert "no sign of life from process 1 for 8 s" in said
    assert newest(only_run(tmp_path)).step >= 10


def test_a_batch_has_a_caption_for_every_process(
    tmp_path: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(load(tiny_recipe), tmp_path / "runs", False, [])
    job = Job.open(run, "cpu")
    monkeypatch.setattr(ranks, "count", lambda: 9)
    with pytest.raises(CdlmError, match="fewer captions than the 9 processes"):
        train_run(job)


def test_alone_there_is_nobody_to_wait_for() -> None:
    assert "WORLD_SIZE" not in os.environ
    with ranks.joined(), ranks.first():
        assert (ranks.count(), ranks.rank(), ranks.agreed(15)) == (1, 0, 15)
    net = network()
    assert ranks.shared(net) is net
