"""Laws of what studies use: launcher."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdlm.protocols import Launcher, Running

PATIENCE_S = 120.0  # a cluster takes its time to start a process
SOON_S = 5.0  # and a network file system to show a file


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cdlm-launcher-") as folder:
        yield Path(folder)


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def _code(running: Running) -> int:
    """The exit code, once there is one."""
    deadline = time.monotonic() + PATIENCE_S
    while (code := running.code()) is None:
        assert time.monotonic() < deadline, f"still running after {PATIENCE_S:.0f} s"
        time.sleep(0.05)
    return code


def _wait_for(path: Path, patience: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name} after {patience:.0f} s"
        time.sleep(0.05)


def check_launcher_tells_the_exit_code(launcher: Launcher) -> None:
    """0 of a process that ends well, another number of one that does not; again and again."""
    with _folder() as folder:
        good = launcher.start(_python("pass"), folder / "good.txt")
        bad = launcher.start(_python("raise SystemExit(3)"), folder / "bad.txt")
        assert _code(good) == 0, "a process that ended well does not count as such"
        assert _code(bad) != 0, "a process that failed counts as ended well"
        assert good.code() == 0, "the exit code changes when it is asked for again"


def check_launcher_does_not_wait(launcher: Launcher) -> None:
    """The process runs beside its starter, which hears None until it has ended."""
    wait = "import pathlib, sys, time\n"
    wait += "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.05)"
    with _folder() as folder:
        running = launcher.start([*_python(wait), str(folder / "go")], folder / "log.txt")
        try:
            assert running.code() is None, "it has an exit code before it has ended"
            (folder / "go").touch()
            assert _code(running) == 0
        finally:
            running.stop()


def check_launcher_keeps_what_is_printed(launcher: Launcher) -> None:
    """Both streams, in the log, behind what stands there, when the process has ended."""
    say = "import sys; print('to one', flush=True); print('to the other', file=sys.stderr)"
    with _folder() as folder:
        log = folder / "log.txt"
        log.write_text("before\n")
        assert _code(launcher.start(_python(say), log)) == 0
        lines = log.read_text().splitlines()
        assert lines[:1] == ["before"], "what stood in the log is gone"
        assert {"to one", "to the other"} <= set(lines), f"the log says {lines}"


def check_launcher_starts_in_the_current_folder(launcher: Launcher) -> None:
    """The process has its starter's folder and arguments, spaces and all."""
    write = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.getcwd())"
    with _folder() as folder:
        place = folder / "a name with spaces"
        assert _code(launcher.start([*_python(write), str(place)], folder / "log.txt")) == 0
        assert Path(place.read_text()).samefile(Path.cwd()), "another folder"


def check_launcher_stops_gently(launcher: Launcher) -> None:
    """`stop` lets the process save what it has, by SIGTERM; after its end it does nothing."""
    save = f"""
import pathlib, signal, sys, time
def saved(number, frame):
    pathlib.Path(sys.argv[2]).touch()
    sys.exit(128 + number)
signal.signal({int(signal.SIGTERM)}, saved)
pathlib.Path(sys.argv[1]).touch()
time.sleep({PATIENCE_S})
"""
    with _folder() as folder:
        begun, ended = folder / "begun", folder / "ended"
        running = launcher.start([*_python(save), str(begun), str(ended)], folder / "log.txt")
        _wait_for(begun)
        running.stop()
        assert _code(running) != 0, "a process that was stopped counts as ended well"
        _wait_for(ended, SOON_S)
        running.stop()
