"""A report that one would put in a paper: runs, or a study, on one page, in one file.

    report.html     everything, with nothing from the network
    report.md       the table of scores
    report.tex      the same for LaTeX

What costs sampling is kept in the runs' folders (`cdlm.report.kept`), so that a second report
takes seconds.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdlm import rundir
from cdlm.errors import CdlmError, RunError
from cdlm.outcome import TABLE, Record
from cdlm.progress import Tell, silent
from cdlm.report import page, tables
from cdlm.report.facts import gather, labels
from cdlm.report.kept import Kept
from cdlm.report.page import Story
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
    """Write a report of these runs, or of one study, in each of the formats (see FORMATS).

    fresh: measure all anew.   sampling: False for what can be said without the network.
    Raises CdlmError where a path is neither, OSError where the folder can't be written to.
    """

    def keeper(run: RunDir) -> Kept:
        return Kept(run, device, fresh, sampling, tell)

    story = _of_study(paths[0], keeper) if _is_study(paths) else _of_runs(paths, keeper)
    makers: dict[str, Callable[[], str]] = {
        "html": lambda: page.page(story),
        "md": lambda: tables.markdown(story.table),
        "latex": lambda: tables.latex(story.table),
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in formats:
        written.append(folder / FORMATS[name])
        rundir.write_text(written[-1], makers[name]())
    return Written(files=written, missing=story.missing)


def _is_study(paths: Sequence[Path]) -> bool:
    """Whether the only path is a study's folder. Raises CdlmError where it is one of several."""
    studies = [path for path in paths if (path / TABLE).is_file()]
    if studies and len(paths) > 1:
        raise CdlmError(f"{studies[0]}: a study has a report of its own; give it alone")
    return bool(studies)


def _of_runs(paths: Sequence[Path], keeper: Callable[[RunDir], Kept]) -> Story:
    """Runs side by side, the first being the one that the others are compared with."""
    found = [RunDir.open(path) for path in paths]
    named = zip(found, labels(found), strict=True)
    runs = [gather(run, label, keeper(run)) for run, label in named]
    single = len(runs) == 1
    return Story(
        title=runs[0].recipe.name if single else f"{len(runs)} runs side by side",
        about=runs[0].recipe.about if single else ", ".join(it.label for it in runs),
        command=_command(paths),
        runs=runs,
        table=tables.of_runs(runs),
    )


def _of_study(path: Path, keeper: Callable[[RunDir], Kept]) -> Story:
    """A study's table, and of each point the first run that has finished."""
    found = _read(path / TABLE)
    runs, failed = [], []
    for row in found["rows"]:
        done = [it["run"] for it in row["runs"] if "run" in it]
        if done:
            run = RunDir.open(path.resolve().parent / done[0])
            runs.append(gather(run, row["label"], keeper(run), frontier=False))
        failed += [
            (row["label"], f"the run with seed {it['seed']}", it["failed"])
            for it in row["runs"]
            if "failed" in it
        ]
    return Story(
        title=found["study"],
        about=found["about"],
        command=_command([path]),
        runs=runs,
        table=tables.of_study(found),
        study=found,
        failed=failed,
    )


def _read(place: Path) -> Record:
    try:
        found: Record = json.loads(place.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{place}: can't be read: {error}\n    run the study again") from error
    return found


def _command(paths: Sequence[Path]) -> str:
    return f"cdlm report {' '.join(shlex.quote(str(path)) for path in paths)}"
