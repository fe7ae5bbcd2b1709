"""Java programs that pycocoevalcap ships: started, asked, and ended whatever happens.

A program that hangs is killed after its seconds, and none outlives this process: those that are
kept running end when their input does, so even a kill of ours ends them.
"""

from __future__ import annotations

import atexit
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Timer

JAVA = ("java", "-XX:+UseSerialGC", "-Dfile.encoding=UTF-8")


class JavaFailed(Exception):
    """A Java program that did not start, did not answer in time, or broke off. Says which."""


def shipped(below: str) -> Path:
    """The path of a file in pycocoevalcap's folder; it need not be there."""
    spec = find_spec("pycocoevalcap")
    assert spec and spec.submodule_search_locations  # it is one of our dependencies
    return Path(next(iter(spec.submodule_search_locations)), below)


def lacking(*files: Path) -> str:
    """What is not here of Java and these files, in a few words; "" where nothing is missing."""
    if shutil.which("java") is None:
        return "Java is not installed"
    return next((f"{file.name} is not in {file.parent}" for file in files if not file.exists()), "")


def output(arguments: Sequence[str], given: bytes, seconds: float) -> bytes:
    """What a program prints when it is given these bytes. Raises JavaFailed."""
    try:
        done = subprocess.run(
            [*JAVA, *arguments], input=given, capture_output=True, timeout=seconds, check=True
        )
    except subprocess.TimeoutExpired:
        raise JavaFailed(f"no answer within {seconds:.0f} s") from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise JavaFailed(_why(error)) from error
    return done.stdout


def _why(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    said = error.stderr.decode(errors="replace").strip().splitlines()
    return f"exit code {error.returncode}: {said[-1][:200] if said else 'it said nothing'}"


class Companion:
    """A program that answers each line with a line, for as long as this process lives."""

    def __init__(self, arguments: Sequence[str]):
        try:
            self._process = subprocess.Popen(
                [*JAVA, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a pipe that nobody reads fills up, and then it hangs
            )
        except OSError as error:
            raise JavaFailed(_why(error)) from error
        atexit.register(self.end)

    def ask(self, line: str, seconds: float) -> str:
        """The answer to a line. Raises JavaFailed, and then the program has ended."""
        assert self._process.stdin and self._process.stdout and "\n" not in line
        alarm = Timer(seconds, self._process.kill)  # so that a read never waits for ever
        alarm.start()
        try:
            self._process.stdin.write(line.encode("utf-8", "ignore") + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except (OSError, ValueError):  # it has ended before
            answer = b""
        finally:
            alarm.cancel()
        if not answer.endswith(b"\n"):
            self.end()
            raise JavaFailed(f"it broke off, or gave no answer within {seconds:.0f} s")
        return answer.decode("utf-8", "replace").strip()

    def end(self) -> None:
        """End the program, and wait until it is gone."""
        atexit.unregister(self.end)
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()


@cache
def companion(*arguments: str) -> Companion:
    """The program with these arguments, started at the first call."""
    return Companion(arguments)
