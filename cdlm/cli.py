"""The command line: `cdlm run recipes/extra_token.toml`, and the verbs around it.

Nothing here imports torch until a verb needs it, so that help, list, show and check answer at once.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdlm import blame, plugins
from cdlm.errors import CdlmError, Interrupted

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console

    from cdlm.captioner import Caption
    from cdlm.conduct import How, Work
    from cdlm.progress import Tell
    from cdlm.run import Job, Outcome
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

AT_ONCE = 64  # images that `caption` reads, captions and writes together


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


# ------------------------------------------------------------------------------------------ runs


@app.command()
def run(
    recipe: RecipeFile,
    set_: Sets = None,
    runs: Runs = Path("runs"),
    resume: Resume = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Train a recipe, caption a split, and score the captions."""
    _train(recipe, set_, runs, resume, device, threads, evaluate=True)


@app.command()
def train(
    recipe: RecipeFile,
    set_: Sets = None,
    runs: Runs = Path("runs"),
    resume: Resume = False,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Train a recipe, and stop there."""
    _train(recipe, set_, runs, resume, device, threads, evaluate=False)


def _train(
    recipe: Path,
    sets: list[str] | None,
    runs: Path,
    resume: bool,
    device: str,
    threads: int,
    evaluate: bool,
) -> None:
    from cdlm import recipe as recipes

    resolved = recipes.load(recipe, sets or [])  # all mistakes first, before anything slow
    from cdlm import progress
    from cdlm import run as job_of

    _use_threads(threads)
    chosen = job_of.choose_device(device)
    folder = job_of.begin(resolved, runs, resume, sys.argv)
    with folder.lock(), _working(folder):
        if evaluate and folder.finished:
            _note("this run has finished; evaluating it again")
        with progress.bars() as tell:
            job, outcome, picture = _carry_out(folder, chosen, evaluate, tell)
    if outcome:
        _show(job, outcome, picture)
    else:
        print(f"run: {folder.path}")


@contextmanager
def _working(folder: RunDir) -> Iterator[None]:
    """A run's folder goes again where nothing comes of it; what is warned of stands in its log."""
    from cdlm import run as job_of

    with job_of.gone_unless_started(folder), _logged(folder):
        for failure in plugins.load().failures:
            log.warning("%s; see cdlm plugins --verbose", failure)
        yield


def _carry_out(
    folder: RunDir, device: str, evaluate: bool, tell: Tell
) -> tuple[Job, Outcome | None, Path | None]:
    """Train a run to its end; then score it, and write that down, if wanted."""
    from cdlm import run as job_of

    job = job_of.Job.open(folder, device)
    _note(f"run: {folder.path}")
    job_of.train_run(job, tell)
    outcome = job_of.evaluate_run(job, tell) if evaluate else None
    return job, outcome, job_of.write_down(job, outcome) if outcome else None


@app.command(hidden=True)
def point(
    recipe: RecipeFile,
    name: Annotated[str, typer.Option(help="Of the study.")],
    option: Annotated[list[str] | None, typer.Option(help="For the name of its folder.")] = None,
    runs: Runs = Path("runs"),
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Run one point of a study, as its launcher does; nothing, where it has finished."""
    from cdlm import recipe as recipes

    resolved = replace(recipes.load(recipe), name=name, sets=option or [])
    from cdlm import progress
    from cdlm import run as job_of

    _use_threads(threads)
    chosen, done = job_of.choose_device(device), False
    while not done:  # again where another process, waited for, has failed and left nothing
        folder = job_of.begin_point(resolved, runs, sys.argv)
        with folder.lock(wait=True):
            done = folder.recipe.is_file()
            if done and not folder.finished:
                with _working(folder), progress.bars() as tell:
                    if other := job_of.borrow(folder, resolved, runs):
                        _note(f"trained already: {other.path}")
                    _carry_out(folder, chosen, True, tell)


# --------------------------------------------------------------------------------------- studies


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="A TOML file.")],
    set_: Sets = None,
    runs: Runs = Path("runs"),
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
        _note("stopped; all is saved\n    go on with the same command")
        raise typer.Exit(128 + stop.number)
    _show_study(work, outcome.outcome(work))


def _print_plan(work: Work, how: How) -> None:
    """The points, what there is of them, and how long the rest will take."""
    from cdlm import board, estimate, progress

    _console().print(board.plan(work))
    _use_threads(how.threads)
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
        _console().print(outcome.table(found))
        print("\n".join(found["findings"]))
        print(f"table: {outcome.write(work, found)}")
    failed = [trial for trial in work.trials.values() if trial.state == "failed"]
    for trial in failed:
        lines = trial.failure.replace("\n", "\n    ")
        log = work.folder / "logs" / f"{trial.file}.txt"
        _note(f"failed: {trial.labels[0]}, seed {trial.recipe.seed} ({log})\n    {lines}")
    raise typer.Exit(1 if failed else 0)


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def _folder(path: Path) -> RunDir:
    from cdlm.rundir import RunDir

    return RunDir(path)


def _device(wanted: str) -> str:
    from cdlm.run import choose_device

    return choose_device(wanted)


@app.command("eval")
def evaluate(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run's folder.")] = None,
    run_: Annotated[Path | None, typer.Option("--run", metavar="DIR", help="The same.")] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="The split; else the recipe's.")] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the captions as COCO's results.")
    ] = None,
    set_: Sets = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Caption and score a trained run again, and print the table.

    Like: cdlm eval RUN --split test --set sampler.steps=5. What the weights rest on can't be set.
    The run's own summary and samples stay as they are; the result goes into RUN/eval/.
    """
    from cdlm import progress, results
    from cdlm import run as job_of
    from cdlm.rundir import RunDir

    _use_threads(threads)
    _must_be_a_place(out)
    folder = RunDir.open(_one_run(run, run_))
    sets = [*([f"evaluate.split={split}"] if split else []), *(set_ or [])]
    job = job_of.Job.open(folder, job_of.choose_device(device), sets)
    with progress.bars() as tell:
        outcome = job_of.evaluate_run(job, tell)
    _show(job, outcome, None)
    _write(out, results.coco_results(outcome.answers))
    print(f"result: {results.keep(job, outcome, sets)}")


def _one_run(argument: Path | None, option: Path | None) -> Path:
    """The run that was named in one of two ways. Raises CdlmError."""
    if (argument is None) == (option is None):
        raise CdlmError("which run? give its folder once: cdlm eval RUN, or cdlm eval --run DIR")
    return argument or option or Path()


@app.command()
def score(
    captions: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="JSON: [{image_id, caption}, ...].")
    ],
    annotations: Annotated[
        Path, typer.Argument(metavar="ANNOTATIONS", help="COCO's JSON of captions.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the scores here.")] = None,
) -> None:
    """Score a file of captions, without a run.

    Like: cdlm score results.json annotations/captions_val2017.json. Images without a caption in
    RESULTS are left out; N says how many are scored.
    """
    from rich.console import Console

    from cdlm import evaluate as judges
    from cdlm import results

    _must_be_a_place(out)
    answers = results.read_answers(captions, annotations)
    scores = judges.evaluate(results.published(), answers, judges.RESAMPLES)
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(judges.table(scores, captions.name, "captions of a file"))
    _write(out, results.as_json(scores, answers))


