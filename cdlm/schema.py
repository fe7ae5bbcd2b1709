"""What values a parameter may take: annotations from source, in words, and against values.

The set is closed: bool, int, float, str, None, Literal, unions, list, tuple, and the aliases of
cdlm.values. That lets `cdlm list` and `cdlm check` answer without importing a component. Matching
is done here and not by pydantic, which takes 120 ms to import and build its models, and fails when
any distribution on the machine has a malformed entry_points.txt.
"""

from __future__ import annotations

import ast
import math
from types import EllipsisType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cdlm import values
from cdlm.values import Bound, Of

ALIASES = {name: it for name, it in vars(values).items() if get_origin(it) is Annotated}
PLAIN = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "tuple": tuple}
KNOWN: dict[str, Any] = {**PLAIN, "Literal": Literal, **ALIASES}

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    tuple: "a list",
}


class Misfit(ValueError):
    """A value that its parameter can't take."""


def read(node: ast.expr) -> Any:
    """The annotation that this piece of source says. Raises ValueError outside the closed set."""
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str(text)):  # a quoted annotation
            return read(ast.parse(text, mode="eval").body)
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in KNOWN:
            return KNOWN[name]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[read(left), read(right)]  # noqa: UP007 - built from two variables
        case ast.Subscript(value=value, slice=inner):
            return _subscripted(read(value), inner)
    raise ValueError(
        f"{ast.unparse(node)} is not among {', '.join(KNOWN)}, None and unions of these"
    )


def _subscripted(outer: Any, inner: ast.expr) -> Any:
    items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if outer is Literal:
        return Literal[tuple(ast.literal_eval(item) for item in items)]
    if outer not in (list, tuple):
        raise ValueError(f"{ast.unparse(inner)}: only list, tuple and Literal take brackets")
    return outer[tuple(_item(item) for item in items)]


def _item(node: ast.expr) -> Any:
    return ... if isinstance(node, ast.Constant) and node.value is ... else read(node)


def words(annotation: Any) -> str:
    """The annotation as a person says it: "a whole number above 0". Raises ValueError."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if origin is Annotated and isinstance(inner[1], Of):
        return f"a table that picks a {inner[1].kind}"
    if origin is Annotated and all(isinstance(bound, Bound) for bound in inner[1:]):
        return f"{words(inner[0])} {' and '.join(map(str, inner[1:]))}"
    if origin is Literal:
        return " or ".join(f'"{it}"' if isinstance(it, str) else str(it) for it in inner)
    if origin in (Union, UnionType):
        return " or ".join(words(it) for it in inner if it is not NoneType)
    if origin is list or (origin is tuple and inner[-1] is ...):
        return f"a list, each item {words(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)}: {'; '.join(map(words, inner))}"
    raise ValueError(f"{annotation!r} is not an annotation that parameters may have")


def kind_of(annotation: Any) -> str | None:
    """The kind of component that a parameter's value, or each item of it, picks."""
    for it in (annotation, *get_args(annotation)):
        if get_origin(it) is Annotated and isinstance(get_args(it)[1], Of):
            return get_args(it)[1].kind
        if isinstance(it, Of):
            return it.kind
    return None


def fit(value: Any, annotation: Any) -> Any:
    """The value as the parameter takes it: a whole number may become float, a list a tuple.

    Nothing else is converted. Raises Misfit.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated and isinstance(inner[1], Of):
        if not isinstance(value, dict):
            raise Misfit(value)
        return value
    if origin is Annotated:
        return _within(fit(value, inner[0]), inner[1:])
    if origin in (Union, UnionType):
        return _first(value, sorted(inner, key=lambda it: type(value) is not it))
    if list in (origin, annotation) or tuple in (origin, annotation):
        return _sequence(value, origin or annotation, inner)
    if origin is Literal:
        same = any(type(it) is type(value) and it == value for it in inner)
    elif annotation is float:
        same, value = type(value) in (int, float) and math.isfinite(value), _as_float(value)
    else:
        same = type(value) is (NoneType if annotation is None else annotation)
    if not same:
        raise Misfit(value)
    return value


def _as_float(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _within(value: Any, bounds: tuple[Any, ...]) -> Any:
    if not all(bound.keeps(value) for bound in bounds):
        raise Misfit(value)
    return value


def _first(value: Any, annotations: list[Any]) -> Any:
    for annotation in annotations:
        try:
            return fit(value, annotation)
        except Misfit:
            continue
    raise Misfit(value)


def _sequence(value: Any, outer: type, inner: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        raise Misfit(value)
    if not inner:
        return outer(value)
    if outer is list or isinstance(inner[-1], EllipsisType):
        inner = (inner[0],) * len(value)
    if len(inner) != len(value):
        raise Misfit(value)
    return outer(fit(item, annotation) for item, annotation in zip(value, inner, strict=True))


def options(annotation: Any) -> list[str]:
    """The texts that a Literal, alone or in a union, allows."""
    if get_origin(annotation) is Literal:
        return [it for it in get_args(annotation) if isinstance(it, str)]
    if get_origin(annotation) in (Union, UnionType):
        return [it for inner in get_args(annotation) for it in options(inner)]
    return []


def stand_in(annotation: Any) -> Any:
    """A value that fits, for examples: every alias of cdlm.values takes 1 or 0.5."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return {"use": "..."} if isinstance(inner[1], Of) else stand_in(inner[0])
    if origin is Literal:
        return inner[0]
    if origin in (Union, UnionType):
        return stand_in(next(it for it in inner if it is not NoneType))
    if origin is tuple and inner[-1] is not ...:
        return [stand_in(it) for it in inner]
    if list in (origin, annotation) or tuple in (origin, annotation):
        return [stand_in(inner[0])] if inner else []
    return {bool: True, int: 1, float: 0.5, str: "..."}[annotation]
