"""What the commands share: options, and how they speak."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdlm import plugins
from cdlm.errors import CdlmError

if TYPE_CHECKING:
    from rich.console import Console

    from cdlm.rundir import RunDir

log = logging.getLogger(__name__)
app = typer.Typer(
    name="cdlm",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value: --set train.steps=500."),
]
SamplingSets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Sample otherwise: --set rounding.below=0.5."),
]
Runs = Annotated[Path, typer.Option(metavar="DIR", help="The folder of all runs.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where this recipe's run stopped.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")]
Threads = Annotated[
    int, typer.Option(metavar="N", min=0, max=512, help="CPU threads; 0: torch's choice.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]


def note(text: str) -> None:
    """A line beside the output proper."""
    print(text, file=sys.stderr, flush=True)


def console(columns: int = 120) -> Console:
    """Where tables are printed: as wide as the terminal, or so many columns in a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else columns)


def use_threads(threads: int) -> None:
    """So many CPU threads; 0: as many as torch chooses."""
    import torch

    if threads:
        torch.set_num_threads(threads)


@contextmanager
def working(folder: RunDir) -> Iterator[None]:
    """A run's folder goes again where nothing comes of it; what is warned of stands in its log."""
    from cdlm.run import gone_unless_started

    with gone_unless_started(folder), logged(folder):
        for failure in plugins.load().failures:
            log.warning("%s; see cdlm plugins --verbose", failure)
        yield


@contextmanager
def logged(folder: RunDir) -> Iterator[None]:
    """Warnings go into the run's log.txt too."""
    handler = logging.FileHandler(folder.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def must_be_a_place(out: Path | None) -> None:
    """Raises CdlmError where no file can be written: before anything slow."""
    if out and (out.is_dir() or not out.parent.is_dir()):
        what = "it is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise CdlmError(f"--out {out}: can't write there: {what}")


def write(out: Path | None, value: object) -> None:
    """A file of JSON, where one was asked for."""
    from cdlm.rundir import write_json

    if out:
        write_json(out, value)
