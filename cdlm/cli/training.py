"""Runs from beginning to end: run, train, eval, export, score, pretrain."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdlm.cli.common import (
    Device,
    RecipeFile,
    Resume,
    RunFolder,
    Runs,
    SamplingSets,
    Sets,
    Threads,
    app,
    console,
    must_be_a_place,
    note,
    use_threads,
    working,
    write,
)
from cdlm.errors import CdlmError, Interrupted, nearest
from cdlm.places import RUNS

if TYPE_CHECKING:
    from cdlm.job import Job
    from cdlm.progress import Tell
    from cdlm.run import Outcome
    from cdlm.rundir import RunDir

NEAR = 3  # unfinished runs that are named where there is nothing to resume


@app.command()
def run(
    recipe: RecipeFile,
    set_: Sets = None,
    runs: Runs = Path(RUNS),
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
    runs: Runs = Path(RUNS),
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
    from cdlm import progress, ranks
    from cdlm.job import choose_device
    from cdlm.run import begin

    use_threads(threads)
    chosen = choose_device(device)
    with ranks.joined():
        with ranks.first():
            first = ranks.rank() == 0
            folder = begin(resolved, runs, resume or not first, sys.argv)
            if resume and first and folder.last_step is None:
                note(_begun(folder))
        if ranks.rank() > 0:
            _follow(folder, chosen)
            return
        with folder.lock(), working(folder):
            if evaluate and folder.finished:
                note("this run has finished; evaluating it again")
            with progress.bars() as tell:
                job, outcome, picture = carry_out(folder, chosen, evaluate, tell)
    if outcome:
        _show(job, outcome, picture)
    else:
        print(f"run: {folder.path}")


def _begun(run: RunDir) -> str:
    """That there was nothing to go on with, and which runs could be meant."""
    from cdlm import rundir

    others = map(rundir.RunDir, rundir.runs(run.path.parent))
    unfinished = [str(it.path) for it in others if it.last_step is not None and not it.finished]
    said = "--resume: nothing to go on with where the recipe is set so; training begins"
    return "\n    ".join([said, *(f"unfinished, set otherwise: {it}" for it in unfinished[:NEAR])])


def _follow(folder: RunDir, device: str) -> None:
    """Train along with the first of several processes, which does all the writing and talking."""
    from cdlm import ranks
    from cdlm.job import Job
    from cdlm.run import train_run

    logging.disable(logging.WARNING)
    try:
        train_run(Job.open(folder, device))
    except Interrupted as end:
        sys.exit(end.code)
    ranks.part()


def carry_out(
    folder: RunDir, device: str, evaluate: bool, tell: Tell
) -> tuple[Job, Outcome | None, Path | None]:
    """Train a run to its end; then score it, and write that down, if wanted."""
    from cdlm import ranks
    from cdlm.job import Job
    from cdlm.run import evaluate_run, train_run, write_down

    job = Job.open(folder, device)
    note(f"run: {folder.path}")
    train_run(job, tell)
    ranks.part()
    outcome = evaluate_run(job, tell) if evaluate else None
    return job, outcome, write_down(job, outcome) if outcome else None


@app.command("eval")
def evaluate(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run's folder.")] = None,
    run_: Annotated[Path | None, typer.Option("--run", metavar="DIR", help="The same.")] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="The split; else the recipe's.")] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the captions as COCO's results.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="An earlier checkpoint's weights.")
    ] = None,
    set_: SamplingSets = None,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Caption and score a trained run again, and print the table.

    Like: cdlm eval RUN --split test --set sampler.steps=5. What the weights rest on can't be set.
    The run's own summary and samples stay as they are; the result goes into RUN/eval/.
    """
    from cdlm import progress, results
    from cdlm.job import Job, choose_device
    from cdlm.run import evaluate_run
    from cdlm.rundir import RunDir

    use_threads(threads)
    must_be_a_place(out)
    folder = RunDir.open(_one_run(run, run_))
    sets = [*([f"evaluate.split={split}"] if split else []), *(set_ or [])]
    job = Job.open(folder, choose_device(device), sets)
    with progress.bars() as tell:
        outcome = evaluate_run(job, tell, step)
    _show(job, outcome, None)
    write(out, results.coco_results(outcome.answers))
    print(f"result: {results.keep(job, outcome, sets)}")


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    step: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="An earlier checkpoint's weights.")
    ] = None,
    average: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="The mean of all checkpoints from step N on."),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="Of the weights: bfloat16 or float32.")
    ] = "bfloat16",
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="RUN", help="A run to say captions with it; repeatable."),
    ] = None,
    set_: SamplingSets = None,
) -> None:
    """Write a trained run for others, without what is private.

    Like: cdlm export RUN --out results/mine --set sampler.steps=10. What comes of it is a run, for
    eval and caption: weights, recipe, vocabulary, learning curves; no captions, no optimizer's
    memory, no paths of this machine. With others, as of other seeds, it is an ensemble: p of words
    is the mean of theirs.
    """
    from cdlm.export import PRECISIONS, export
    from cdlm.rundir import RunDir

    if precision not in PRECISIONS:
        raise CdlmError(f"--precision {precision}: {nearest(precision, PRECISIONS)}")
    members = [RunDir.open(path) for path in with_ or []]
    folder, bits = RunDir.open(run), PRECISIONS[precision]
    place = export(folder, out, step, average, set_ or [], bits, members)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    print(f"exported: {place} ({size / 1e6:.1f} MB)")


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
    from cdlm import evaluate as judges
    from cdlm import results

    must_be_a_place(out)
    answers = results.read_answers(captions, annotations)
    scores = judges.evaluate(results.published(), answers, judges.RESAMPLES)
    console(100).print(judges.table(scores, captions.name, "captions of a file"))
    write(out, results.as_json(scores, answers))


def _show(job: Job, outcome: Outcome, picture: Path | None) -> None:
    from cdlm.evaluate import sample_table, table

    out = console(100)
    out.print(sample_table(outcome.answers, 10, job.recipe.seed))
    title = f"{job.recipe.name}: {outcome.about}"
    out.print(table(outcome.scores, title, outcome.how, outcome.beside))
    if picture:
        print(f"gallery: {picture}")
    print(f"run: {job.run.path}")


@app.command()
def pretrain(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for the model.")],
    device: Device = "auto",
) -> None:
    """Train an image encoder on drawn scenes, as ours was."""
    from cdlm import pretrain as encoders
    from cdlm import progress
    from cdlm.job import choose_device

    with progress.bars() as tell:
        share = encoders.make(recipe, out, choose_device(device), tell)
    print(f"nearest caption of 32 is its own: {share:.1%} of held-out scenes")
    print(f'encoder: {out}\n    use it with encoder = {{ use = "open_clip", model = "{out}" }}')
