"""Which components of a recipe are plugins', and whether their code is still what it was.

A version does not tell: who develops a plugin changes its code every day, and its version seldom.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from cdlm import plugins, schema, signature
from cdlm.recipe import Recipe
from cdlm.registry import Entry

Origin = dict[str, str]
"""{"owner": distribution and version, "code": SHA-256 of the package's Python files}."""


def used(recipe: Recipe) -> dict[str, Origin]:
    """The origin of every plugin's component in the recipe, by "kind name"."""
    entries = [entry for entry in _entries(recipe) if not entry.built_in]
    return {f"{it.kind} {it.name}": {"owner": it.owner, "code": code(it)} for it in entries}


def _entries(recipe: Recipe) -> Iterator[Entry]:
    for choice in recipe.choices.values():
        for one in choice if isinstance(choice, list) else [choice]:
            yield from _within(one.kind, one.table())


def _within(kind: str, table: Mapping[str, Any]) -> Iterator[Entry]:
    """The entry of a component's table, and those of the components that it is made of."""
    entry = plugins.load().registry.get(kind, table["use"])
    yield entry
    for parameter in signature.read(entry).parameters:
        inner, value = schema.kind_of(parameter.annotation), table.get(parameter.name)
        if inner and value:
            for item in value if isinstance(value, list | tuple) else [value]:
                yield from _within(inner, item)


def code(entry: Entry) -> str:
    """SHA-256 of the Python files of the package that the entry's class stands in."""
    digest = sha256()
    for path in _files(entry.target.partition(":")[0].partition(".")[0]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def _files(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None:
        return []
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    if folders:
        return sorted(path for folder in folders for path in folder.rglob("*.py"))
    return [Path(spec.origin)] if spec.origin and Path(spec.origin).is_file() else []


def changes(before: Mapping[str, Origin], now: Mapping[str, Origin]) -> list[str]:
    """What to tell of components that are not as they were: a line for each."""
    both = [(name, before[name], now[name]) for name in now if name in before]
    return [
        f"{name}: this run began with {_origin(old)}; here is {_origin(new)}"
        for name, old, new in both
        if old != new
    ]


def missing(before: Mapping[str, Origin]) -> dict[str, list[str]]:
    """Of the distributions whose components a run was made with, those that bring none here.

    -> the components that are thus missing, by the distribution's name and version.
    """
    registry, gone = plugins.load().registry, dict[str, list[str]]()
    for name, origin in before.items():
        kind, _, component = name.partition(" ")
        if component not in registry.names(kind):
            gone.setdefault(origin.get("owner", "?"), []).append(name)
    return gone


def _origin(it: Origin) -> str:
    return f"{it.get('owner', '?')} (code {it.get('code', '?')[:8]})"
