"""The tables of docs/results are what the records beside them say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "results"
PAGES = sorted(FOLDER.glob("*.md"))
RECORDS = sorted(FOLDER.glob("*/*.json"))


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_table", FOLDER / "table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda it: it.stem)
def test_a_page_has_the_tables_that_its_records_make(page: Path, table: ModuleType) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == table.filled(text, page.with_suffix(""))
    assert "<!-- table" in text


def test_several_seeds_are_a_mean_and_from_where_to_where(
    table: ModuleType, tmp_path: Path
) -> None:
    """And each of them is named; an ensemble's seeds and hours are those of all its members."""
    whole = json.loads(RECORDS[0].read_text(encoding="utf-8"))
    for name, value in (("one", 0.1), ("two", 0.25)):
        scores = dict.fromkeys(whole["scores"], value)
        members = [{"seed": 7, "training_seconds": 60.0}]
        record = whole | {"scores": scores, "seed": 3, "training_seconds": 90.0}
        (tmp_path / f"{name}.json").write_text(json.dumps(record | {"members": members}))
    page = table.filled("<!-- table\none two | both\n-->\n<!-- end -->", tmp_path)
    assert "| both | 0.175 | 0.175 | 0.175 | 0.175 (0.100 to 0.250) |" in page
    assert "`one.json`" in page and "`two.json`" in page
    assert page.count("| 3, 7 |") == 2 and page.count("| 2 min |") == 2


@pytest.mark.parametrize("path", RECORDS, ids=lambda it: it.stem)
def test_a_record_is_in_a_page_and_says_where_it_is_from(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    assert f"`{path.name}`" in path.parent.with_suffix(".md").read_text(encoding="utf-8")
    assert all(record[key] for key in ("recipe", "commit", "device", "date", "protocol", "n"))
    assert "/" not in str(record["not_scored"])
