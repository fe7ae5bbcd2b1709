"""Stored timings into benchmarks/RESULTS.md and RESULTS.png.

pytest benchmarks --benchmark-only --benchmark-json cpu.json
python benchmarks/results.py cpu.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from goals import GOALS, OURS, Goal, Groups, Row, base, from_json, grouped
from tables import duration, mistakes, times

HERE = Path(__file__).parent
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
ONCE = "nearest token: "  # how the names of the groups of rounding once begin


def read(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], Groups]:
    """Each file's head, and all their rows; what stands in a later file replaces an earlier's.

    Raises SystemExit for a file that was measured with CDLM_BENCH=small, or by another project.
    """
    heads, rows = [], []
    for path in paths:
        stored = json.loads(path.read_text(encoding="utf-8"))
        machine = stored["machine_info"].get("cdlm")
        if machine is None:
            raise SystemExit(f"{path}: not measured by cdlm's benchmarks")
        if machine["small"]:
            raise SystemExit(f"{path}: measured with CDLM_BENCH=small; its times mean nothing")
        known = {"file": path.name, "date": stored["datetime"], "commit": stored["commit_info"]}
        heads.append(machine | known)
        rows += [from_json(it) for it in stored["benchmarks"]]
    return heads, grouped(rows)


# ------------------------------------------------------------------------------------- the page


def page(heads: Sequence[dict[str, Any]], groups: Groups) -> str:
    """RESULTS.md."""
    lines = [
        "# Timings",
        "",
        "Made by `python benchmarks/results.py` from stored timings; not written by hand.",
        "A ratio is a provider's time over cdlm's for the same work (above 1: cdlm is faster), of",
        "the least time of several rounds each. Wrong tokens are those that differ from exact",
        "arithmetic on the float32 inputs.",
        "",
        "![ratios](RESULTS.png)",
        "",
        *_machines(heads),
        *_goals(groups),
        *_once(groups),
        *_others(groups),
    ]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def _machines(heads: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for head in heads:
        versions = ", ".join(f"{name} {it}" for name, it in head["versions"].items())
        device = ", ".join(filter(None, [head["processor"], head["gpu"]]))
        rows.append(
            [device, str(head["threads"]), versions, _commit(head["commit"]), head["date"][:16]]
        )
    return _table(["device", "CPU threads", "versions", "commit", "date"], rows)


def _commit(info: dict[str, Any]) -> str:
    short = str(info.get("id", "unknown"))[:12]
    return f"{short}, with changes" if info.get("dirty") else short


def _goals(groups: Groups) -> Iterator[str]:
    for device, name in DEVICES.items():
        rows = [_goal(goal, groups) for goal in GOALS if goal.device == device]
        yield from [f"## Goals on the {name}", ""]
        yield from _table(["goal", "must", "stretch", "measured", "verdict"], rows)


def _goal(goal: Goal, groups: Groups) -> list[str]:
    value = goal.measure(groups)
    sign = "at most " if goal.at_most else ""
    stretch = "" if goal.stretch is None else f"{sign}{goal.stretch:g}{goal.unit}"
    found = "" if value is None else f"{value:.3g}{goal.unit}"
    return [goal.title, f"{sign}{goal.must:g}{goal.unit}", stretch, found, goal.verdict(value)]


def _once(groups: Groups) -> Iterator[str]:
    """Rounding once: providers down, shapes across."""
    for device, name in DEVICES.items():
        some = {
            title.removeprefix(f"{ONCE}{device}, "): group
            for title, group in groups.items()
            if title.startswith(f"{ONCE}{device},")
        }
        if not some:
            continue
        providers = list(dict.fromkeys(row for group in some.values() for row in group))
        yield from [f"## Rounding once, on the {name}", "", "cdlm's time, and others' ratios:", ""]
        rows = [[who, *(_cell(group, who) for group in some.values())] for who in providers]
        yield from _table(["provider", *some], rows)
        yield from ["Wrong tokens:", ""]
        rows = [
            [who, *(mistakes(group[who]) if who in group else "" for group in some.values())]
            for who in providers
        ]
        yield from _table(["provider", *some], rows)


def _cell(group: dict[str, Row], provider: str) -> str:
    row = group.get(provider)
    if row is None:
        return ""
    found = times(row, group)
    return duration(row.seconds) if row.base or found is None else f"{found:.2f}x"


def _others(groups: Groups) -> Iterator[str]:
    """Everything else: one table."""
    yield from ["## Whole runs", ""]
    rows = [
        [name, row.provider, duration(row.seconds), _ratio(row, group), mistakes(row)]
        for name, group in groups.items()
        if not name.startswith(ONCE)
        for row in group.values()
    ]
    yield from _table(["work", "provider", "time", "ratio", "wrong tokens"], rows)


def _ratio(row: Row, group: dict[str, Row]) -> str:
    found = times(row, group)
    return "" if found is None else f"{found:.2f}x"


# ------------------------------------------------------------------------------------- the plot


def plot(groups: Groups, path: Path) -> None:
    """Each provider's ratio at every shape of rounding once, a panel for each kind of device."""
    from matplotlib.figure import Figure

    some = {
        device: {name: group for name, group in groups.items() if name.startswith(ONCE + device)}
        for device in DEVICES
    }
    panels = {device: found for device, found in some.items() if found}
    high = 1.5 + 0.45 * sum(len(found) for found in panels.values())
    figure = Figure(figsize=(9, max(high, 3)), layout="constrained")
    sizes = [len(found) for found in panels.values()] or [1]
    axes = figure.subplots(len(sizes), 1, squeeze=False, height_ratios=sizes)[:, 0]
    for axis, (device, found) in zip(axes, panels.items(), strict=False):
        _panel(axis, found)
        axis.set_title(f"Rounding to the nearest word, {DEVICES[device]}", loc="left")
        axis.set_xlabel("time over cdlm's (log scale; right of 1: cdlm is faster)")
    figure.savefig(path, dpi=130)


def _panel(axis: Any, found: Groups) -> None:
    providers = list(dict.fromkeys(row for group in found.values() for row in group))
    for i, provider in enumerate(it for it in providers if it != OURS):
        points = [
            (row_times, -y)
            for y, group in enumerate(found.values())
            if provider in group and (row_times := times(group[provider], group)) is not None
        ]
        if points:
            axis.plot(*zip(*points, strict=True), "osD^vP*Xhp<"[i % 11], label=provider)
    axis.axvline(1, color="0.6", linewidth=1)
    axis.set_xscale("log")
    axis.set_yticks([-y for y in range(len(found))], [_label(it) for it in found.items()])
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)


def _label(item: tuple[str, dict[str, Row]]) -> str:
    name, group = item
    ours = base(group)
    short = name.removeprefix(ONCE).partition(", ")[2]
    return short if ours is None else f"{short}: {duration(ours.seconds)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--into", type=Path, default=HERE, help="folder of RESULTS.md and .png")
    given = parser.parse_args()
    heads, groups = read(given.files)
    given.into.mkdir(parents=True, exist_ok=True)
    (given.into / "RESULTS.md").write_text(page(heads, groups), encoding="utf-8")
    plot(groups, given.into / "RESULTS.png")
    print(given.into / "RESULTS.md")


if __name__ == "__main__":
    main()
