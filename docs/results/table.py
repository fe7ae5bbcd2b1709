"""Makes the tables of this folder anew from the records beside them: `python table.py`.

A record is what `cdlm run` leaves as summary.json in a run's folder, or `cdlm eval` as eval/*.json,
copied into the folder that is called as the page is. In a page a table stands between

    <!-- table
    record | what it is
    ...
    -->
    <!-- end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLACE = re.compile(r"(<!-- table\n(.*?)-->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = {
    "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4",
    "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider_d": "CIDEr-D", "distinct_2": "distinct-2",
    "vocabulary": "words", "novel_captions": "novel", "repeated_bigrams": "repeated",
}  # fmt: skip
WHOLE = {"vocabulary"}  # counts
ELSEWHERE = ("encoder=", "dataset.root=", "metric=", "evaluate.")  # what no caption depends on


def filled(text: str, folder: Path) -> str:
    """The page with every table made from the records in this folder."""

    def table(found: re.Match[str]) -> str:
        rows = [[part.strip() for part in line.split("|")] for line in found[2].splitlines()]
        records = [(name, what, _read(folder / f"{name}.json")) for name, what in rows]
        return "\n".join([found[1].rstrip(), *_scores(records), "", *_origins(records), found[3]])

    return PLACE.sub(table, text)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _scores(records: list[tuple[str, str, dict[str, Any]]]) -> Iterator[str]:
    """A row for each record: its scores, how fast it was sampled, and how large its model is."""
    yield "| | " + " | ".join(COLUMNS.values()) + " | N | ms a caption | weights |"
    yield "|---" * (len(COLUMNS) + 4) + "|"
    for _, what, record in records:
        cells = [_cell(record, name) for name in COLUMNS]
        speed = f"{1000 * record['sampling_seconds'] / record['n']:.0f}"
        ends = [f"{record['n']:,}", speed, f"{record['parameters'] / 1e6:.2f} M"]
        yield f"| {what} | " + " | ".join([*cells, *ends]) + " |"


def _cell(record: dict[str, Any], name: str) -> str:
    value = record["scores"].get(name)
    if value is None:
        return "n/a"
    if name in WHOLE:
        return f"{value:,.0f}"
    low, high = record["intervals"].get(name, (None, None))
    wide = f" ± {(high - low) / 2:.3f}" if name in ("bleu_4", "cider_d") and low else ""
    return f"{value:.3f}{wide}"


def _origins(records: list[tuple[str, str, dict[str, Any]]]) -> Iterator[str]:
    """Where each row is from."""
    yield "| | run | seed | step | trained | device | commit | date |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, what, it in records:
        minutes = (
            "?" if it["training_seconds"] is None else f"{it['training_seconds'] / 60:.0f} min"
        )
        sets = [text for text in it["sets"] if not text.startswith(ELSEWHERE)]
        run = f"`{name}.json`: {it['recipe']}" + "".join(f" `{text}`" for text in sets)
        facts = [it["seed"], it["step"], minutes, it["device"]]
        yield (
            "| "
            + " | ".join(map(str, [what, run, *facts, it["commit"][:7], it["date"][:10]]))
            + " |"
        )


if __name__ == "__main__":
    for page in sorted(Path(__file__).parent.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        page.write_text(filled(text, page.with_suffix("")), encoding="utf-8")
