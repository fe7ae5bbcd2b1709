"""What came out of a study: table.json, table.md, and the same on a terminal.

table.json holds

    study, about, design, axes, baseline, seeds    as in study.json
    split, n          the images that the first run was scored on
    scores            names of the scores, the one that counts first: the first metric's first
    rows              one for each point, the baseline first:
        label, options, baseline (true or false), parameters (trained numbers)
        runs              [{seed, run, scores}], or {seed, failed: the last lines that it printed};
                          run is its folder, below that of all runs
        scores            {name: {mean, interval}}: over seeds, 95 % by Student's t; null for one
        against_baseline  {name: {difference, images, seeds, verdict}}: the 95 % intervals of
                          `cdlm.compare`; null for the baseline
        time              {training_seconds, seconds_per_caption, frontier}: means over seeds, and
                          whether no other point scores as high in as little time per caption
    effects           {axis: {option: {name: as in against_baseline}}}: an option against the
                      baseline's, averaged over all points that are alike in all other axes
    findings          a sentence for each axis

Nothing but what is under `time` changes when the study is done again on the same machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdlm import rundir
from cdlm.compare import (
    HIGHER,
    LOWER,
    ONE_SEED,
    Difference,
    Result,
    difference,
    over_seeds,
    read_draws,
    rounded,
)
from cdlm.conduct import Trial, Work
from cdlm.rundir import DRAWS
from cdlm.study import Point

if TYPE_CHECKING:
    from rich.table import Table

TABLE = "table.json"
LESSER = {"bleu_1", "bleu_2", "bleu_3"}  # in table.json, but not shown: BLEU-4 speaks for them

Record = dict[str, Any]


# ------------------------------------------------------------------------------------- gathering


def outcome(work: Work) -> Record:
    """All that the finished runs say, as table.json keeps it; {} where none has finished."""
    results = _results(work)
    if not results:
        return {}
    study = work.study
    first = next(iter(results.values()))
    summary = work.trials[next(iter(results))].summary()
    names = list(first.scores)
    rows = [_row(work, point, results, names) for point in study.points]
    _mark_frontier(rows, names[0])
    effects = {axis: _effects(work, axis, results, names) for axis in study.axes}
    return {
        "study": study.name,
        "about": study.about,
        "design": study.design,
        "axes": {axis: list(options) for axis, options in study.axes.items()},
        "baseline": study.baseline,
        "seeds": study.seeds,
        "split": summary["split"],
        "n": summary["n"],
        "scores": names,
        "rows": rows,
        "effects": effects,
        "findings": [_finding(axis, it, names[0]) for axis, it in effects.items()],
    }


def _results(work: Work) -> dict[str, Result]:
    """Of every finished run what it says, by its recipe's hash."""
    return {
        digest: Result(trial.run, trial.summary()["scores"], read_draws(trial.run / DRAWS))
        for digest, trial in work.trials.items()
        if trial.state == "finished" and trial.run
    }


def _row(work: Work, point: Point, results: dict[str, Result], names: Sequence[str]) -> Record:
    trials = [(seed, work.trial(point, seed)) for seed in work.study.seeds]
    done = [(it, results[it.recipe.hash]) for _, it in trials if it.recipe.hash in results]
    values = {name: [r.scores[name] for _, r in done if name in r.scores] for name in names}
    base = point.options == work.study.baseline
    compared = {
        name: _compared(work, [(point, work.study.points[0])], results, name) for name in names
    }
    return {
        "label": point.label,
        "options": point.options,
        "baseline": base,
        "parameters": done[0][0].summary().get("parameters") if done else None,
        "runs": [_run(work, seed, trial, results) for seed, trial in trials],
        "scores": {name: _mean(them) for name, them in values.items() if them},
        "against_baseline": None if base else _records(compared),
        "time": _time([trial.summary() for trial, _ in done]),
    }


def _run(work: Work, seed: int, trial: Trial, results: dict[str, Result]) -> Record:
    found = results.get(trial.recipe.hash)
    if found is None:
        return {"seed": seed, "failed": trial.failure or "not run"}
    return {
        "seed": seed,
        "run": found.run.relative_to(work.root).as_posix(),
        "scores": {name: rounded(value) for name, value in found.scores.items()},
    }


def _mean(values: Sequence[float]) -> Record:
    interval = over_seeds(values)
    return {
        "mean": rounded(sum(values) / len(values)),
        "interval": interval and [rounded(it) for it in interval],
    }


def _time(summaries: Sequence[Record]) -> Record:
    trained = [it["training_seconds"] for it in summaries if it.get("training_seconds") is not None]
    each = [it["sampling_seconds"] / max(1, it["n"]) for it in summaries]
    return {
        "training_seconds": sum(trained) / len(trained) if trained else None,
        "seconds_per_caption": sum(each) / len(each) if each else None,
        "frontier": False,
    }


def _mark_frontier(rows: Sequence[Record], name: str) -> None:
    """Mark the rows that no other beats in both the score and the time for a caption."""
    there = [row for row in rows if name in row["scores"]]
    there.sort(key=lambda row: (row["time"]["seconds_per_caption"], -row["scores"][name]["mean"]))
    best = float("-inf")
    for row in there:
        row["time"]["frontier"] = row["scores"][name]["mean"] > best
        best = max(best, row["scores"][name]["mean"])


# ------------------------------------------------------------------------------------- comparing


def _compared(
    work: Work, points: Sequence[tuple[Point, Point]], results: dict[str, Result], name: str
) -> Difference | None:
    """The first of each two points against the second, over the seeds that both have run with."""
    pairs = []
    for seed in work.study.seeds:
        both = [[work.trial(point, seed).recipe.hash for point in two] for two in points]
        if all(digest in results for two in both for digest in two):
            pairs.append([(results[one], results[two]) for one, two in both])
    return difference(pairs, name)


