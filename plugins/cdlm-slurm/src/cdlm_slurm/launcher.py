"""Points of a study as jobs of a Slurm cluster, by submitit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import submitit

from cdlm.errors import CdlmError
from cdlm.protocols import Running
from cdlm.values import Above0, Count, Positive


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Each point as a job of a Slurm cluster, whose machines share the file system.

    A job that reaches its time limit is told so by SIGTERM, saves what it has, and counts as
    failed: the same command goes on with it. submitit's own files lie beside the log, in `slurm/`.
    Raises CdlmError where jobs can't be handed in.
    """

    partition: str = ""  # the cluster's default, unless given
    account: str = ""  # that pays; the user's default, unless given
    minutes: Positive = 240  # after which a job is ended
    cpus: Positive = 2  # of each job
    gpus: Count = 0  # of each job
    memory: Above0 = 8.0  # GB of each job
    cluster: Literal["slurm", "local"] = "slurm"  # local: submitit's own, to try it without Slurm

    def start(self, command: Sequence[str], log: Path) -> Running:
        try:
            executor = submitit.AutoExecutor(log.absolute().parent / "slurm", cluster=self.cluster)
            executor.update_parameters(**self._asked(log.stem))
            return _Job(executor.submit(_run, list(command), str(log.absolute()), os.getcwd()))
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            said = str(error).strip().partition("\n")[0]
            raise CdlmError(f"launcher slurm: the job can't be handed in: {said}") from error

    def _asked(self, name: str) -> dict[str, Any]:
        """What a job asks the cluster for, in submitit's words."""
        only_slurm = {"slurm_partition": self.partition, "slurm_account": self.account}
        return {
            "name": f"cdlm-{name}",
            "timeout_min": self.minutes,
            "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus,
            "mem_gb": self.memory,
            **{key: value for key, value in only_slurm.items() if value},
        }


def _run(command: list[str], log: str, folder: str) -> int:
    """The job: a process, and its exit code. Where the job is interrupted, it is asked to end."""
    with open(log, "ab") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


@dataclass(frozen=True)
class _Job:
    """A job that was handed in."""

    job: submitit.Job[int]

    def code(self) -> int | None:
        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError):
            return 1  # cancelled, out of time, or its machine is gone

    def stop(self) -> None:
        if not self.job.done():
            self.job.cancel(check=False)
