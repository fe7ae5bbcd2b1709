"""Points of a study as tasks of a Ray cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from cdlm.errors import CdlmError
from cdlm.protocols import Running
from cdlm.values import Above0, NonNegative

SENT = (
    "CDLM_CACHE",
    "XDG_CACHE_HOME",
    "PYTHONPATH",
    "OMP_NUM_THREADS",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)
"""What a point needs of its starter's environment. The rest is the worker's: Ray sets the GPUs."""

LOOK_S = 0.2  # between two looks at a process


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Each point as a task on a Ray cluster, whose machines share the file system.

    The cluster is the one at `address`; where none is given, one that runs on this machine, or
    one that is begun for this study. Ray decides where a task runs, and waits for what it asks for.
    Raises CdlmError where there is no cluster at that address.
    """

    address: str = ""  # such as "10.0.0.1:6379" or "ray://head:10001"
    cpus: Above0 = 1.0  # of each point
    gpus: NonNegative = 0.0  # of each point; 0.5 lets two share one

    def start(self, command: Sequence[str], log: Path) -> Running:
        self._connect()
        task = ray.remote(_run).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0, name=f"cdlm {log.stem}"
        )
        sent = {name: os.environ[name] for name in SENT if name in os.environ}
        return _Task(task.remote(list(command), str(log.absolute()), os.getcwd(), sent))

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
        try:
            if self.address:
                ray.init(address=self.address, log_to_driver=False)
            else:
                _join_or_begin(quiet)
        except (ConnectionError, ValueError, RayError, OSError) as error:
            said = str(error).partition("\n")[0]
            where = self.address or "this machine"
            raise CdlmError(
                f"launcher ray: no cluster at {where}: {said}\n"
                "    start one with `ray start --head`, or leave the address out"
            ) from error


def _join_or_begin(quiet: dict[str, Any]) -> None:
    try:
        ray.init(address="auto", log_to_driver=False)
    except ConnectionError:
        ray.init(**quiet)


def _run(command: list[str], log: str, folder: str, sent: dict[str, str]) -> int:
    """The task: a process, and its exit code. Where the task is cancelled, it is asked to end.

    Ray cancels by SIGINT, which a cluster that was begun by a script's `&` ignores otherwise.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "ab") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **sent},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        while (code := process.poll()) is None:  # Ray can't interrupt a process.wait()
            time.sleep(LOOK_S)
        return code
    except BaseException:
        process.terminate()
        process.wait()
        raise


@dataclass(frozen=True)
class _Task:
    """A task on the cluster."""

    result: Any  # ray's reference to the exit code

    def code(self) -> int | None:
        done, _ = ray.wait([self.result], timeout=0)
        if not done:
            return None
        try:
            return int(ray.get(self.result))
        except (RayError, KeyboardInterrupt):  # cancelled, or its machine is gone
            return 1

    def stop(self) -> None:
        ray.cancel(self.result, force=False)
