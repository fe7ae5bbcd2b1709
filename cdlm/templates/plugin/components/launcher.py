"""Points of a study that give way to other work."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdlm.errors import CdlmError
from cdlm.protocols import Running
from cdlm.values import Count


@dataclass(frozen=True, kw_only=True)
class Component:
    """Processes on this machine that get the processor when others leave it idle.

    Each point is started by `nice -n by`.   Units: by, 0 like any other to 19, the last in turn.
    """

    by: Count = 10

    def start(self, command: Sequence[str], log: Path) -> Running:
        """The command, its output behind what stands in the log."""
        try:
            with log.open("ab") as out:
                process = subprocess.Popen(
                    ["nice", "-n", str(self.by), *command],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                )  # fmt: skip
        except OSError as error:
            raise CdlmError(f"{command[0]}: can't be started: {error.strerror}") from error
        return Started(process)


@dataclass(frozen=True)
class Started:
    """A process of this machine; `nice` has become the command that it starts."""

    process: subprocess.Popen[bytes]

    def code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """SIGTERM, with which a run saves what it has."""
        self.process.terminate()
