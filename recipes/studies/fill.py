"""Puts the tables that studies wrote into README.md: `python recipes/studies/fill.py RUNS`.

Each lies at RUNS/<name>/table.md, and goes between `<!-- table <name> -->` and `<!-- end -->`. What
has no table yet stays as it is.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PLACE = re.compile(r"(<!-- table ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, runs: Path) -> str:
    """The text with every table that there is."""

    def table(found: re.Match[str]) -> str:
        path = runs / found[2] / "table.md"
        if not path.is_file():
            return found[0]
        return f"{found[1]}{path.read_text(encoding='utf-8').rstrip()}\n{found[3]}"

    return PLACE.sub(table, text)


if __name__ == "__main__":
    readme = Path(__file__).with_name("README.md")
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")
    readme.write_text(filled(readme.read_text(encoding="utf-8"), runs), encoding="utf-8")
