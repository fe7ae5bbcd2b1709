"""What costs sampling or scoring: computed once, kept in the run's folder, and used again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, TypeVar

from cdlm import compare, frontier, probe, rundir
from cdlm.compare import Draws
from cdlm.errors import RunError
from cdlm.evaluate import RESAMPLES, draws, evaluate
from cdlm.frontier import Frontier
from cdlm.job import Job, choose_device
from cdlm.probe import Probe
from cdlm.progress import Tell, silent
from cdlm.protocols import Metric
from cdlm.records import Answers
from cdlm.report import trace
from cdlm.report.trace import Traces
from cdlm.rundir import RunDir

POINTS, CAPTIONS = 20, 200  # of the restoration curve, as `cdlm probe` has them
STEPS, IMAGES = (5, 10, 20, 50), 200  # of the frontier, as `cdlm frontier` has them
TRACED = 3  # captions
FRONTIER = "frontier/frontier.json"

Found = TypeVar("Found", Probe, Frontier, Traces)
log = logging.getLogger(__name__)


class Kept:
    """A run's measurements: read where they are of its newest weights, else made and written.

    `fresh` makes all of them anew; without `sampling` those that need the network are only read.
    """

    def __init__(
        self, run: RunDir, device: str, fresh: bool, sampling: bool, tell: Tell = silent
    ) -> None:
        self.run = run
        self.device = device
        self.fresh = fresh
        self.sampling = sampling
        self.tell = tell

    @cached_property
    def job(self) -> Job:
        """The run's job, to sample with. Raises CdlmError."""
        if not self.sampling:
            raise RunError("it has not been measured yet, and --no-sampling was given")
        return Job.open(self.run, choose_device(self.device))

    def probe(self) -> Probe:
        """The restoration curves. Raises CdlmError."""
        return self._found(
            "probe/probe.json",
            probe.read,
            lambda: probe.probe(self.job, POINTS, CAPTIONS, self.tell),
            lambda found: probe.write(found, self.run.path / "probe", self.job.recipe.name),
        )

    @property
    def has_frontier(self) -> bool:
        """Whether every sampler has been tried, with whatever weights."""
        return (self.run.path / FRONTIER).is_file()

    def frontier(self) -> Frontier:
        """Every sampler, on the split val. Raises CdlmError."""

        def measured() -> Frontier:
            job = Job.open(self.run, self.job.device, ["evaluate.split=val"])
            return frontier.measure(job, frontier.samplers(job), STEPS, IMAGES, self.tell)

        return self._found(
            FRONTIER,
            frontier.read,
            measured,
            lambda found: frontier.write(found, self.run.path / "frontier", self.job.recipe.name),
        )

    def traces(self) -> Traces:
        """How some captions come about. Raises CdlmError."""
        return self._found(
            "report/trace.json",
            trace.read,
            lambda: trace.follow(self.job, TRACED, self.tell),
            lambda found: self._write("report/trace.json", found),
        )

    def draws(self, metrics: Sequence[Metric], answers: Answers) -> Draws:
        """The scores of these captions on resampled images, as the run or this keeps them.

        Raises CdlmError.
        """
        place = self.run.path / rundir.DRAWS
        if self.fresh or not place.is_file():
            try:
                found = evaluate(metrics, answers, RESAMPLES)
                compare.write_draws(place, draws(found), answers.image_ids)
            except OSError as error:
                raise RunError(f"{place}: can't be kept: {error.strerror}") from error
        return compare.read_draws(place)

    def _of_newest(self, found: Probe | Frontier | Traces) -> bool:
        """Whether it was made with the newest weights; or where there are none, with the last."""
        last = self.run.last_step
        return last is None or found.step == last

    def _write(self, file: str, found: Any) -> None:
        rundir.write_json(self.run.path / file, asdict(found))

    def _found(
        self,
        file: str,
        read: Callable[[str], Found],
        make: Callable[[], Found],
        write: Callable[[Found], Any],
    ) -> Found:
        """What the file holds if it is of today, else what `make` makes, written for next time."""
        path = self.run.path / file
        if path.is_file() and not self.fresh:
            try:
                found = read(path.read_text(encoding="utf-8"))
                if self._of_newest(found):
                    return found
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s: can't be used, and is made anew: %s", path, error)
        found = make()
        try:
            path.parent.mkdir(exist_ok=True)
            write(found)
        except OSError as error:  # a run that others may only read still has a report
            log.warning("%s: can't be kept for next time: %s", path, error.strerror)
        return found
