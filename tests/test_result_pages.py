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


@pytest.mark.parametrize("path", RECORDS, ids=lambda it: it.stem)
def test_a_record_is_in_a_page_and_says_where_it_is_from(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    assert f"`{path.name}`" in path.parent.with_suffix(".md").read_text(encoding="utf-8")
    assert all(record[key] for key in ("recipe", "commit", "device", "date", "protocol", "n"))
    assert "/" not in str(record["not_scored"])
