"""Looking into runs: frontier, probe, report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdlm.cli.common import (
    Device,
    RunFolder,
    SamplingSets,
    Threads,
    app,
    console,
    note,
    use_threads,
)
from cdlm.errors import CdlmError

if TYPE_CHECKING:
    pass


@app.command()
def frontier(
    run: RunFolder,
    samplers: Annotated[
        str, typer.Option(metavar="A,B,...", help="Samplers; all there are, unless given.")
    ] = "",
    steps: Annotated[str, typer.Option(metavar="N,M,...", help="Numbers of steps.")] = "5,10,20,50",
    limit: Annotated[int, typer.Option(min=0, help="Images; 0: all of the split.")] = 200,
    set_: SamplingSets = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Try every sampler on a trained run.

    Like: cdlm frontier RUN --samplers ddim,ddpm --steps 5,20 --set grid.td=0.02. Prints the run's
    metrics against steps, network calls and seconds, on images of the split val; with
    --set evaluate.split=test on others. Writes RUN/frontier/frontier.json and frontier.png.
    """
    from cdlm import frontier as frontiers
    from cdlm import progress
    from cdlm.job import Job, choose_device
    from cdlm.rundir import RunDir

    use_threads(threads)
    numbers, sets = _numbers(steps), ["evaluate.split=val", *(set_ or [])]
    job = Job.open(RunDir.open(run), choose_device(device), sets)
    names = frontiers.samplers(job, samplers)
    with progress.bars() as tell:
        found = frontiers.measure(job, names, numbers, limit, tell)
    console().print(frontiers.table(found, f"{job.recipe.name}: every sampler on one checkpoint"))
    print(f"chart: {frontiers.write(found, job.run.path / 'frontier', job.recipe.name)}")


def _numbers(text: str) -> list[int]:
    """The rising numbers that "5,10,20" says. Raises CdlmError."""
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise CdlmError(f'--steps {text}: expected numbers from 1 on, such as "5,10,20"')
    return found


@app.command()
def probe(
    run: RunFolder,
    points: Annotated[int, typer.Option(min=1, max=1000, help="Noise levels.")] = 20,
    limit: Annotated[int, typer.Option(min=0, help="Captions; 0: all.")] = 200,
    set_: SamplingSets = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Show what one denoising step restores.

    How many words of true captions come back from each noise level: with the image, without it
    (where the run was trained to do without), and by the nearest word alone. Of a run that was
    trained on train.limit captions: whether it samples them word for word. Writes
    RUN/probe/probe.json and probe.png.
    """
    from cdlm import probe as probes
    from cdlm import progress
    from cdlm.job import Job, choose_device
    from cdlm.rundir import RunDir

    use_threads(threads)
    job = Job.open(RunDir.open(run), choose_device(device), set_ or [])
    with progress.bars() as tell:
        found = probes.probe(job, points, limit, tell)
    console(100).print(probes.table(found, f"{job.recipe.name}: words restored by one step"))
    print("\n".join(probes.verdicts(found)))
    print(f"chart: {probes.write(found, job.run.path / 'probe', job.recipe.name)}")


class Format(StrEnum):
    """What `report` can write."""

    html = "html"
    md = "md"
    latex = "latex"


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or a study's.")
    ],
    format_: Annotated[
        list[Format] | None,
        typer.Option("--format", help="May be repeated; html unless given."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="RUN/report, or ./report for several runs, unless given."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure everything anew.")] = False,
    no_sampling: Annotated[
        bool, typer.Option("--no-sampling", help="Leave out what was not measured before.")
    ] = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Write a page on a run, several, or a study, to show around.

    Like: cdlm report RUN --format html --format latex. One file, which needs no network: scores
    with intervals, learning curves, restoration, quality against cost, a gallery, a denoising
    trace, provenance, the recipe. What needs sampling (as cdlm probe and cdlm frontier do it) is
    done once, and kept in the run's folder. Of several runs the first is the one that the others
    are compared with. md and latex are the table of scores alone.
    """
    from cdlm import progress
    from cdlm import report as reports

    use_threads(threads)
    folder = out or (runs[0] / "report" if len(runs) == 1 else Path("report"))
    formats = [it.value for it in format_ or [Format.html]]
    with progress.bars() as tell:
        written = reports.report(
            runs, folder, formats, device=device, fresh=fresh, sampling=not no_sampling, tell=tell
        )
    for run, what, why in written.missing:
        note(f"left out of {run}: {what}: {why}")
    for path in written.files:
        print(f"report: {path} ({path.stat().st_size / 1e6:.2f} MB)")
