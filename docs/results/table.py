"""Makes the tables of this folder anew from the records beside them: `python table.py`.

A record is what `cdlm run` leaves as summary.json in a run's folder, or `cdlm eval` as eval/*.json,
copied into the folder that is called as the page is. In a page a table stands between

    <!-- table
    record | what it is
    record record record | of several seeds, their mean
    ...
    -->
    <!-- end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

PLACE = re.compile(r"(<!-- table\n(.*?)-->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = {
    "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4",
    "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider_d": "CIDEr-D", "distinct_2": "distinct-2",
    "vocabulary": "words", "novel_captions": "novel", "repeated_bigrams": "repeated",
}  # fmt: skip
WHOLE = {"vocabulary"}  # counts
ELSEWHERE = ("encoder=", "dataset.root=", "metric=", "evaluate.")  # what no caption depends on

Record: TypeAlias = dict[str, Any]
Rows: TypeAlias = list[tuple[str, dict[str, Record]]]  # what it is, and its records by name


def filled(text: str, folder: Path) -> str:
    """The page with every table made from the records in this folder."""

    def table(found: re.Match[str]) -> str:
        lines = [line.partition("|") for line in found[2].splitlines()]
        named = [(names.split(), what.strip()) for names, _, what in lines]
        rows = [(what, {it: _read(folder / f"{it}.json") for it in names}) for names, what in named]
        return "\n".join([found[1].rstrip(), *_scores(rows), "", *_origins(rows), found[3]])

    return PLACE.sub(table, text)


def _read(path: Path) -> Record:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _scores(rows: Rows) -> Iterator[str]:
    """What there is: its scores, how fast it was sampled, and how large its model is."""
    yield "| | " + " | ".join(COLUMNS.values()) + " | N | ms a caption | weights |"
    yield "|---" * (len(COLUMNS) + 4) + "|"
    for what, named in rows:
        records = list(named.values())
        cells = [_cell(records, name) for name in COLUMNS]
        speed = mean(1000 * it["sampling_seconds"] / it["n"] for it in records)
        many, weights = f"{records[0]['n']:,}", f"{records[0]['parameters'] / 1e6:.2f} M"
        yield f"| {what} | " + " | ".join([*cells, many, f"{speed:.0f}", weights]) + " |"


def _cell(records: list[Record], name: str) -> str:
    """Of one run a score and half its interval; of several their mean, the least and the most."""
    values = [it["scores"].get(name) for it in records]
    if None in values:
        return "n/a"
    if name in WHOLE:
        return f"{mean(values):,.0f}"
    if name not in ("bleu_4", "cider_d"):
        return f"{mean(values):.3f}"
    if len(values) > 1:
        return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
    low, high = records[0]["intervals"].get(name, (None, None))
    return f"{values[0]:.3f}" + (f" ± {(high - low) / 2:.3f}" if low else "")


def _origins(rows: Rows) -> Iterator[str]:
    """Where each row is from, a line for each of its runs."""
    yield "| | run | seed | step | trained | device | commit | date |"
    yield "|---|---|---|---|---|---|---|---|"
    for what, named in rows:
        for name, it in named.items():
            all_of = [it, *it.get("members", [])]
            spent = [one["training_seconds"] for one in all_of]
            minutes = "?" if None in spent else f"{sum(spent) / 60:.0f} min"
            seeds = ", ".join(str(one["seed"]) for one in all_of)
            sets = [text for text in it["sets"] if not text.startswith(ELSEWHERE)]
            run = f"`{name}.json`: {it['recipe']}" + "".join(f" `{text}`" for text in sets)
            facts = [seeds, it["step"], minutes, it["device"], it["commit"][:7], it["date"][:10]]
            yield f"| {what} | {run} | " + " | ".join(map(str, facts)) + " |"


if __name__ == "__main__":
    for page in sorted(Path(__file__).parent.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        page.write_text(filled(text, page.with_suffix("")), encoding="utf-8")
