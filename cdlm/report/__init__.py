"""A report that one would put in a paper: runs beside one another, on one page, in one file.

    report.html     everything, with nothing from the network
    report.md       the table of scores
    report.tex      the same for LaTeX

What costs sampling is kept in the runs' folders (`cdlm.report.kept`), so that a second report
takes seconds.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdlm import rundir
from cdlm.progress import Tell, silent
from cdlm.report import page, tables
from cdlm.report.facts import Facts, gather, labels
from cdlm.report.kept import Kept
from cdlm.rundir import RunDir

FORMATS = {"html": "report.html", "md": "report.md", "latex": "report.tex"}


@dataclass(frozen=True, kw_only=True)
class Written:
    """The files of a report, and what of each run is not in it: (run, what, why)."""

    files: list[Path]
    missing: list[tuple[str, str, str]]


def report(
    paths: Sequence[Path],
    folder: Path,
    formats: Sequence[str] = ("html",),
    *,
    device: str = "auto",
    fresh: bool = False,
    sampling: bool = True,
    tell: Tell = silent,
) -> Written:
    """Write a report of these runs into a folder, in each of the formats (see FORMATS).

    fresh: measure all anew.   sampling: False for what can be said without the network.
    Raises CdlmError where a path is no run, OSError where the folder can't be written to.
    """
    found = [RunDir.open(path) for path in paths]
    runs = [
        gather(run, label, Kept(run, device, fresh, sampling, tell))
        for run, label in zip(found, labels(found), strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    table = tables.of_runs(runs)
    makers = {
        "html": lambda: page.page(runs, _title(runs), _command(paths)),
        "md": lambda: tables.markdown(table),
        "latex": lambda: tables.latex(table),
    }
    written = []
    for name in formats:
        written.append(folder / FORMATS[name])
        rundir.write_text(written[-1], makers[name]())
    missing = [(it.label, what, why) for it in runs for what, why in it.missing.items()]
    return Written(files=written, missing=missing)


def _title(runs: Sequence[Facts]) -> str:
    return runs[0].recipe.name if len(runs) == 1 else f"{len(runs)} runs side by side"


def _command(paths: Sequence[Path]) -> str:
    return f"cdlm report {' '.join(shlex.quote(str(path)) for path in paths)}"
