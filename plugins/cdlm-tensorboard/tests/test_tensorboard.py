"""What a run logs is in TensorBoard's files; what goes wrong there is one warning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
from cdlm_tensorboard.tracker import FOLDER, Tracker
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cdlm
from cdlm.records import Event

CDLM = [sys.executable, "-c", "from cdlm.cli import main; main()"]
SMALL = [
    "dataset={use='shapes', train=12, held_out=4}", "encoder={use='features', path='FEATURES'}",
    "denoiser={use='transformer', layers=1, heads=2}", "model.hidden=16", "train.batch=4",
    "metric=[{use='exact_match'}]", "train.log_every=1", "train.checkpoint_every=2",
    "conditioning=[{use='time_add'}, {use='extra_token'}]", "sampler.steps=2",
]  # fmt: skip


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of everything that TensorBoard would show."""
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {
        name: [(it.step, it.value) for it in read.Scalars(name)] for name in read.Tags()["scalars"]
    }


def heard(run: Path, *events: tuple[int, str, float]) -> Tracker:
    tracker = Tracker()
    for step, name, value in events:
        tracker.cdlm_event(Event(step=step, name=name, value=value), run)
    return tracker


# --------------------------------------------------------------------------------- in files


def test_values_are_written_at_once(tmp_path: Path) -> None:
    heard(tmp_path, (1, "loss", 0.5), (1, "step", 1), (2, "loss", 0.25), (2, "checkpoint", 2))
    assert scalars(tmp_path / FOLDER) == {"loss": [(1, 0.5), (2, 0.25)]}


def test_a_run_that_goes_on_forgets_what_was_lost(tmp_path: Path) -> None:
    heard(tmp_path, *((step, "loss", float(step)) for step in (1, 2, 3, 4)))
    heard(tmp_path, (3, "loss", 30.0), (4, "loss", 40.0))
    assert scalars(tmp_path / FOLDER)["loss"] == [(1, 1), (2, 2), (3, 30), (4, 40)]


def test_runs_of_one_process_have_files_of_their_own(tmp_path: Path) -> None:
    tracker = Tracker()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tracker.cdlm_event(Event(step=1, name=name, value=1.0), tmp_path / name)
    assert set(scalars(tmp_path / "a" / FOLDER)) == {"a"}
    assert set(scalars(tmp_path / "b" / FOLDER)) == {"b"}


# ------------------------------------------------------------------------ what can go wrong


def fails_once(tracker: Tracker, run: Path, said: str) -> None:
    """The first value raises with this text, the next ones do nothing at all."""
    with pytest.raises(cdlm.PluginError, match=said) as error:
        tracker.cdlm_event(Event(step=1, name="loss", value=0.5), run)
    assert "which goes on" in str(error.value)
    tracker.cdlm_event(Event(step=2, name="loss", value=0.5), run)


def test_a_file_in_the_way_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("")
    fails_once(Tracker(), tmp_path, "FileExistsError")


def test_a_run_that_is_gone_is_one_warning(tmp_path: Path) -> None:
    fails_once(Tracker(), tmp_path / "gone", "FileNotFoundError")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_warning(tmp_path: Path) -> None:
    tracker = heard(tmp_path, (1, "loss", 1.0))
    [path] = (tmp_path / FOLDER).iterdir()
    path.unlink()
    path.symlink_to("/dev/full")
    fails_once(tracker, tmp_path, "No space left on device")


def test_a_missing_tensorboard_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    fails_once(Tracker(), tmp_path, "ModuleNotFoundError")


# --------------------------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A recipe that trains in a second, on features at random."""
    folder = tmp_path_factory.mktemp("recipe")
    ids = [f"{split}-{i:06d}" for split, n in {"train": 12, "test": 4}.items() for i in range(n)]
    features = torch.randn(len(ids), 8)
    path = folder / "features.safetensors"
    save_file({"features": features}, path, metadata={"image_ids": json.dumps(ids)})
    (folder / "small.toml").write_text('extends = "cdlm:extra_token.toml"\n')
    yield folder


def run(folder: Path, recipe: Path, *more: str, **variables: str) -> subprocess.CompletedProcess:
    sets = [text.replace("FEATURES", str(recipe / "features.safetensors")) for text in SMALL]
    options = [word for text in [*sets, *more] for word in ("--set", text)]
    return subprocess.run(
        [*CDLM, "run", str(recipe / "small.toml"), "--runs", str(folder), *options],
        capture_output=True, text=True, timeout=100, cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CDLM_CACHE": str(folder), **variables},
    )  # fmt: skip


def test_the_plugin_is_installed() -> None:
    points = metadata.distribution("cdlm-tensorboard").entry_points
    assert [it.value for it in points.select(group="cdlm")] == ["cdlm_tensorboard:tracker"]


def test_a_run_is_tracked_with_its_scores(tmp_path: Path, recipe: Path) -> None:
    done = run(tmp_path, recipe, "train.steps=3")
    assert done.returncode == 0, done.stderr
    [folder] = tmp_path.glob(f"small/*/{FOLDER}")
    found = scalars(folder)
    lines = (folder.parent / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    for it in logged:
        values = dict(found[it["name"]])
        assert values[it["step"]] == pytest.approx(it["value"], rel=1e-6)
    assert [step for step, _ in found["score/exact_match"]] == [3], sorted(found)


def test_nothing_that_goes_wrong_here_stops_a_run(tmp_path: Path, recipe: Path) -> None:
    """TensorBoard's package raises at its import: one warning, and the run is as it would be."""
    broken = tmp_path / "broken" / "tensorboard"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('protobuf is of another version')")
    path = os.pathsep.join([str(broken.parent), os.environ.get("PYTHONPATH", "")])
    done = run(tmp_path, recipe, "train.steps=3", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    said = 'warning: plugin "tensorboard" of cdlm-tensorboard'
    assert done.stderr.count(said) == 1 and "protobuf is of another version" in done.stderr
    assert len(list(tmp_path.glob("small/*/summary.json"))) == 1