@app.command()
def caption(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Images and folders.")],
    run: Annotated[Path, typer.Option(metavar="DIR", help="The run whose captioner to use.")],
    out: Annotated[
        Path | None, typer.Option("--out", "--jsonl", metavar="FILE", help="Write JSON lines here.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps.")] = None,
    sampler: Annotated[str | None, typer.Option(metavar="NAME", help="cdlm list sampler")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale; 1: none.")] = None,
    candidates: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Drawn for each image; one of them is chosen."),
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Also the caption at every step of sampling.")
    ] = False,
    n: Annotated[
        int, typer.Option("--n", min=1, help="So many different captions of each image.")
    ] = 1,
    template: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Words to keep: "a [ ] dog on [ ]".')
    ] = None,
    forbid: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD", help="A word that no caption may have; may be repeated."),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(metavar="N-M", help="Fewest and most words: 5-12, 5-, -12, or 7 for just 7."),
    ] = None,
    set_: SamplingSets = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="Of all random numbers.")] = 0,
    device: Device = "auto",
) -> None:
    """Caption your own images.

    Like: cdlm caption photo.jpg --run RUN --candidates 10. After each caption stands how far the
    other candidates say the same, 0 to 1: 5 of them, unless the run's recipe selects among others.
    Photos that can't be read are named, and stop nothing.
    --template "a [ ] dog on ..." gives words to keep: [ ] is one to fill in, and "..." at the end
    lets the caption go on. What is left out is as in the run's recipe. With --n nothing is
    selected: the captions stand in the order in which they were drawn.
    """
    from cdlm import progress
    from cdlm.captioner import Captioner, Options
    from cdlm.parts.datasets import photos

    if n > 1 and (candidates or trace):
        option = "--candidates" if candidates else "--trace"
        raise CdlmError(f"{option} has no effect beside --n, which shows every caption it draws")
    options: Options = {
        "steps": steps, "sampler": sampler, "guidance": guidance, "template": template,
        "forbid": forbid or (), "words": None if words is None else _limits(words),
        "sets": set_ or (),
    }  # fmt: skip
    found = photos.find(images)
    captioner = Captioner.load(run, device)
    bad: list[CdlmError] = []
    with _lines_to(out) as write, progress.bars() as tell:
        for start in range(0, len(found), AT_ONCE):
            options["seed"] = seed + start
            read = _read(found[start : start + AT_ONCE], bad, write)
            pictures = list(read.values())
            if n > 1:
                for path, texts in zip(read, captioner(pictures, n=n, **options), strict=True):
                    write({"image": path, "captions": texts})
                    _warn_of_fewer(path, len(texts), n)
            else:
                said = captioner.details(pictures, candidates=candidates, trace=trace, **options)
                for path, it in zip(read, said, strict=True):
                    write(_caption_record(path, it))
            tell("captions", min(start + AT_ONCE, len(found)), len(found), "")
    _fail_for(bad, len(found))


