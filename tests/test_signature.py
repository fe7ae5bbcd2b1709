"""What is read from a class's source equals what Python makes of the class."""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdlm import signature
from cdlm.errors import PluginError
from cdlm.registry import Entry
from cdlm.signature import REQUIRED, Spec
from cdlm.values import Positive

Write = Callable[..., str]
count = iter(range(10**6))  # modules are read once for each name, so each test has its own


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a package of the given files and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def write(**files: str) -> str:
        name = f"signature_package_{next(count)}"
        names.append(name)
        (tmp_path / name).mkdir()
        for file, text in {"__init__": "", **files}.items():
            (tmp_path / name / f"{file}.py").write_text(textwrap.dedent(text))
        return name

    yield write
    for module in [it for it in sys.modules if it.split(".")[0] in names]:
        del sys.modules[module]


def read(target: str) -> Spec:
    return signature.read(Entry("schedule", "film", target, "cdlm-film 0.1"))


DATACLASS = '''
    from dataclasses import dataclass, field
    from typing import ClassVar, Literal

    raise RuntimeError("this module was imported")

    FLOOR = 1e-3

    @dataclass(frozen=True, kw_only=True)
    class Cosine:
        """Falls along a cosine.

        More words.
        """

        writes: ClassVar[set[str]] = {"tokens", "time"}
        reads = frozenset()
        root: str  # where it stands
        offset: float = 1     # keeps "sigma" # from vanishing
        floor: float = FLOOR
        mode: Literal["a", "b"] = "b"  # naïve é
        sizes: tuple[int, ...] = (1, 2)
        names: list[str] = field(default_factory=list)
        more: list[int] = field(default_factory=lambda: [1, 2])
        steps: "Positive | None" = None
        cache: int = field(default=0, init=False)
        dims: object = None
'''


def test_a_dataclass_is_read_without_importing_it(package: Write) -> None:
    spec = read(f"{package(film=DATACLASS)}.film:Cosine")
    assert spec.doc == "Falls along a cosine.\n\nMore words."
    assert spec.sets == {"writes": {"tokens", "time"}, "reads": frozenset()}
    assert {it.name: it.default for it in spec.parameters} == {
        "root": REQUIRED,
        "offset": 1.0,
        "floor": 1e-3,
        "mode": "b",
        "sizes": (1, 2),
        "names": [],
        "more": [1, 2],
        "steps": None,
    }


def test_comments_are_those_at_the_end_of_the_line(package: Write) -> None:
    spec = read(f"{package(film=DATACLASS)}.film:Cosine")
    comments = {it.name: it.comment for it in spec.parameters if it.comment}
    assert comments == {
        "root": "where it stands",
        "offset": 'keeps "sigma" # from vanishing',
        "mode": "naïve é",
    }


def test_an_init_is_read(package: Write) -> None:
    text = '''
    from torch_that_is_not_there import nn
    from cdlm.values import Positive

    class Film(nn.Module):
        """A module."""

        def __init__(
            self,
            *,
            dims: Dims,
            layers: Positive,  # of the transformer
            scale: float = 1.5,  # of the context
        ) -> None:
            super().__init__()
    '''
    spec = read(f"{package(film=text)}.film:Film")
    assert [(it.name, it.annotation, it.default, it.comment) for it in spec.parameters] == [
        ("layers", Positive, REQUIRED, "of the transformer"),
        ("scale", float, 1.5, "of the context"),
    ]


def test_a_class_without_parameters(package: Write) -> None:
    assert read(f"{package(film='class A: pass')}.film:A").parameters == ()


def test_fields_of_a_base_in_the_same_file_come_first(package: Write) -> None:
    text = """
    from dataclasses import dataclass

    @dataclass
    class Common:
        a: int = 1
        b: int = 2

    @dataclass
    class Film(Common):
        c: int = 3
        a: int = 4
    """
    spec = read(f"{package(film=text)}.film:Film")
    assert [(it.name, it.default) for it in spec.parameters] == [("a", 4), ("b", 2), ("c", 3)]


