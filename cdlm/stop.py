"""Signals that ask a process to end, noted and answered when it suits."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stop:
    """Whether the process was asked to end, and by which signal."""

    number: int = 0

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """SIGINT and SIGTERM only set a flag, which is read between steps."""

        def note(number: int, frame: object) -> None:
            self.number = number

        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