def _read(
    paths: Sequence[Path], bad: list[CdlmError], write: Callable[[dict[str, Any]], object]
) -> dict[str, Image]:
    """The photos that can be read, by name; the others are noted."""
    from cdlm.parts.datasets import photos

    read = {}
    for path in paths:
        try:
            read[str(path)] = photos.read(path)
        except CdlmError as error:
            bad.append(error)
            write({"image": str(path), "error": str(error)})
            log.warning("%s", error)
    return read


def _warn_of_fewer(path: str, found: int, wanted: int) -> None:
    if found < wanted:
        log.warning("%s: only %d of %d different captions found", path, found, wanted)


def _fail_for(bad: Sequence[CdlmError], total: int) -> None:
    """Raises CdlmError where photos could not be read, once all others are captioned."""
    if total == len(bad) == 1:
        raise bad[0]
    if bad:
        rest = "the others are captioned" if len(bad) < total else "none is captioned"
        raise CdlmError(f"{len(bad):,} of {total:,} photos can't be read (see above); {rest}")


def _limits(text: str) -> tuple[int, int | None]:
    """The fewest and the most words that "5-12" says. Raises CdlmError."""
    found = re.fullmatch(r"(\d*)(-?)(\d*)", text.strip())
    if found is None or not (found[1] or found[3]):
        raise CdlmError(f'--words {text}: expected "5-12", "5-", "-12" or "7"')
    least = int(found[1] or 0)
    most = int(found[3]) if found[3] else None if found[2] else least
    if most is not None and most < max(least, 1):
        raise CdlmError(f"--words {text}: no caption has at least {least} and at most {most} words")
    return least, most


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
    from rich.console import Console

    from cdlm import frontier as frontiers
    from cdlm import progress
    from cdlm import run as job_of
    from cdlm.rundir import RunDir

    _use_threads(threads)
    numbers, sets = _numbers(steps), ["evaluate.split=val", *(set_ or [])]
    job = job_of.Job.open(RunDir.open(run), job_of.choose_device(device), sets)
    names = frontiers.samplers(job, samplers)
    with progress.bars() as tell:
        found = frontiers.measure(job, names, numbers, limit, tell)
    Console(width=None if sys.stdout.isatty() else 120).print(
        frontiers.table(found, f"{job.recipe.name}: every sampler on one checkpoint")
    )
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
    from rich.console import Console

    from cdlm import probe as probes
    from cdlm import progress
    from cdlm import run as job_of
    from cdlm.rundir import RunDir

    _use_threads(threads)
    job = job_of.Job.open(RunDir.open(run), job_of.choose_device(device), set_ or [])
    with progress.bars() as tell:
        found = probes.probe(job, points, limit, tell)
    Console(width=None if sys.stdout.isatty() else 100).print(
        probes.table(found, f"{job.recipe.name}: words restored by one step")
    )
    print("\n".join(probes.verdicts(found)))
    print(f"chart: {probes.write(found, job.run.path / 'probe', job.recipe.name)}")


