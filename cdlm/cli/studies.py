"""Studies, and the points that their launchers start."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdlm.cli.common import (
    Device,
    RecipeFile,
    Runs,
    Sets,
    Threads,
    app,
    console,
    note,
    use_threads,
    working,
)
from cdlm.cli.training import carry_out
from cdlm.errors import CdlmError
from cdlm.places import RUNS

if TYPE_CHECKING:
    from cdlm.conduct import How, Work
    from cdlm.rundir import RunDir


@app.command(hidden=True)
def point(
    recipe: RecipeFile,
    name: Annotated[str, typer.Option(help="Of the study.")],
    option: Annotated[list[str] | None, typer.Option(help="For the name of its folder.")] = None,
    runs: Runs = Path(RUNS),
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Run one point of a study, as its launcher does; nothing, where it has finished."""
    from cdlm import recipe as recipes

    resolved = replace(recipes.load(recipe), name=name, sets=option or [])
    from cdlm import progress
    from cdlm.job import choose_device
    from cdlm.run import begin_point, borrow

    use_threads(threads)
    chosen, done = choose_device(device), False
    while not done:  # again where another process, waited for, has failed and left nothing
        folder = begin_point(resolved, runs, sys.argv)
        with folder.lock(wait=True):
            done = folder.recipe.is_file()
            if done and not folder.finished:
                with working(folder), progress.bars() as tell:
                    if other := borrow(folder, resolved, runs):
                        note(f"trained already: {other.path}")
                    carry_out(folder, chosen, True, tell)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="A TOML file.")],
    set_: Sets = None,
    runs: Runs = Path(RUNS),
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Points at a time.")] = 1,
    launcher: Annotated[
        str, typer.Option(metavar="NAME", help="Where points run: cdlm list launcher")
    ] = "",
    device: Device = "auto",
    threads: Annotated[
        int, typer.Option(metavar="N", min=1, max=512, help="CPU threads of each point.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, and how long it will take.")
    ] = False,
) -> None:
    """Train every point of a study, and say which choices matter.

    Like: cdlm study recipes/studies/target.toml --jobs 2. What has been run is not run again, what
    was stopped goes on: run the same command again. Writes table.md and table.json into the study's
    folder. Exit code 1: a point failed.
    """
    from cdlm import board, conduct, outcome
    from cdlm import study as studies
    from cdlm.stop import Stop

    work = conduct.Work.of(studies.load(file, set_ or [], launcher), runs)
    how = conduct.How(
        launcher=conduct.launcher_of(work.study.launcher),
        jobs=jobs,
        device=device,
        threads=threads,
    )
    if dry_run:
        _print_plan(work, how)
        return
    work.plan()
    with _folder(work.folder).lock(), Stop().listening() as stop, board.live(work) as show:
        whole = conduct.run(work, how, show, lambda: bool(stop.number))
    if not whole:
        note("stopped; all is saved\n    go on with the same command")
        raise typer.Exit(128 + stop.number)
    _show_study(work, outcome.outcome(work))


def _print_plan(work: Work, how: How) -> None:
    """The points, what there is of them, and how long the rest will take."""
    from cdlm import board, estimate, progress

    console().print(board.plan(work))
    use_threads(how.threads)
    try:
        with progress.bars() as tell:
            left = estimate.seconds(work, _device(how.device), tell)
    except CdlmError as error:
        print(f"estimate: none; a point could not be timed: {error}")
        return
    print(board.estimated(left, how.jobs))


def _show_study(work: Work, found: dict[str, Any]) -> None:
    """The table, what it says, and where it is; then what failed."""
    from cdlm import outcome

    if found:
        console().print(outcome.table(found))
        print("\n".join(found["findings"]))
        print(f"table: {outcome.write(work, found)}")
    failed = [trial for trial in work.trials.values() if trial.state == "failed"]
    for trial in failed:
        lines = trial.failure.replace("\n", "\n    ")
        log = work.folder / "logs" / f"{trial.file}.txt"
        note(f"failed: {trial.labels[0]}, seed {trial.recipe.seed} ({log})\n    {lines}")
    raise typer.Exit(1 if failed else 0)


def _folder(path: Path) -> RunDir:
    from cdlm.rundir import RunDir

    return RunDir(path)


def _device(wanted: str) -> str:
    from cdlm.job import choose_device

    return choose_device(wanted)
