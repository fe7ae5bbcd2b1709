"""Progress of long work: a bar on a terminal, a line now and then elsewhere.

Code that works long takes a `Tell` and calls it; it never prints. The command line passes one of
`bars()`; a library user passes nothing and hears nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[str, int, int, str], None]
"""(what, done, total, detail): `done` of `total` units of `what`; detail: a short remark, or ""."""

EVERY_S = 15.0  # seconds between lines where there is no terminal


def silent(what: str, done: int, total: int, detail: str = "") -> None:
    """The Tell that says nothing."""


@contextmanager
def bars() -> Iterator[Tell]:
    """A Tell that draws on standard error, as suits it: rich bars, or sparse lines."""
    if sys.stderr.isatty():
        with _rich_bars() as tell:
            yield tell
    else:
        yield _lines()


@contextmanager
def _rich_bars() -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, object] = {}

        def tell(what: str, done: int, total: int, detail: str = "") -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, detail=detail)
            progress.update(tasks[what], completed=done, total=total, detail=detail)  # type: ignore[arg-type]

        yield tell


def _lines() -> Tell:
    last: dict[str, float] = {}

    def tell(what: str, done: int, total: int, detail: str = "") -> None:
        now = time.monotonic()
        if done >= total or now - last.get(what, now - EVERY_S) >= EVERY_S:
            last[what] = now
            print(f"{what}: {done:,}/{total:,} {detail}".rstrip(), file=sys.stderr, flush=True)

    return tell