class Format(StrEnum):
    """What `report` can write."""

    html = "html"
    md = "md"
    latex = "latex"


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
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
    """Write a page on a run, or on several side by side, to show to others.

    Like: cdlm report RUN --format html --format latex. One file, which needs no network: scores
    with intervals, learning curves, restoration, quality against cost, a gallery, a denoising
    trace, provenance, the recipe. What needs sampling (as cdlm probe and cdlm frontier do it) is
    done once, and kept in the run's folder. Of several runs the first is the one that the others
    are compared with. md and latex are the table of scores alone.
    """
    from cdlm import progress
    from cdlm import report as reports

    _use_threads(threads)
    folder = out or (runs[0] / "report" if len(runs) == 1 else Path("report"))
    formats = [it.value for it in format_ or [Format.html]]
    with progress.bars() as tell:
        written = reports.report(
            runs, folder, formats, device=device, fresh=fresh, sampling=not no_sampling, tell=tell
        )
    for run, what, why in written.missing:
        _note(f"left out of {run}: {what}: {why}")
    for path in written.files:
        print(f"report: {path} ({path.stat().st_size / 1e6:.2f} MB)")


# ----------------------------------------------------------------------------------------- looking


@app.command("list")
def list_(kind: Annotated[str, typer.Argument(metavar="KIND")] = "") -> None:
    """List the components of a kind, or of all kinds."""
    from cdlm import describe

    print(describe.components(kind))


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="RECIPE|KIND")],
    name: Annotated[str, typer.Argument(metavar="NAME")] = "",
    set_: Sets = None,
) -> None:
    """Show a recipe with every value and its origin, or a component.

    Like: cdlm show recipes/extra_token.toml, or cdlm show schedule cosine.
    """
    from cdlm import describe

    print(describe.shown(what, name, set_ or []))


@app.command()
def check(recipe: RecipeFile, set_: Sets = None) -> None:
    """Check a recipe, and report all its mistakes at once."""
    from cdlm import recipe as recipes

    resolved = recipes.load(recipe, set_ or [])
    print(f"{recipe}: no mistakes (hash {resolved.hash[:8]})")


@app.command("plugins")
def plugins_(
    verbose: Annotated[bool, typer.Option("--verbose", help="Print tracebacks.")] = False,
) -> None:
    """List the plugins, what they bring, and which failed."""
    from cdlm import describe

    print(describe.plugins_installed(verbose))


@app.command()
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="Examine its features instead.")
    ] = None,
    set_: Sets = None,
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A split to examine; may be repeated."),
    ] = None,
) -> None:
    """Examine this machine, or a recipe's features.

    Without a recipe: versions, devices, Java, disk. With one: whether the features of its images,
    and of its captions where the encoder has them, are finite, normalised, in the order of their
    names, and not swapped; in training and in the split of [evaluate], unless --split names
    others. For a file of ready features:
    cdlm doctor RECIPE --set 'encoder={use="features", path="FILE"}'. Exit code 1: something is bad.
    """
    from cdlm import describe

    if recipe is None:
        if set_ or split:
            option = "--set" if set_ else "--split"
            raise CdlmError(f"{option} is for a recipe, and has no effect without one")
        healthy, text = describe.health()
    else:
        from cdlm import recipe as recipes

        resolved = recipes.load(recipe, set_ or [])
        from cdlm import checkup, progress

        with progress.bars() as tell:
            found = checkup.examine(resolved, split or (), tell)
        healthy, text = describe.findings(found)
    print(text)
    raise typer.Exit(0 if healthy else 1)


@app.command()
def pretrain(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for the model.")],
    device: Device = "auto",
) -> None:
    """Train an image encoder on drawn scenes, as ours was."""
    from cdlm import pretrain as encoders
    from cdlm import progress
    from cdlm.run import choose_device

    with progress.bars() as tell:
        share = encoders.make(recipe, out, choose_device(device), tell)
    print(f"nearest caption of 32 is its own: {share:.1%} of held-out scenes")
    print(f'encoder: {out}\n    use it with encoder = {{ use = "open_clip", model = "{out}" }}')


