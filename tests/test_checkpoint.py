"""A checkpoint is there whole or not at all, and nothing damaged is ever used."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cdlm.checkpoint
from cdlm.checkpoint import adopt, last_state, load, newest, save
from cdlm.errors import RunError

ROOT = Path(cdlm.checkpoint.__file__).parents[1]


def contents(step: int) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Small tensors and a state that both depend on the step."""
    tensors = {
        "weights": {"a": torch.full((3, 2), float(step)), "b": torch.arange(step % 5 + 1)},
        "training": {"momentum": torch.full((4,), step / 7)},
    }
    return tensors, {"step": step, "loss": step / 3, "order": [step, step + 1]}


def save_step(folder: Path, step: int, keep: int = 3) -> Path:
    return save(folder, step, *contents(step), keep=keep)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


def assert_holds(checkpoint: cdlm.checkpoint.Checkpoint | None, step: int) -> None:
    """The checkpoint is exactly what was saved at this step."""
    assert checkpoint is not None
    tensors, state = contents(step)
    assert checkpoint.step == step
    assert checkpoint.state == state
    torch.testing.assert_close(checkpoint.tensors, tensors, rtol=0, atol=0)


def test_load_gives_back_what_was_saved(tmp_path):
    path = save_step(tmp_path / "checkpoints", 500)
    assert path.name == "step-00000500"
    assert_holds(load(path), 500)


def test_tensors_of_every_layout_come_back(tmp_path):
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    named = {
        "turned": base.T,
        "part": base[1:3, ::2],
        "tied": base,
        "scalar": torch.tensor(3),
        "none": torch.empty(0, 5),
        "half": base.bfloat16(),
        "mask": base > 0,
        "learnt": torch.nn.Parameter(base),
    }
    read = load(save(tmp_path, 1, {"weights": named, "training": {}}, {}, keep=1)).tensors
    plain = {name: tensor.detach() for name, tensor in named.items()}
    torch.testing.assert_close(read, {"weights": plain, "training": {}}, rtol=0, atol=0)
    read["weights"]["tied"].add_(1)  # and they can be trained on
    assert torch.equal(read["weights"]["turned"], base.T)


def test_equal_contents_give_equal_bytes(tmp_path):
    tensors, state = contents(3)
    backwards = {k: dict(reversed(v.items())) for k, v in reversed(tensors.items())}
    one = save(tmp_path / "one", 3, tensors, state, keep=1)
    two = save(tmp_path / "two", 3, backwards, dict(reversed(state.items())), keep=1)
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_a_folder_without_checkpoints_has_no_newest(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path / "missing") is None


def test_only_the_newest_are_kept(tmp_path):
    for step in range(1, 7):
        save_step(tmp_path, step)
    assert steps(tmp_path) == [4, 5, 6]


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path):
    for step in (1, 2, 3):
        save_step(tmp_path, step)
    (tmp_path / "step-00000003" / "state.json").write_text("")
    save_step(tmp_path, 4)
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_resuming_before_a_damaged_checkpoint_replaces_it_and_loses_none(tmp_path):
    for step in (1, 2, 3, 4):
        save_step(tmp_path, step, keep=4)
    for step in (3, 4):
        (tmp_path / f"step-{step:08d}" / "weights.safetensors").write_bytes(b"")
    save_step(tmp_path, 3, keep=2)
    assert_holds(newest(tmp_path), 3)
    assert steps(tmp_path) == [2, 3, 4]


def test_a_step_saved_again_is_the_later_one(tmp_path):
    save_step(tmp_path, 5)
    save(tmp_path, 5, {"weights": {"a": torch.ones(1)}}, {"again": True}, keep=1)
    assert load(tmp_path / "step-00000005").state == {"again": True}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_keep_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        save_step(tmp_path, 1, keep=0)


# ---------------------------------------------------------------------------- damage is noticed


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


