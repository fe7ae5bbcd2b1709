"""What docs/plugins.md shows is what plugins/cdlm-film is, and following it leads there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from cdlm import parts, plugins, scaffold
from cdlm.testing import laws

ROOT = Path(__file__).parents[1]
FILM = ROOT / "plugins" / "cdlm-film"
TEXT = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^`([\w./-]+)`\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
WRITTEN = (".py", ".toml", ".md")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the machine of someone who has no cdlm-film yet."""
    monkeypatch.setattr(plugins, "load", lambda: plugins.gather(parts, []))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.suffix in WRITTEN)
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in found}


def test_the_page_shows_the_files_that_matter() -> None:
    assert set(BLOCKS) >= {
        "src/cdlm_film/__init__.py", "src/cdlm_film/film.py", "tests/test_film.py",
        "recipes/film.toml", "recipes/studies/film.toml", "pyproject.toml",
    }  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_of_the_page_is_the_file_that_it_names(name: str) -> None:
    assert BLOCKS[name] == (FILM / name).read_text("utf-8")


def test_who_follows_the_page_has_the_package(tmp_path: Path, nothing_installed: None) -> None:
    place = scaffold.plugin("cdlm-film", "conditioning", tmp_path)
    for name, text in BLOCKS.items():
        assert (place / name).is_file(), f"cdlm new writes no {name}"
        (place / name).write_text(text, encoding="utf-8")
    assert files(place) == files(FILM)


def test_the_numbers_on_the_page_are_right() -> None:
    assert "one law of nine" in TEXT and len(laws("conditioning")) == 9
    lines = BLOCKS["src/cdlm_film/film.py"].splitlines()
    component = lines[lines.index("class Film(nn.Module):") :]
    assert len(component) < 30


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(\.\./([\w./-]+)\)", TEXT))))
def test_a_link_of_the_page_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()