# ------------------------------------------------------------------------------------- beginnings

new = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Begin something of your own.")
app.add_typer(new, name="new")


@new.callback()
def _new() -> None:
    """Begin something of your own."""


@new.command()
def plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the package, like cdlm-film.")],
    kind: Annotated[str, typer.Option(metavar="KIND", help="Of its component; see cdlm list.")],
    into: Annotated[Path, typer.Option(metavar="DIR", help="Where its folder goes.")] = Path(),
) -> None:
    """Write a plugin package with one component that works.

    Like: cdlm new plugin cdlm-film --kind conditioning. It can be installed at once, and its tests
    pass; change what its component does, and they tell whether it still keeps the laws of its kind.
    """
    from cdlm import scaffold

    place = scaffold.plugin(name, kind, into)
    print(f"plugin: {place}\n    pip install -e {place} && pytest {place}")


# ----------------------------------------------------------------------------------------- output


def _show(job: Job, outcome: Outcome, picture: Path | None) -> None:
    from rich.console import Console

    from cdlm.evaluate import sample_table, table

    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(sample_table(outcome.answers, 10, job.recipe.seed))
    title = f"{job.recipe.name}: {outcome.about}"
    console.print(table(outcome.scores, title, outcome.how, outcome.beside))
    if picture:
        print(f"gallery: {picture}")
    print(f"run: {job.run.path}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _must_be_a_place(out: Path | None) -> None:
    """Raises CdlmError where no file can be written: before anything slow."""
    if out and (out.is_dir() or not out.parent.is_dir()):
        what = "it is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise CdlmError(f"--out {out}: can't write there: {what}")


def _write(out: Path | None, value: object) -> None:
    """A file of JSON, where one was asked for."""
    from cdlm.rundir import write_json

    if out:
        write_json(out, value)


@contextmanager
def _lines_to(out: Path | None) -> Iterator[Callable[[dict[str, Any]], object]]:
    """A function that writes an image's record: as text, or as a JSON line into a file."""
    if out is None:
        yield _print_record
        return
    _must_be_a_place(out)
    try:
        file = out.open("w", encoding="utf-8", buffering=1)  # by lines: a kill leaves what is done
    except OSError as error:
        raise CdlmError(f"--out {out}: can't write there: {error.strerror}") from error
    with file:
        yield lambda record: print(json.dumps(record), file=file)


def _print_record(record: dict[str, Any]) -> None:
    """A line for each caption: image, caption, confidence; and below it one for each step."""
    path = record["image"]
    for text in record.get("captions", ()):
        print(f"{path}\t{text}", flush=True)
    if "caption" in record:
        sure = [f"{record['confidence']:.2f}"] if "confidence" in record else []
        print(path, record["caption"], *sure, sep="\t", flush=True)
    for i, text in enumerate(record.get("trace", ())):
        print(f"  step {i}\t{text}", flush=True)


def _caption_record(path: str, said: Caption) -> dict[str, Any]:
    record: dict[str, Any] = {"image": path, "caption": said.text}
    if said.confidence is not None:
        record |= {"confidence": round(said.confidence, 4), "candidates": said.candidates}
    return record | ({"trace": said.trace} if said.trace else {})


@contextmanager
def _logged(folder: RunDir) -> Iterator[None]:
    """Warnings go into the run's log.txt too."""
    handler = logging.FileHandler(folder.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _use_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------ errors


class _Notes(logging.Handler):
    """Log records as notes, on whatever standard error is now: progress bars change it."""

    def emit(self, record: logging.LogRecord) -> None:
        _note(f"{record.levelname.lower()}: {self.format(record)}")


def main() -> None:
    """The `cdlm` command: exit code 2 and a message for what a person can mend."""
    logging.getLogger().addHandler(_Notes(logging.WARNING))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):  # a file's name, or a caption, may have no bytes there
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    plugins.load().add_commands(app)
    try:
        app()
    except CdlmError as error:
        _fail(str(error), error)
    except Interrupted as error:
        _note(f"{error}\n    go on with --resume")
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
    _note(f"{red}error:{plain} {text}")
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