FILES = ("weights.safetensors", "training.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_noticed_before_use(tmp_path, name, caplog):
    """R5: on any single-bit flip, the newest sound checkpoint is an older one."""
    save_step(tmp_path, 1)
    path = save_step(tmp_path, 2) / name
    rng = random.Random(0)
    # A flip in what the manifest says of a file looks like one in that file.
    told = "step-00000002" if name == "manifest.json" else f"step-00000002/{name}: damaged"
    for bit in rng.sample(range(8 * path.stat().st_size), k=150):
        flip(path, bit)
        with pytest.raises(RunError, match=told):
            load(path.parent)
        flip(path, bit)
    assert_holds(newest(tmp_path), 2)
    flip(path, 17)
    with caplog.at_level(logging.WARNING):
        assert_holds(newest(tmp_path), 1)
    assert name in caplog.text


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_cut_or_missing_file_is_named(tmp_path, name, damage):
    path = save_step(tmp_path, 2) / name
    damage(path)
    with pytest.raises(RunError, match=name):
        load(path.parent)
    assert newest(tmp_path) is None


def test_a_renamed_checkpoint_is_refused(tmp_path):
    path = save_step(tmp_path, 2).rename(tmp_path / "step-00000009")
    with pytest.raises(RunError, match="it is of step 2"):
        load(path)


@pytest.mark.parametrize(
    "files", [["state.json"], {"state.json": 3}, {"../x": {}}, {}, None, {"state.json": {}}]
)
def test_a_manifest_of_another_form_is_refused(tmp_path, files):
    path = save_step(tmp_path, 2) / "manifest.json"
    forged = {"files": files, "format": 1, "step": 2}
    path.write_text(json.dumps(forged, indent=2, sort_keys=True) + "\n")
    with pytest.raises(RunError, match="step-00000002"):
        load(path.parent)


def test_a_missing_checkpoint_is_said_to_be_none(tmp_path):
    with pytest.raises(RunError, match="there is no manifest"):
        load(tmp_path / "step-00000001")


# -------------------------------------------------------------------- every call of a save fails


class Fault:
    """Makes the n-th call of the system fail once; `calls` counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int, failure: Callable[..., Any]):
        self.calls, self.nth, self.failure = 0, nth, failure
        only_writes = failure in (short_write, deaf_write)
        for name in ("write",) if only_writes else ("open", "write", "fsync", "rename", "mkdir"):
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return (self.failure(name) or real if self.calls == self.nth else real)(*args, **kwargs)

        return call


def no_space(name: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def bad_disk(name: str) -> None:
    raise OSError(errno.EIO, "Input/output error")


REAL_WRITE = os.write


def short_write(name: str) -> Callable[..., int]:
    return lambda file, data: REAL_WRITE(file, data[: len(data) // 2])


def deaf_write(name: str) -> Callable[..., int]:
    return lambda file, data: 0


def try_save(folder: Path, step: int, nth: int, failure: Callable[..., Any]) -> tuple[int, str]:
    """Save with one fault; -> how many calls there were, and what was said."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        fault = Fault(monkeypatch, nth, failure)
        try:
            save_step(folder, step, keep=1)
        except RunError as error:
            return fault.calls, str(error)
    return fault.calls, ""


def prepared(folder: Path, again: bool) -> Path:
    """A folder in which step 2 is about to be saved, for the first or the second time."""
    for step in (1, 2) if again else (1,):
        save_step(folder, step)
    return folder


@pytest.mark.parametrize("failure", [no_space, bad_disk, short_write, deaf_write])
@pytest.mark.parametrize("again", [False, True], ids=["next step", "same step"])
def test_every_call_that_fails_leaves_a_sound_checkpoint(tmp_path, failure, again):
    """R2: whichever call of a save fails, the old or the new checkpoint is the newest."""
    before = prepared(tmp_path / "before", again)
    calls, _ = try_save(shutil.copytree(before, tmp_path / "0"), 2, 0, failure)
    assert calls >= 4
    failed = 0
    for nth in range(1, calls + 1):
        folder = shutil.copytree(before, tmp_path / str(nth))
        _, message = try_save(folder, 2, nth, failure)
        found = newest(folder)
        if message:
            failed += 1
            assert_holds(found, 1 if not again and found.step == 1 else 2)
            assert not list(folder.glob(".*")), f"call {nth} left a temporary folder"
        else:
            assert_holds(found, 2)
        save_step(folder, 3)  # and the next one succeeds
        assert_holds(newest(folder), 3)
    assert (failed > 3) == (failure is not short_write)  # a short write is simply gone on with


def test_a_full_disk_is_told_with_what_is_left(tmp_path):
    """R10."""
    save_step(tmp_path, 400)
    _, message = try_save(tmp_path, 500, nth=4, failure=no_space)
    assert "step-00000500: can't save this checkpoint: No space left on device" in message
    assert "the previous checkpoint step-00000400 is intact" in message
    _, message = try_save(tmp_path / "empty", 500, nth=4, failure=no_space)
    assert "there is none before it" in message


def test_a_file_in_the_way_of_the_folder_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match="can't save this checkpoint"):
        save_step(tmp_path / "checkpoints", 1)


