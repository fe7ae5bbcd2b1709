"""Studies as they run: in what order, how many at a time, and whatever becomes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pluggy
import pytest
from conftest import CDLM, Command, environment

from cdlm import board, conduct, outcome, plugins, recipe, study
from cdlm.conduct import How, Work
from cdlm.protocols import Running
from cdlm.rundir import SAMPLES, SUMMARY, RunDir, find, runs

SIX = """extends = "{base}"
about = "Six points, of which two share their weights with another"

[study]
design = "grid"
seeds  = [3]

[axis.target]
x0  = {{ target.use = "x0" }}
eps = {{ target.use = "eps" }}

[axis.way]
two  = {{ sampler.steps = 2 }}
five = {{ sampler.steps = 5 }}
less = {{ loss.1.weight = 0.1 }}

[train]
steps            = 60
checkpoint_every = 10

[evaluate]
limit = 8
"""


@pytest.fixture(scope="session")
def six(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> Path:
    place = tmp_path_factory.mktemp("studies") / "six.toml"
    place.write_text(SIX.format(base=tiny_recipe))
    return place


# ------------------------------------------------------------- with a launcher that only pretends


@dataclass
class Pretended:
    """A process that ends at the second look, and leaves a run as the real one does."""

    finish: Callable[[], int]
    looks: int = 0
    stopped: bool = False
    ended: int | None = None

    def code(self) -> int | None:
        self.looks += 1
        if self.ended is None and (self.stopped or self.looks > 1):
            self.ended = 143 if self.stopped else self.finish()
        return self.ended

    def stop(self) -> None:
        self.stopped = True


@dataclass
class Pretender:
    """Starts nothing; notes what it should have started, and fails where it is told to."""

    root: Path
    fails: Callable[[recipe.Recipe], bool] = lambda _: False
    started: list[recipe.Recipe] = field(default_factory=list)
    running: list[Pretended] = field(default_factory=list)
    most: int = 0

    def start(self, command: Sequence[str], log: Path) -> Running:
        asked = recipe.load(command[command.index("point") + 1])
        name = command[command.index("--name") + 1]
        sets = [command[i + 1] for i, word in enumerate(command) if word == "--option"]
        self.started.append(asked)
        self.running.append(Pretended(lambda: self.end(asked, name, sets, log)))
        self.most = max(self.most, sum(it.ended is None for it in self.running))
        return self.running[-1]

    def end(self, asked: recipe.Recipe, name: str, sets: list[str], log: Path) -> int:
        if self.fails(asked):
            log.write_text("a line\n\nthe last words\n")
            return 2
        left(self.root, asked, name, sets)
        return 0


def left(root: Path, asked: recipe.Recipe, name: str = "other", sets: Sequence[str] = ()) -> RunDir:
    """A finished run of this recipe, as far as a study looks at it."""
    known = {"hash": asked.hash, "training": asked.training_hash}
    run = RunDir.create(root, name, sets, asked.seed, asked.hash, asked.toml(), known)
    (run.checkpoints / f"step-{asked.train.steps:08d}").mkdir()
    steps = asked.one("sampler").parameters["steps"]
    run.finish(
        {
            "scores": {"exact_match": steps / 10 + asked.seed / 100},
            "split": "val",
            "n": 8,
            "sampling_seconds": 0.8 * steps,
            "training_seconds": 5.0,
            "parameters": 1234,
        }
    )
    return run


def conducted(work: Work, launcher: Any, jobs: int = 2) -> list[recipe.Recipe]:
    """What is started until all has ended."""
    work.plan()
    for changed in conduct.conduct(work, How(launcher=launcher, jobs=jobs)):
        board.plan(work), board.table(work)
        del changed
    return list(launcher.started)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conduct, "EVERY_S", 0.0)


@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_as_many_run_at_a_time_as_asked_for_and_each_recipe_once(
    six: Path, tmp_path: Path, jobs: int
) -> None:
    launcher = Pretender(tmp_path)
    work = Work.of(study.load(six, ["study.seeds=[0, 1]"]), tmp_path)
    started = [it.hash for it in conducted(work, launcher, jobs)]
    assert len(started) == len(set(started)) == 12
    # 8 is as many as there are trainings: those that share one wait for it
    assert launcher.most == min(jobs, 8)


def test_what_shares_its_weights_begins_when_they_are_there(six: Path, tmp_path: Path) -> None:
    launcher = Pretender(tmp_path)
    work = Work.of(study.load(six), tmp_path)
    work.plan()
    busy: list[str] = []
    for changed in conduct.conduct(work, How(launcher=launcher, jobs=9)):
        for trial in changed:
            alike = trial.recipe.training_hash
            if trial.state == "running":
                assert alike not in busy
                busy.append(alike)
            else:
                busy.remove(alike)


def test_what_is_finished_anywhere_is_not_started(six: Path, tmp_path: Path) -> None:
    found = study.load(six)
    left(tmp_path, found.points[1].seeded(3))
    started = conducted(Work.of(found, tmp_path), Pretender(tmp_path))
    assert len(started) == 5
    assert conducted(Work.of(found, tmp_path), Pretender(tmp_path)) == []


def test_equal_points_run_once_and_say_so(six: Path, tmp_path: Path) -> None:
    text = six.read_text() + '[axis.again]\nno = {}\nyes = { sampler.use = "ddpm" }\n'
    (tmp_path / "again.toml").write_text(text)
    found = study.load(tmp_path / "again.toml", ["study.design=one_at_a_time"])
    work = Work.of(found, tmp_path / "runs")
    assert len(conducted(work, Pretender(tmp_path / "runs"))) == len(found.points) - 1
    verdicts = {
        row["label"]: (row["against_baseline"] or {}).get("exact_match", {}).get("verdict")
        for row in outcome.outcome(work)["rows"]
    }
    assert verdicts["again: yes"] == "the same run"
    assert verdicts["baseline"] is None


def test_a_failed_point_stops_nothing_and_is_tried_again(six: Path, tmp_path: Path) -> None:
    work = Work.of(study.load(six), tmp_path)
    fails = Pretender(tmp_path, fails=lambda it: it.one("target").use == "eps")
    assert len(conducted(work, fails)) == 6
    failed = [trial for trial in work.trials.values() if trial.state == "failed"]
    assert [trial.failure for trial in failed] == ["a line\nthe last words"] * 3
    rows = outcome.outcome(work)["rows"]
    assert sum("failed" in run for row in rows for run in row["runs"]) == 3
    assert "(1 of 1 failed)" in outcome.markdown(outcome.outcome(work))
    again = Work.of(study.load(six), tmp_path)
    assert len(conducted(again, Pretender(tmp_path))) == 3


def test_a_study_that_is_left_stops_what_runs(six: Path, tmp_path: Path) -> None:
    launcher = Pretender(tmp_path)
    work = Work.of(study.load(six), tmp_path)
    work.plan()
    done = conduct.run(work, How(launcher=launcher, jobs=2), lambda *_: None, lambda: True)
    assert not done
    assert [it.stopped for it in launcher.running] == [True, True]
    assert outcome.outcome(work) == {}


def test_the_table_says_means_effects_and_the_frontier(six: Path, tmp_path: Path) -> None:
    work = Work.of(study.load(six, ["study.seeds=[0, 1, 2]"]), tmp_path)
    conducted(work, Pretender(tmp_path))
    found = outcome.outcome(work)
    row = found["rows"][1]
    assert row["label"] == "x0, five"
    assert row["scores"]["exact_match"]["mean"] == pytest.approx(0.51)
    low, high = row["scores"]["exact_match"]["interval"]
    assert (high - low) / 2 == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-3)
    assert row["against_baseline"]["exact_match"]["difference"] == pytest.approx(0.3)
    assert found["effects"]["way"]["five"]["exact_match"]["difference"] == pytest.approx(0.3)
    assert found["effects"]["target"]["eps"]["exact_match"]["verdict"] == "inside the noise"
    assert row["time"]["seconds_per_caption"] == pytest.approx(0.5)
    stars = {it["label"] for it in found["rows"] if it["time"]["frontier"]}
    assert stars == {"x0, two", "x0, five"}  # of equals the first
    text = outcome.markdown(found)
    assert text.count("\n| ") == 2 + 6
    assert "target: all have the same score, so it tells nothing here" in text


# ----------------------------------------------------------------------------- with real processes


def begun(six: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    """`cdlm study`, on its way, in a process group of its own."""
    return subprocess.Popen(
        [*CDLM, "study", str(six), "--runs", str(folder / "runs"), "--jobs", "2", *words],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    return said


def wait_until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not there():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "not there after five minutes"
        time.sleep(0.005)


def without_time(table: Path) -> bytes:
    """A table's bytes, less all that is measured in seconds."""
    found = json.loads(table.read_text())
    for row in found["rows"]:
        del row["time"]
    return json.dumps(found).encode()


