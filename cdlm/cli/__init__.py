"""The command line: `cdlm run recipes/extra_token.toml`, and the verbs around it.

Nothing here imports torch until a verb needs it, so that help, list, show and check answer at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Annotated

import typer

from cdlm import blame, plugins
from cdlm.cli import captions, components, looks, studies, training
from cdlm.cli.common import app, note
from cdlm.errors import CdlmError, Interrupted

BY_SIGINT = 128 + signal.SIGINT  # typer's exit code of a KeyboardInterrupt
HELP = [it.__name__ for it in (training, studies, looks, captions, components)]
app.registered_commands.sort(key=lambda it: HELP.index(getattr(it.callback, "__module__", "")))


def _version(wanted: bool) -> None:
    if wanted:
        from cdlm import __version__

        print(f"cdlm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show and exit.")
    ] = False,
) -> None:
    """Caption images with diffusion language models."""


class _Notes(logging.Handler):
    """Log records as notes, on whatever standard error is now: progress bars change it."""

    def emit(self, record: logging.LogRecord) -> None:
        note(f"{record.levelname.lower()}: {self.format(record)}")


def main() -> None:
    """The `cdlm` command: exit code 2 and a message for what a person can mend."""
    logging.getLogger().addHandler(_Notes(logging.WARNING))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself
    for stream in (sys.stdout, sys.stderr):  # a file's name, or a caption, may have no bytes there
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    plugins.load().add_commands(app)
    try:
        app()
    except SystemExit as end:
        if end.code == BY_SIGINT:
            note("stopped by SIGINT")
        raise
    except CdlmError as error:
        _fail(str(error), error)
    except Interrupted as error:
        note(f"{error}\n    go on with --resume")
        sys.exit(error.code)
    except Exception as error:
        known = _known(error)
        if known is None:
            _name_suspects(error)
            raise
        _fail(known, error)
    finally:
        _flush()


def _fail(text: str, error: Exception) -> None:
    if os.environ.get("CDLM_TRACEBACK"):
        raise error
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    note(f"{red}error:{plain} {text}")
    sys.exit(2)


def _flush() -> None:
    """Print what is left, unless the reader has gone, as `head` does."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _known(error: Exception) -> str | None:
    """What to tell people of an error that is not ours but whose cause is known."""
    from cdlm.doctor import explain_import_error

    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return (
            f"the memory is too small: {str(error).partition(' Error code')[0]}\n"
            "    try half the batch and twice the accumulation (--set train.batch=N "
            "--set train.accumulate=M), or a smaller [model]"
        )
    if raised := blame.blamed(error, plugins.load().registry.entries()):
        return str(raised)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return explain_import_error(error)


def _name_suspects(error: Exception) -> None:
    """Beside an error in our own code: components of plugins may have given what it fell over."""
    if found := blame.suspects(plugins.load().registry.entries()):
        names = ", ".join(f'{it.kind} "{it.name}" of {it.owner}' for it in found)
        error.add_note(f"loaded from plugins: {names}; run their conformance tests first")
