"""Ratios as text, for the terminal and for RESULTS.md."""

from __future__ import annotations

from collections.abc import Iterator

from goals import Groups, Row, base

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def duration(seconds: float) -> str:
    """With the unit that fits: 12.3 ms."""
    size, unit = next((it for it in UNITS if seconds >= it[0]), UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


def times(row: Row, group: dict[str, Row]) -> float | None:
    """How many times as long as the row of its group that others are compared with."""
    against = base(group)
    return None if against is None else row.seconds / against.seconds


def mistakes(row: Row) -> str:
    """Its wrong tokens, of how many."""
    if "wrong" not in row.info:
        return ""
    return f"{row.info['wrong']:,} of {row.info['rows']:,}"


def ratio_lines(groups: Groups) -> Iterator[str]:
    """A small table for each group."""
    for name, group in groups.items():
        yield ""
        yield name
        for row in group.values():
            found = times(row, group)
            many = f"{found:7.2f} x" if found is not None else " " * 9
            wrong = f"  wrong: {mistakes(row)}" if row.info.get("wrong") else ""
            yield f"  {row.provider:24} {duration(row.seconds):>9} {many}{wrong}"
