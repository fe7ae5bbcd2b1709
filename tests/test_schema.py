"""Annotations mean the same in source, in words, and against values."""

from __future__ import annotations

import ast
from typing import Any, Literal

import pytest

from cdlm import schema
from cdlm.values import Above0, Count, Fraction, Positive, Share

SOURCES: list[tuple[str, Any]] = [
    ("int", int),
    ("str | None", str | None),
    ("'str | None'", str | None),
    ("Literal['a', 'b']", Literal["a", "b"]),
    ("typing.Literal['a'] | int", Literal["a"] | int),
    ("list[int]", list[int]),
    ("tuple[float, ...]", tuple[float, ...]),
    ("tuple[int, str]", tuple[int, str]),
    ("Positive", Positive),
    ("values.Positive | None", Positive | None),
    ("list[Share]", list[Share]),
]


@pytest.mark.parametrize(("source", "annotation"), SOURCES)
def test_source_reads_as_python_reads_it(source: str, annotation: Any) -> None:
    assert schema.read(ast.parse(source, mode="eval").body) == annotation


@pytest.mark.parametrize(
    "source", ["Path", "dict[str, int]", "Callable[[], int]", "__import__('os')", "int[str]", "1"]
)
def test_other_annotations_are_refused(source: str) -> None:
    with pytest.raises(ValueError):
        schema.read(ast.parse(source, mode="eval").body)


FITS = [
    (3, int, 3),
    (3, float, 3.0),
    (True, bool, True),
    ("a", str, "a"),
    ("a", Literal["a", "b"], "a"),
    (None, int | None, None),
    (3, float | int, 3),
    (3, int | float, 3),
    ([1, 2], list[float], [1.0, 2.0]),
    ([1, 2], tuple[int, ...], (1, 2)),
    ([[1, 2]], list[tuple[int, int]], [(1, 2)]),
    ([1, "a"], tuple[int, str], (1, "a")),
    ([1], list, [1]),
    (0, Count, 0),
    (1, Fraction, 1.0),
]


@pytest.mark.parametrize(("value", "annotation", "taken"), FITS)
def test_a_fitting_value_is_taken(value: Any, annotation: Any, taken: Any) -> None:
    fitted = schema.fit(value, annotation)
    assert fitted == taken
    assert type(fitted) is type(taken)


MISFITS = [
    (3.0, int),
    (True, int),
    (True, float),
    (1, bool),
    ("3", int),
    (3, str),
    (float("nan"), float),
    (float("inf"), Above0),
    (True, Literal[1]),
    ("c", Literal["a", "b"]),
    (None, int),
    (0, Positive),
    (1.0, Share),
    (-0.1, Fraction),
    (0, Above0),
    (1, list[int]),
    ([1, "a"], list[int]),
    ([1], tuple[int, int]),
    ({}, list),
    (0, Positive | None),
]


@pytest.mark.parametrize(("value", "annotation"), MISFITS)
def test_a_misfit_is_refused(value: Any, annotation: Any) -> None:
    with pytest.raises(schema.Misfit):
        schema.fit(value, annotation)


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (Positive, "a whole number above 0"),
        (Share, "a number at least 0 and below 1"),
        (int | None, "a whole number"),
        (Literal["a", "b"], '"a" or "b"'),
        (list[str], "a list, each item a text"),
        (tuple[int, bool], "a list of 2: a whole number; true or false"),
    ],
)
def test_words(annotation: Any, said: str) -> None:
    assert schema.words(annotation) == said


@pytest.mark.parametrize("annotation", [it for _, it in SOURCES] + list(schema.ALIASES.values()))
def test_a_stand_in_fits(annotation: Any) -> None:
    schema.fit(schema.stand_in(annotation), annotation)