def _effects(work: Work, axis: str, results: dict[str, Result], names: Sequence[str]) -> Record:
    """Every other option of an axis against the baseline's, at equal options of the other axes."""
    usual, effects = work.study.baseline[axis], {}
    by_options = {tuple(point.options.items()): point for point in work.study.points}
    for option in work.study.axes[axis]:
        if option != usual:
            with_it = [point for point in work.study.points if point.options[axis] == option]
            twins = [tuple((point.options | {axis: usual}).items()) for point in with_it]
            pairs = [
                (point, by_options[twin])
                for point, twin in zip(with_it, twins, strict=True)
                if twin in by_options
            ]
            effects[option] = _records({n: _compared(work, pairs, results, n) for n in names})
    return effects


def _records(found: dict[str, Difference | None]) -> Record:
    return {name: it.record() for name, it in found.items() if it is not None}


def _finding(axis: str, effects: Record, name: str) -> str:
    """What the axis does to the score that counts, in a sentence."""
    there = {option: it[name] for option, it in effects.items() if name in it}
    real = {k: it for k, it in there.items() if it["verdict"].startswith((HIGHER, LOWER))}
    told = [f"{option} {it['difference']:+.4f}" for option, it in real.items()]
    rest = [option for option in there if option not in real]
    if not there:
        return f"{axis}: nothing to compare"
    if all(it["difference"] == 0 for it in there.values()):
        return f"{axis}: all have the same score, so it tells nothing here"
    if not told:
        return f"{axis}: every difference is inside the noise ({', '.join(rest)})"
    noise = f"; inside the noise: {', '.join(rest)}" if rest else ""
    by = ", by one seed" if all(it["verdict"].endswith(ONE_SEED) for it in real.values()) else ""
    return f"{axis} matters{by}: {', '.join(told)}{noise}"


# --------------------------------------------------------------------------------------- writing


def write(work: Work, found: Record) -> Path:
    """table.json and table.md into the study's folder; the latter's path. Raises OSError."""
    rundir.write_json(work.folder / TABLE, found)
    place = work.folder / "table.md"
    rundir.write_text(place, markdown(found))
    return place


def columns(found: Record) -> list[str]:
    """The table's header."""
    from cdlm.evaluate import label

    scores = [label(name).partition(" (")[0] for name in _shown(found)]
    head = ", ".join(found["axes"])
    return [head, *scores, f"against {_baseline(found)}", "verdict", "s/caption", "training s"]


def _shown(found: Record) -> list[str]:
    return [name for name in found["scores"] if name not in LESSER]


def _baseline(found: Record) -> str:
    return str(next(row["label"] for row in found["rows"] if row["baseline"]))


def cells(found: Record, row: Record) -> list[str]:
    """A row's texts, in the order of `columns`."""
    failed = sum("failed" in run for run in row["runs"])
    label = row["label"] + (f" ({failed} of {len(row['runs'])} failed)" if failed else "")
    scores = [_score(row["scores"].get(name)) for name in _shown(found)]
    against = (row["against_baseline"] or {}).get(found["scores"][0])
    usual = "baseline" if row["baseline"] else ""
    return [
        label,
        *scores,
        f"{against['difference']:+.4f}" if against else "",
        against["verdict"] if against else usual,
        *_times(row["time"]),
    ]


def _score(found: Record | None) -> str:
    """Mean, and half of its interval."""
    if found is None:
        return "n/a"
    interval = found["interval"]
    half = f" ± {(interval[1] - interval[0]) / 2:.4f}" if interval else ""
    return f"{found['mean']:.4f}{half}"


def _times(time: Record) -> tuple[str, str]:
    each, training = time["seconds_per_caption"], time["training_seconds"]
    star = "* " if time["frontier"] else ""
    return (
        "n/a" if each is None else f"{star}{each:.4f}",
        "n/a" if training is None else f"{training:.0f}",
    )


def notes(found: Record) -> list[str]:
    """What has to be known to read the table."""
    from cdlm.evaluate import label

    count, seeds = sum(not row["baseline"] for row in found["rows"]), len(found["seeds"])
    chance = f"; of {count} comparisons about {count / 20:.1f} would do so by chance"
    between = f"±: 95 % of {seeds} seeds by Student's t" if seeds > 1 else "one seed"
    also = (
        " and outside of that from seeds" if seeds > 1 else "; how much seeds differ is not known"
    )
    return [
        f"{found['split']} split, {found['n']:,} images; {between}",
        f"verdict: of {label(found['scores'][0])}, higher or lower where 0 lies outside of the "
        f"95 % interval from resampled images{also}{chance}",
        "* no other point scores as high in as little time per caption; seconds are those of a "
        "machine as busy as it then was",
    ]


def markdown(found: Record) -> str:
    """The table, what it says, and how it was made, in Markdown."""
    head = columns(found)
    lines = [f"**{found['about'] or found['study']}**", "", _line(head)]
    lines.append(_line(["---", *["---:"] * (len(head) - 1)]))
    lines += [_line(cells(found, row)) for row in found["rows"]]
    lines += ["", *(f"- {finding}" for finding in found["findings"])]
    lines += ["", *(f"{note}.  " for note in notes(found)), ""]
    return "\n".join(lines)


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def table(found: Record) -> Table:
    """The same for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    caption = Text("\n".join(notes(found)), style="dim", justify="left")
    title = Text(f"{found['study']}: {found['about']}")
    drawn = Table(title=title, caption=caption, title_justify="left", box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns(found)):
        drawn.add_column(name, justify="right" if i else "left")
    for row in found["rows"]:
        drawn.add_row(*map(Text, cells(found, row)), style="bold" if row["baseline"] else None)
    return drawn
