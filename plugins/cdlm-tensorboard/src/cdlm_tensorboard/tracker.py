"""Values of runs in TensorBoard's files, written at once and by this thread.

TensorBoard's own writer hands records to a thread, which tells of a full disk late or never. Here
every record is on its way to the disk when the call ends, and what goes wrong is raised.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import cdlm
from cdlm.records import Event

FOLDER = "tensorboard"  # in the run's
NO_VALUES = ("step", "checkpoint")  # events that mark a moment, and say no number


class Tracker:
    """Hears of every run, and writes each of its values as a scalar."""

    def __init__(self) -> None:
        self._files: dict[Path, Path] = {}  # of each run that was heard of
        self._lost: set[Path] = set()  # runs for which nothing can be written any more

    @cdlm.hookimpl
    def cdlm_event(self, event: Event, run_dir: Path) -> None:
        """Write a value. The first failure is raised, for cdlm to report; then the run is left."""
        if run_dir in self._lost or event.name in NO_VALUES:
            return
        try:
            self._write(event, run_dir)
        except Exception as error:
            self._lost.add(run_dir)
            raise cdlm.PluginError(
                f"TensorBoard hears no more of this run, which goes on: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _write(self, event: Event, run_dir: Path) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if run_dir not in self._files:
            self._files[run_dir] = _begun(run_dir / FOLDER, event.step)
        value = Summary.Value(tag=event.name, simple_value=float(event.value))
        _append(self._files[run_dir], step=event.step, summary=Summary(value=[value]))


def _begun(folder: Path, step: int) -> Path:
    """A new file of events in this folder, which takes the place of older ones from `step` on."""
    from tensorboard.compat.proto.event_pb2 import SessionLog

    folder.mkdir(exist_ok=True)
    path = folder / f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
    _append(path, file_version="brain.Event:2")
    _append(path, step=step, session_log=SessionLog(status=SessionLog.START))
    return path


def _append(path: Path, **fields: Any) -> None:
    """One more record behind the others. Raises OSError."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = event_pb2.Event(wall_time=time.time(), **fields)
    with path.open("ab") as file:
        RecordWriter(file).write(record.SerializeToString())
