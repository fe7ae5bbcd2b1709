"""kind `launcher`: where the points of a study run. Plugins bring others, for clusters."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdlm.errors import CdlmError
from cdlm.protocols import Running


@dataclass(frozen=True)
class _Process:
    """A process of this machine."""

    process: subprocess.Popen[bytes]

    def code(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.terminate()


@dataclass(frozen=True, kw_only=True)
class Local:
    """Processes on this machine, with this one's environment.

    A process outlives its starter where that is killed: a training then ends, and is found.
    """

    def start(self, command: Sequence[str], log: Path) -> Running:
        try:
            with log.open("ab") as out:
                return _Process(
                    subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
                    )
                )
        except OSError as error:
            raise CdlmError(f"{command[0]}: can't be started: {error.strerror}") from error
