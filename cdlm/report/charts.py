"""Which figures a report has, of what its runs hold."""

from __future__ import annotations

from collections.abc import Sequence

from cdlm.evaluate import label
from cdlm.frontier import Frontier
from cdlm.outcome import Record
from cdlm.probe import WITH
from cdlm.report.facts import Facts
from cdlm.report.figures import Chart, Points

WIDE = 15.0  # a loss whose largest value is so many times its least has a logarithmic axis
MOST = 14.0  # of |log-SNR|: what is beyond is as good as clean, or as noise


def learning(runs: Sequence[Facts]) -> list[Chart]:
    """What training logged: the loss, with its terms if there is one run; then everything else."""
    names = list(dict.fromkeys(name for facts in runs for name in facts.curves))
    charts = []
    for name in names:
        if name.partition("/")[0] in names and "/" in name:
            continue
        curves: dict[str, Points] = {it.label: it.curves[name] for it in runs if name in it.curves}
        if len(runs) == 1:
            curves = _with_terms(runs[0], name)
        charts.append(_logged(name, curves))
    return charts


def _with_terms(facts: Facts, name: str) -> dict[str, Points]:
    """The curve itself, and those of its terms."""
    terms = [it for it in facts.curves if it.startswith(f"{name}/")]
    shown = {it.partition("/")[2]: facts.curves[it] for it in terms}
    whole = "sum" if terms else name
    return {whole: facts.curves[name], **(shown if len(terms) > 1 else {})}


def _logged(name: str, curves: dict[str, Points]) -> Chart:
    values = [y for _, ys in curves.values() for y in ys]
    title = name.replace("_", " ").replace("/", ": ")
    return Chart(
        name=f"learning-{name.replace('_', '-').replace('/', '-')}",
        title=title.capitalize(),
        across="training step",
        up=title,
        curves=curves,
        log_up=name == "loss" and min(values) > 0 and max(values) / min(values) > WIDE,
        dots=False,
        whole=True,
    )


def restoration(runs: Sequence[Facts]) -> list[Chart]:
    """How many words come back from each noise level in one step."""
    probed = {it.label: it.probe for it in runs if it.probe}
    if not probed:
        return []
    if len(probed) == 1:
        (probe,) = probed.values()
        curves: dict[str, Points] = {
            name: (probe.times, shares) for name, shares in probe.curves.items()
        }
        across = "t (0: clean text, 1: noise)"
    else:  # schedules may differ: only the signal-to-noise ratio means the same in all
        curves = {
            name: ([max(-MOST, min(MOST, -x)) for x in it.log_snr], it.curves[WITH])
            for name, it in probed.items()
        }
        across = "log noise-to-signal ratio (right: noise)"
    return [
        Chart(
            name="restoration", title="Words restored by one denoising step", across=across,
            up="share of words", curves=curves, span=(0, 1.03),
        )
    ]  # fmt: skip


def quality(runs: Sequence[Facts]) -> list[Chart]:
    """The first metric against network calls, and against time."""
    measured = {it.label: it.frontier for it in runs if it.frontier}
    if not measured:
        return []
    first = next(iter(measured.values()))
    metric = first.metrics[0]
    return [
        Chart(
            name="quality-calls", title="Quality against steps", up=label(metric), log=True,
            across="network calls for one caption", curves=_quality(measured, metric, False),
            beneath=_steps(first, metric) if len(measured) == 1 else None,
            about="" if len(measured) > 1 else "Pale: the best with as few calls.",
        ),
        Chart(
            name="quality-time", title="Quality against time", up=label(metric), log=True,
            across=f"milliseconds for one caption, on {first.device}",
            curves=_quality(measured, metric, True),
        ),
    ]  # fmt: skip


def _quality(measured: dict[str, Frontier], metric: str, timed: bool) -> dict[str, Points]:
    """Of one run a curve for each sampler; of several, each run's best."""
    if len(measured) > 1:
        best = {name: _best(it, metric, timed) for name, it in measured.items()}
        return {name: points for name, points in best.items() if points[0]}
    (found,) = measured.values()
    return _ways(found, metric, timed)


def _ways(found: Frontier, metric: str, timed: bool) -> dict[str, Points]:
    """A curve for each sampler."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for point in found.points:
        if metric in point.scores:
            xs, ys = curves.setdefault(point.sampler, ([], []))
            xs.append(1000 * point.seconds / found.images if timed else point.calls)
            ys.append(point.scores[metric])
    return dict(curves)


def _best(found: Frontier, metric: str, timed: bool) -> Points:
    """The points that no other reaches with as few calls."""
    points = [it for it in found.best if metric in it.scores]
    xs = [1000 * it.seconds / found.images if timed else it.calls for it in points]
    return xs, [it.scores[metric] for it in points]


def _steps(found: Frontier, metric: str) -> Points:
    """The best with as few calls, on to the right edge."""
    xs, ys = _best(found, metric, False)
    return [*xs, max(it.calls for it in found.points)], [*ys, ys[-1]]


def cost(study: Record) -> list[Chart]:
    """Of a study each point's first score against the time for a caption, means over seeds."""
    metric = study["scores"][0]
    points: dict[str, Points] = {
        row["label"]: ([1000 * row["time"]["seconds_per_caption"]], [row["scores"][metric]["mean"]])
        for row in study["rows"]
        if metric in row["scores"] and row["time"]["seconds_per_caption"] is not None
    }
    chart = Chart(
        name="cost", title="Every point of the study", up=label(metric), curves=points,
        across="milliseconds for one caption", log=True,
    )  # fmt: skip
    return [chart] if points else []


def settling(runs: Sequence[Facts]) -> list[Chart]:
    """When words settle."""
    traced = {it.label: it.traces for it in runs if it.traces}
    if not traced:
        return []
    curves: dict[str, Points] = {
        name: (list(range(len(it.share))), it.share) for name, it in traced.items()
    }
    return [
        Chart(
            name="settling", title="When words settle", across="steps taken", whole=True,
            up="share of words that no longer change", curves=curves, span=(0, 1.03),
        )
    ]  # fmt: skip