def finished(folder: Path) -> dict[str, int]:
    """When each finished run's summary was written, by its folder's name."""
    summaries = (path / SUMMARY for path in runs(folder / "runs"))
    return {it.parent.name: it.stat().st_mtime_ns for it in summaries if it.exists()}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, six: Path) -> Path:
    """The folder in which the study of six points ran to its end. Not to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended(begun(six, folder))
    return folder


def test_a_study_killed_in_the_middle_ends_with_the_same_table(
    six: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """First with all that it started, at a half-trained point; then alone, its points going on."""
    process = begun(six, tmp_path)
    wait_until(lambda: any(RunDir(it).last_step for it in runs(tmp_path / "runs")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert finished(tmp_path) == {}
    process = begun(six, tmp_path)
    wait_until(lambda: len(finished(tmp_path)) > 1, process)
    process.kill()
    process.wait()
    before = finished(tmp_path)
    ended(begun(six, tmp_path))
    after = finished(tmp_path)
    assert len(after) == 6
    assert {name: after[name] for name in before} == before, "a finished point has run again"
    folders = [next(it.glob("runs/*/table.json")) for it in (tmp_path, undisturbed)]
    assert without_time(folders[0]) == without_time(folders[1])
    for name in after:
        one, two = (place.parent / name / SAMPLES for place in folders)
        assert one.read_bytes() == two.read_bytes()


def test_a_point_with_anothers_weights_is_as_if_trained_by_itself(
    six: Path, undisturbed: Path, cdlm: Command, tmp_path: Path
) -> None:
    point = next(it for it in study.load(six).points if it.label == "x0, five")
    shared = find(undisturbed / "runs", point.seeded(3).hash)
    assert shared is not None
    log = (shared.parent / "logs" / f"{shared.name}.txt").read_text()
    assert "trained already: " in log
    (tmp_path / "alone.toml").write_text(point.seeded(3).toml())
    assert cdlm("run", tmp_path / "alone.toml", "--runs", tmp_path, "--threads", 1).code == 0
    alone = find(tmp_path, point.seeded(3).hash)
    assert alone is not None
    for name in (SAMPLES, "metrics.jsonl", "tokenizer.json", "draws.safetensors"):
        assert (alone / name).read_bytes() == (shared / name).read_bytes(), name
    assert RunDir(alone).summary()["scores"] == RunDir(shared).summary()["scores"]


def test_a_study_that_is_done_only_prints_its_table(
    six: Path, undisturbed: Path, cdlm: Command
) -> None:
    before = finished(undisturbed)
    said = cdlm("study", six, "--runs", undisturbed / "runs")
    assert said.code == 0
    assert "x0, two" in said.out
    assert "table.md" in said.out
    assert finished(undisturbed) == before


def test_a_dry_run_says_what_is_to_do_and_how_long(
    six: Path, undisturbed: Path, cdlm: Command
) -> None:
    before = sorted(undisturbed.rglob("*"))
    said = cdlm(
        "study", six, "--dry-run", "--runs", undisturbed / "runs", "--set", "study.seeds=[3,4]"
    )
    assert said.code == 0
    assert "6 points, 2 seeds, 12 runs" in said.out
    assert "1 of 2" in said.out
    assert "captions only: trained as x0, two is" in said.out
    assert "estimate: about " in said.out
    assert sorted(undisturbed.rglob("*")) == before


def test_a_dry_run_that_knows_no_pace_times_some_steps(
    six: Path, cdlm: Command, tmp_path: Path
) -> None:
    said = cdlm("study", six, "--dry-run", "--runs", tmp_path / "none")
    assert "estimate: about " in said.out
    assert not (tmp_path / "none").exists()


def test_what_is_only_timed_reaches_no_plugin_and_warns_once(
    tiny_recipe: Path, cdlm: Command, tmp_path: Path
) -> None:
    sizes = tmp_path / "sizes.toml"
    sizes.write_text(
        f'extends = "{tiny_recipe}"\nmodel.length = 4\n[study]\nseeds = [0]\n'
        "[axis.size]\nsmall = { model.hidden = 16 }\nlarge = { model.hidden = 32 }\n"
    )
    heard = list[Path]()

    class Spy:
        @plugins.hookimpl
        def cdlm_event(self, run_dir: Path) -> None:
            heard.append(run_dir)

    hooks = pluggy.PluginManager(plugins.GROUP)
    hooks.add_hookspecs(plugins.Hooks)
    hooks.register(Spy())
    spy = plugins.Plugin("spy", "spy", "1", hooks)
    plugins.load().loaded.append(spy)
    try:
        said = cdlm("study", sizes, "--dry-run", "--runs", tmp_path / "none")
    finally:
        plugins.load().loaded.remove(spy)
    assert "estimate: about " in said.out
    assert said.err.count("training captions are cut") == 1
    assert heard == []


def test_a_point_that_cannot_be_built_is_shown_with_its_last_lines(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    """Heads that don't divide the width are found when the network is built."""
    (tmp_path / "heads.toml").write_text(
        f'extends = "{tiny_recipe}"\nstudy.seeds = [0]\ntrain.steps = 4\n'
        "[axis.heads]\ntwo = {}\nthree = { denoiser.heads = 3 }\nfour = { denoiser.heads = 4 }\n"
    )
    process = begun(tmp_path / "heads.toml", tmp_path)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 1, said
    place, _, last = said.partition("failed: three, seed 0 (")
    assert place
    assert "3 heads can't share model.hidden = 16" in last
    assert len(finished(tmp_path)) == 2


def test_a_study_that_is_asked_to_stop_lets_its_points_save(six: Path, tmp_path: Path) -> None:
    process = begun(six, tmp_path, "--set", "train.steps=5000")
    wait_until(lambda: any(RunDir(it).last_step for it in runs(tmp_path / "runs")), process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 143
    assert "stopped; all is saved\n    go on with the same command" in said
    logs = [it.read_text() for it in tmp_path.glob("runs/*/logs/*.txt")]
    assert any("stopped by SIGTERM at step" in text for text in logs)