def test_what_dead_processes_left_is_swept(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], **PIPE)
    left = tmp_path / f".step-00000001.tmp-{int(dead.stdout)}-1"
    working = tmp_path / f".step-00000001.tmp-{os.getppid()}-1"
    for folder in (left, working):
        folder.mkdir()
    save_step(tmp_path, 2)
    assert not left.exists()
    assert working.exists()  # its writer lives


# ----------------------------------------------------------------------------------------- kills

PIPE: dict[str, Any] = {"capture_output": True, "text": True, "check": True}

# Forks after importing torch, so that a trial costs no import. Each child saves on from what it
# finds, says so of each, and is killed at some moment; what stands is then compared with the said.
KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from cdlm.checkpoint import newest, save

def save_on(folder, out):
    found = newest(folder)
    step = found.step if found else 0
    while True:
        step += 1
        weights = {str(i): torch.full((64, 64), float(step)) for i in range(3)}
        save(folder, step, {"weights": weights}, {"step": step}, keep=3)
        os.write(out, b"%d\\n" % step)

folder, rng, acknowledged = Path(sys.argv[1]), random.Random(0), 0
for trial in range(12):
    listen, out = os.pipe()
    child = os.fork()
    if child == 0:
        save_on(folder, out)
    os.close(out)
    time.sleep(rng.uniform(0.03, 0.25))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = os.fdopen(listen).read().split()
    acknowledged = max([acknowledged, *map(int, said)])
    found = newest(folder)
    whole = found is None or all(
        bool((w == found.step).all()) for w in found.tensors["weights"].values()
    )
    left = len(list(folder.glob(".*")))
    print(json.dumps([acknowledged, found.step if found else 0, whole, left]))
"""


def test_a_kill_at_any_moment_loses_no_acknowledged_checkpoint(tmp_path):
    """R1: 12 random SIGKILLs; the newest sound checkpoint is never older than the last said."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLS, str(tmp_path)]
    out = subprocess.run(command, cwd=ROOT, env=env, **PIPE).stdout
    trials = [json.loads(line) for line in out.splitlines()]
    assert len(trials) == 12
    for acknowledged, found, whole, _ in trials:
        assert acknowledged <= found <= acknowledged + 1
        assert whole
    assert trials[-1][0] > 0  # they did save
    assert any(left for *_, left in trials)  # and some were killed in the middle of a save


def test_a_step_being_replaced_is_found_after_a_kill_between_the_renames(tmp_path):
    path = save_step(tmp_path, 7)
    path.rename(tmp_path / "step-00000007.replaced")
    assert_holds(newest(tmp_path), 7)
    shutil.copytree(tmp_path / "step-00000007.replaced", path)
    (path / "state.json").write_text("")
    assert_holds(newest(tmp_path), 7)


# --------------------------------------------------------------------------- another run's


def test_what_is_adopted_outlives_the_run_it_is_from(tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    path = save_step(theirs, 7)
    ours.mkdir()
    assert adopt(path, ours) == ours / "step-00000007"
    shutil.rmtree(theirs)
    assert_holds(newest(ours), 7)
    save_step(ours, 8, keep=1)
    assert steps(ours) == [8]


def test_adopting_where_files_cannot_be_shared_copies_them(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refused)
    path = save_step(tmp_path / "theirs", 7)
    (tmp_path / "ours").mkdir()
    adopt(path, tmp_path / "ours")
    assert_holds(newest(tmp_path / "ours"), 7)


def test_the_last_state_is_read_without_the_tensors(tmp_path):
    assert last_state(tmp_path) == {}
    for step in (3, 9):
        path = save_step(tmp_path, step)
    (path / "weights.safetensors").unlink()
    assert last_state(tmp_path) == contents(9)[1]
