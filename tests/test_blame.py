"""An error in a plugin's code names the component and the distribution, whoever called it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cdlm import blame
from cdlm.errors import PluginError
from cdlm.registry import Entry

TEXT = """
def half(x):
    return x / 0

class Film:
    def __call__(self, x):
        return half(x)

    def ask(self, network):
        return network.answer()

class Token:
    def __call__(self, x):
        return Film()(x)
"""


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "zz_film.py").write_text(TEXT)
    monkeypatch.syspath_prepend(tmp_path)
    import zz_film  # type: ignore[import-not-found]

    yield zz_film
    del sys.modules["zz_film"]


ENTRIES = [
    Entry("schedule", "cosine", "cdlm.parts.schedules:Cosine", "cdlm 0.1.0"),
    Entry("conditioning", "token", "zz_film:Token", "zz-film 0.1"),
    Entry("conditioning", "film", "zz_film:Film", "zz-film 0.1"),
    Entry("target", "gone", "not_there:Gone", "not-there 0.1"),
]


def raised(call: object, *given: object) -> PluginError | None:
    with pytest.raises(Exception) as error:
        call(*given)  # type: ignore[operator]
    return blame.blamed(error.value, ENTRIES)


def test_the_component_its_owner_and_its_lines_are_named(film: ModuleType) -> None:
    first, *places, last = str(raised(film.Film(), 1)).split("\n    ")
    assert first == (
        'conditioning "film" of zz-film 0.1 (zz_film:Film): '
        "it raised ZeroDivisionError: division by zero"
    )
    assert [place.rpartition("zz_film.py:")[2] for place in places] == [
        "7, in __call__: return half(x)",
        "3, in half: return x / 0",
    ]
    assert "CDLM_TRACEBACK=1" in last


def test_of_two_components_it_is_the_inner_one(film: ModuleType) -> None:
    assert 'conditioning "film"' in str(raised(film.Token(), 1))


def test_a_function_of_the_package_names_the_owner(film: ModuleType) -> None:
    assert str(raised(film.half, 1)).startswith("zz-film 0.1: it raised ZeroDivisionError")


def test_a_component_that_asks_is_not_to_blame_for_the_answer(film: ModuleType) -> None:
    namespace = {"__name__": "cdlm.network"}
    exec("class Network:\n    def answer(self): return 1 / 0", namespace)
    network = namespace["Network"]()  # type: ignore[operator]
    assert raised(film.Film().ask, network) is None
    assert [it.name for it in blame.suspects(ENTRIES)] == ["token", "film"]


def test_what_is_not_a_plugins_is_nobodys(film: ModuleType) -> None:
    assert raised(lambda: 1 / 0) is None