@pytest.mark.parametrize("line", ["from .deep import Deep as Film", "from {}.deep import Film"])
def test_a_re_export_is_followed(package: Write, line: str) -> None:
    deep = "raise RuntimeError\nclass Film:\n    '''Deep.'''\nclass Deep(Film):\n    '''Deep.'''\n"
    name = package(deep=deep, film="")
    folder = Path(importlib.import_module(name).__path__[0])
    (folder / "film.py").write_text(line.format(name))
    assert read(f"{name}.film:Film").doc == "Deep."


GENERATED = """
from dataclasses import dataclass
from cdlm.values import Positive

def make():
    @dataclass(kw_only=True)
    class Film:
        "Made."
        writes = {"tokens"}
        steps: Positive
        scale: float = 2
    return Film

Film = make()
"""


def test_a_class_that_source_does_not_show_is_imported(package: Write) -> None:
    spec = read(f"{package(film=GENERATED)}.film:Film")
    assert [(it.name, it.annotation, it.default) for it in spec.parameters] == [
        ("steps", Positive, REQUIRED),
        ("scale", float, 2.0),
    ]
    assert (spec.doc, spec.sets) == ("Made.", {"writes": {"tokens"}})


def test_a_dataclass_with_a_base_elsewhere_is_imported(package: Write) -> None:
    base = "from dataclasses import dataclass\n@dataclass\nclass Base:\n    a: int = 1\n"
    name = package(base=base)
    film = f"import {name}.base\nfrom dataclasses import dataclass\n@dataclass\n"
    film += f"class Film({name}.base.Base):\n    b: int = 2\n"
    (Path(importlib.import_module(name).__path__[0]) / "film.py").write_text(film)
    assert [it.name for it in read(f"{name}.film:Film").parameters] == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("x: Path = None", 'class Film, parameter "x": Path is not among'),
        ("x: int = len('a')", "default len('a') is not a literal"),
        ("x: int = OTHER", "default OTHER is not a literal"),
        ("x: int = 'a'", "default 'a' is not a whole number"),
        ("x: Positive = 0", "default 0 is not a whole number above 0"),
        ("x: float = 1e999", "default inf is not a number"),
        ("x: list[int] = field(default_factory=make)", "default_factory make is not a literal"),
        ("x: tuple[()] = ()", "IndexError"),
        ("use: int = 1", "that key names the component"),
        ("writes = compute()", "writes must be a literal set of texts"),
        ("writes = {1}", "writes must be a literal set of texts"),
        ("def __init__(self, x): pass", "it has no annotation"),
        ("def __init__(self, **rest): pass", "its signature is its schema"),
        ("x: int = (", "SyntaxError"),
    ],
)
def test_what_no_component_may_have_names_owner_and_parameter(
    package: Write, body: str, said: str
) -> None:
    name = package(film=f"@dataclass\nclass Film:\n    {body}\n")
    with pytest.raises(PluginError) as caught:
        read(f"{name}.film:Film")
    assert said in str(caught.value)
    assert 'schedule "film" of cdlm-film 0.1' in str(caught.value)


@pytest.mark.parametrize("target", ["no_such_package.film:Film", "{}.none:Film", "{}:Film"])
def test_a_target_that_is_not_there_names_the_owner(package: Write, target: str) -> None:
    with pytest.raises(PluginError, match=r"cdlm-film 0\.1"):
        read(target.format(package()))


@pytest.mark.parametrize("statement", ["raise SystemExit(3)", "raise RuntimeError('no')", "1 +"])
def test_a_package_that_fails_names_the_owner(package: Write, statement: str) -> None:
    name = package()
    (Path(importlib.util.find_spec(name).origin)).write_text(statement)  # type: ignore[union-attr, arg-type]
    with pytest.raises(PluginError, match=r"cdlm-film 0\.1"):
        read(f"{name}.film:Film")


def test_source_says_what_inspect_says() -> None:
    """The two ways of reading agree on a class that both can read."""
    target = "cdlm.recipe:TrainTable"
    entry = Entry("table", "train", target, "cdlm")
    known: dict[str, Any] = {it.name: it.default for it in signature.read(entry).parameters}
    inspected = inspect.signature(entry.load()).parameters
    assert known == {name: it.default for name, it in inspected.items()}
    assert all(it.comment for it in signature.read(entry).parameters)
