"""Running a study: a process for each point and seed, so many at a time, whatever becomes of them.

    runs/<study>/
        study.json        the plan: axes, design, seeds, and each point's recipe and hash
        points/           each run's recipe, resolved: <options>-s<seed>-<hash8>.toml
        logs/             what each run's process printed: <options>-s<seed>-<hash8>.txt
        table.json        what came out, see `cdlm.outcome`
        table.md          the same for people
        <options>-s<seed>-<hash8>/     the runs that this study began, as `cdlm run` leaves them

A run is known by its recipe's hash: one that is anywhere below `runs/` is used, finished or not,
and of equal recipes one is run. Recipes that differ only in what training never looks at share
their weights: one is trained, and the others begin when it has ended.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from cdlm import plugins, rundir
from cdlm.errors import CdlmError, RunError
from cdlm.protocols import Launcher, Running
from cdlm.recipe import Choice, Recipe
from cdlm.rundir import METRICS, RunDir
from cdlm.study import Point, Study

EVERY_S = 0.2  # between two looks at what runs
LAST_LINES = 3  # of a failed run's log that are shown
TAIL_BYTES = 4096  # of a file, where its end is looked for
PLAN = "study.json"

State = Literal["waiting", "running", "finished", "failed"]


@dataclass
class Trial:
    """One run that a study needs; several points need it where their recipes are equal."""

    recipe: Recipe  # with its name and options, by which its folder is called
    labels: list[str]
    state: State = "waiting"
    running: Running | None = None
    run: Path | None = None  # its folder, once it is there
    failure: str = ""  # the last lines that it printed

    @property
    def file(self) -> str:
        """The name of its recipe and its log, less their endings."""
        return rundir.run_path(
            Path(), "", self.recipe.sets, self.recipe.seed, self.recipe.hash
        ).name

    def step(self) -> int:
        """How far its training is, by what it has logged; 0 at first."""
        try:
            whole = _tail(self.run / METRICS).split(b"\n")[:-1] if self.run else []
            return int(json.loads(whole[-1])["step"])
        except (OSError, ValueError, LookupError, TypeError):
            return 0

    def summary(self) -> dict[str, Any]:
        """What its finished run says."""
        assert self.run is not None, "the run has not finished"
        return RunDir(self.run).summary()


@dataclass
class Work:
    """A study on its way."""

    study: Study
    root: Path  # the folder of all runs
    trials: dict[str, Trial]  # by their recipe's hash, in the study's order
    trained: set[str] = field(default_factory=set)  # training hashes of which weights are there

    @classmethod
    def of(cls, study: Study, root: Path) -> Work:
        """The study with all that is there of it already."""
        trials: dict[str, Trial] = {}
        for seed in study.seeds:
            for point in study.points:
                recipe = named(study, point, seed)
                trial = trials.setdefault(recipe.hash, Trial(recipe, []))
                trial.labels.append(point.label)
        work = cls(study, root, trials)
        work.look()
        return work

    @property
    def folder(self) -> Path:
        """The study's own."""
        return self.root / (rundir.slug(self.study.name) or "study")

    def trial(self, point: Point, seed: int) -> Trial:
        """The run of a point with a seed."""
        return self.trials[point.seeded(seed).hash]

    def look(self, at: Sequence[Trial] | None = None) -> None:
        """Note which of these runs, or of all, are there, and how far they have got."""
        there = rundir.runs(self.root)
        for trial in self.trials.values() if at is None else at:
            trial.run = rundir.find(self.root, trial.recipe.hash, there)
            if trial.run is None:
                continue
            run = RunDir(trial.run)
            if run.finished and trial.state != "running":
                trial.state = "finished"
            if run.last_step == trial.recipe.train.steps:
                self.trained.add(trial.recipe.training_hash)

    def plan(self) -> None:
        """Write study.json and the points' recipes. Raises RunError."""
        try:
            for name in ("points", "logs"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            for trial in self.trials.values():
                place = self.folder / "points" / f"{trial.file}.toml"
                rundir.write_text(place, trial.recipe.toml())
            rundir.write_json(self.folder / PLAN, _planned(self))
        except OSError as error:
            place = Path(error.filename or self.folder)
            raise RunError(f"{place}: can't write the study there: {error.strerror}") from error


def named(study: Study, point: Point, seed: int) -> Recipe:
    """A point's recipe, called as its run's folder will be: by what differs from the baseline."""
    differs = [f"{k}={it}" for k, it in point.options.items() if it != study.baseline[k]]
    return replace(point.seeded(seed), name=study.name, sets=differs or ["baseline"])


def _planned(work: Work) -> dict[str, Any]:
    study = work.study
    return {
        "study": study.name,
        "about": study.about,
        "design": study.design,
        "seeds": study.seeds,
        "baseline": study.baseline,
        "axes": study.axes,
        "points": [
            {
                "label": point.label,
                "options": point.options,
                "recipes": [
                    {
                        "seed": seed,
                        "hash": work.trial(point, seed).recipe.hash,
                        "recipe": f"points/{work.trial(point, seed).file}.toml",
                    }
                    for seed in study.seeds
                ],
            }
            for point in study.points
        ],
    }


def launcher_of(choice: Choice) -> Launcher:
    """The study's launcher, built. Raises CdlmError."""
    component = plugins.load().registry.get("launcher", choice.use).load()
    try:
        built: Launcher = component(**choice.parameters)
    except ValueError as error:
        raise CdlmError(f'launcher "{choice.use}": {error}') from error
    return built


# --------------------------------------------------------------------------------------- running


@dataclass(frozen=True, kw_only=True)
class How:
    """How a study's runs are started."""

    launcher: Launcher
    jobs: int  # at a time
    device: str = "auto"
    threads: int = 1  # of each


def conduct(work: Work, how: How) -> Generator[list[Trial], None, None]:
    """Run all that has not finished; yields the runs that have just begun, ended or failed.

    Yields [] when nothing has changed for a moment. Where the iteration is closed early, what
    runs is asked to stop, and waited for. Raises CdlmError where nothing can be started.
    """
    try:
        while True:
            changed = [trial for trial in work.trials.values() if _ended(work, trial)]
            changed += _begin(work, how)
            yield changed
            if not any(trial.state in ("running", "waiting") for trial in work.trials.values()):
                return
            if not changed:
                time.sleep(EVERY_S)
                work.look([trial for trial in work.trials.values() if trial.running])
    finally:
        _stop(work)


def _begin(work: Work, how: How) -> list[Trial]:
    """Start as many runs as may begin now."""
    busy = [trial for trial in work.trials.values() if trial.state == "running"]
    training = {trial.recipe.training_hash for trial in busy} - work.trained
    begun: list[Trial] = []
    for trial in work.trials.values():
        if len(busy) + len(begun) >= how.jobs:
            break
        alike = trial.recipe.training_hash
        if trial.state == "waiting" and alike not in training:
            log = work.folder / "logs" / f"{trial.file}.txt"
            log.unlink(missing_ok=True)  # of an earlier try
            trial.running = how.launcher.start(_command(work, trial, how), log)
            trial.state = "running"
            training |= {alike} - work.trained
            begun.append(trial)
    return begun


def _command(work: Work, trial: Trial, how: How) -> list[str]:
    options = [word for it in trial.recipe.sets for word in ("--option", it)]
    return [
        *(sys.executable, "-m", "cdlm", "point"),
        str((work.folder / "points" / f"{trial.file}.toml").absolute()),
        *("--runs", str(work.root.absolute()), "--name", work.study.name, *options),
        *("--device", how.device, "--threads", str(how.threads)),
    ]


def _ended(work: Work, trial: Trial) -> bool:
    """Whether a run that was on its way is not any more; notes what has become of it."""
    code = trial.running.code() if trial.running else None
    if code is None:
        return False
    trial.running = None
    trial.run = rundir.find(work.root, trial.recipe.hash)
    finished = code == 0 and trial.run is not None and RunDir(trial.run).finished
    trial.state = "finished" if finished else "failed"
    if finished:
        work.trained.add(trial.recipe.training_hash)
    else:
        said = _last_lines(work.folder / "logs" / f"{trial.file}.txt")
        trial.failure = said or f"it ended with exit code {code} and said nothing"
    return True


def _last_lines(log: Path) -> str:
    with suppress(OSError):
        lines = _tail(log).decode(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-LAST_LINES:])
    return ""


def _tail(path: Path) -> bytes:
    """The end of a file. Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
        return file.read()


def _stop(work: Work) -> None:
    """Ask all that runs to end, and wait until it has."""
    busy = [trial.running for trial in work.trials.values() if trial.running]
    for running in busy:
        running.stop()
    while any(running.code() is None for running in busy):
        time.sleep(EVERY_S)


Show = Callable[[Work, Sequence[Trial]], None]
"""Told of the work, and of the runs that have just begun, ended or failed."""


def run(work: Work, how: How, show: Show, asked_to_stop: Callable[[], bool]) -> bool:
    """Conduct the study to its end; whether it got there before it was asked to stop."""
    changes = conduct(work, how)
    try:
        for changed in changes:
            show(work, changed)
            if asked_to_stop():
                return False
    finally:
        changes.close()
    return True
