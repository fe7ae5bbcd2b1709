"""TOML files that extend each other, and --set on top: one tree that knows each value's origin.

Tables merge by key; lists replace; a table with another `use` than the one below replaces it whole.
A table whose keys are numbers changes items of the list below: `loss.1.weight = 0.5`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdlm import toml
from cdlm.errors import Mistake, RecipeError, nearest
from cdlm.places import recipes_dir

MAX_BYTES = 256 * 1024  # a recipe is a few kilobytes
MAX_DEPTH = 20  # tables within tables; recipes need 3
SET = "--set"
SHIPPED = "cdlm:"  # in front of a recipe that ships with cdlm: extends = "cdlm:extra_token.toml"

Key = tuple[str, ...]
"""Where a value stands: ("conditioning", "1", "use")."""

HEADER = re.compile(r"\s*(\[\[?)([\w.\s-]+)\]")
ASSIGNMENT = re.compile(r"([\w.\s-]+)=")
PART = r"""(?:(?<![\w-])[\w-]+|"(?:[^"\\\n]|\\.){0,100}"|'[^'\n]{0,100}')[ \t]*\.[ \t]*"""
LONG_KEY = re.compile(f"(?:{PART}){{50}}")
"""A key of 50 parts. tomllib takes a minute for one of 50,000, so it is looked for beforehand."""


@dataclass(frozen=True)
class Tree:
    """Values as TOML gives them, and the origin of each: "recipes/base.toml:12", "--set"."""

    values: dict[str, Any]
    origins: dict[Key, str]
    older: frozenset[str] = frozenset()  # keys of layers below the one that chooses the process

    def place(self, key: Key) -> str:
        """How an error names the value at `key`: "recipes/base.toml:12, schedule.offset"."""
        return joined(self.origin(key), key)

    def origin(self, key: Key) -> str:
        """Where the value at `key` is from, or else the nearest table around it."""
        while key not in self.origins and key:
            key = key[:-1]
        return self.origins.get(key, "recipe")


def joined(origin: str, key: Key) -> str:
    """ "recipes/base.toml:12, schedule.offset", or "--set schedule.offset"."""
    dotted = ".".join(part if toml.BARE.fullmatch(part) else toml.text(part) for part in key)
    if len(dotted) > 100:
        dotted = f"{dotted[:97]}..."
    return f"{origin}{' ' if origin == SET else ', '}{dotted}" if key else origin


def read(path: Path) -> Tree:
    """The file, over the file that it extends, and so on. Raises RecipeError."""
    files: list[Tree] = []
    seen: list[Path] = []
    place, following = _shown(path), path
    while True:
        tree = parse(_text(following, place), place)
        if following.resolve() in seen:
            raise _mistake(place, "extends itself", " <- ".join(file.origins[()] for file in files))
        seen.append(following.resolve())
        files.append(tree)
        parent = tree.values.pop("extends", None)
        if parent is None:
            break
        following = _parent(tree, following, parent)
        place = _shown(following)
    return _stacked(files)


def _shown(path: Path) -> str:
    text = os.path.normpath(path)
    return text if text.isprintable() else ascii(text)


def _stacked(files: list[Tree]) -> Tree:
    """The files over each other; the first is on top."""
    tree = files[-1]
    for above in reversed(files[:-1]):
        tree = overlay(tree, above)
    return tree


def _parent(tree: Tree, child: Path, parent: Any) -> Path:
    if not isinstance(parent, str) or not parent:
        raise _mistake(
            tree.place(("extends",)),
            "expected the path of a recipe",
            f'like "../base.toml", or one that ships with cdlm: "{SHIPPED}extra_token.toml"',
        )
    if parent.startswith(SHIPPED):
        return recipes_dir() / parent.removeprefix(SHIPPED)
    return child.parent / parent


def _text(path: Path, place: str) -> str:
    """The file's text. Raises RecipeError for a file that is missing, no text, or too large."""
    try:
        if not path.exists():
            raise _mistake(place, "there is no such file", _near(path))
        if not path.is_file():
            raise _mistake(place, "this is not a file", "a recipe is a TOML file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise _mistake(place, "too large for a recipe", f"at most {MAX_BYTES // 1024} KiB")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _mistake(place, f"not UTF-8 at byte {error.start}", "save it as UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _mistake(place, f"can't be read: {getattr(error, 'strerror', error)}") from error


def _near(path: Path) -> str:
    """The recipes that are there instead."""
    if not path.parent.is_dir():
        return f"nor is there a folder {_shown(path.parent)}"
    return nearest(path.name, sorted(file.name for file in path.parent.glob("*.toml"))[:30])


def parse(text: str, place: str) -> Tree:
    """One file's text. Raises RecipeError for what is not TOML, or nested too deeply."""
    import tomllib

    if LONG_KEY.search(text):
        raise _mistake(place, f"nested deeper than {MAX_DEPTH}")
    try:
        values = tomllib.loads(text.replace("\r\n", "\n"))
    except RecursionError:
        raise _mistake(place, f"nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        said, _, where = str(error).partition(" (at ")
        at = f", {where.rstrip(')')}" if where else ""
        raise _mistake(f"{place}{at}", f"not valid TOML: {said}") from error
    if _depth(values) > MAX_DEPTH:
        raise _mistake(place, f"nested deeper than {MAX_DEPTH}")
    return Tree(values, _origins(values, _lines(text), place))


def _depth(value: Any) -> int:
    """How deep tables and lists are nested; counted without recursion, which has a limit."""
    depth, level = 0, [value]
    while level := [item for it in level for item in _children(it)]:
        depth += 1
        if depth > MAX_DEPTH:
            break
    return depth


def _children(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list | tuple) else []


def walk(value: Any, at: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every table, list and plain value within `value`, itself first, each with its key."""
    yield at, value
    if isinstance(value, dict):
        for name, item in value.items():
            yield from walk(item, (*at, name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from walk(item, (*at, str(index)))


def _origins(values: dict[str, Any], lines: dict[Key, int], place: str) -> dict[Key, str]:
    origins: dict[Key, str] = {}
    for key, _ in walk(values):
        line = lines.get(key)
        above = origins[key[:-1]] if key else place
        origins[key] = f"{place}:{line}" if line else above
    return origins


def _lines(text: str) -> dict[Key, int]:
    """The line on which each key stands, as far as a look at single lines tells."""
    lines: dict[Key, int] = {}
    seen: Counter[Key] = Counter()
    for key, number in _written(text):
        seen[key] += 1
        lines[key] = number
        for size in range(1, len(key)):  # the first key in a table stands for the table
            lines.setdefault(key[:size], number)
    # of a key seen twice, one stands in a text of several lines
    return {key: number for key, number in lines.items() if seen[key] < 2}


def _written(text: str) -> Iterator[tuple[Key, int]]:
    """Each `[table]`, `[[table]]` and `key =` at the start of a line, with the line's number."""
    items: Counter[Key] = Counter()
    table: Key = ()
    for number, line in enumerate(text.split("\n"), start=1):
        if header := HEADER.match(line):
            table = _split(header[2])
            if header[1] == "[[":
                items[table] += 1
                table = (*table, str(items[table] - 1))
            yield table, number
        elif assignment := ASSIGNMENT.match(line):
            yield (*table, *_split(assignment[1])), number


def _split(dotted: str) -> Key:
    return tuple(part.strip() for part in dotted.split("."))


# ---------------------------------------------------------------------------------- merging


def overlay(below: Tree, above: Tree) -> Tree:
    """Both trees in one; where both have a value, the one above counts."""
    older = below.values.keys() if _chooses_process(above.values) else below.older
    older = above.older | (older - above.values.keys())
    return _tree(_merge(below.values, above.values), below.origins, above.origins, older)


def _tree(
    values: dict[str, Any], below: dict[Key, str], above: dict[Key, str], older: Iterable[str]
) -> Tree:
    """The values, each with the origin of the upper layer that has it."""
    origins = {**below, **above}
    known = {key: origins[key] for key, _ in walk(values) if key in origins}
    return Tree(values, known, frozenset(older))


def _chooses_process(values: dict[str, Any]) -> bool:
    given = values.get("process")
    return isinstance(given, dict) and "use" in given


def _merge(below: Any, above: Any) -> Any:
    if isinstance(below, list) and isinstance(above, dict) and above:
        items = {str(i): it for i, it in enumerate(below)}
        if above.keys() <= items.keys():  # `loss.1.weight = 0.5` changes one item
            return list((items | {i: _merge(items[i], it) for i, it in above.items()}).values())
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if "use" in above and "use" in below and above["use"] != below["use"]:
        return above
    merged = {name: _merge(below[name], it) if name in below else it for name, it in above.items()}
    return {**below, **merged}


def key_of(text: str) -> Key:
    """What a --set is about: ("train", "steps") of "train.steps=500"."""
    return _split(text.partition("=")[0])


def assign(tree: Tree, sets: Sequence[str]) -> Tree:
    """The tree with each "key=value" put in. Raises RecipeError with all that can't be.

    Choices of a component (`schedule.use=linear`) come first, since they drop the parameters of
    the component that was there; otherwise later ones win.
    """
    if isinstance(sets, str):
        raise ValueError(f"sets: expected a list of texts, got {sets!r}")
    mistakes: list[Mistake] = []
    for text in sorted(sets, key=lambda it: key_of(it)[-1] != "use"):
        try:
            tree = _assign(tree, text)
        except RecipeError as error:
            mistakes += error.mistakes
    if mistakes:
        raise RecipeError(mistakes)
    return tree


def _assign(tree: Tree, text: str) -> Tree:
    _, equals, written = text.partition("=")
    key = key_of(text)
    place = joined(SET, key)
    if not equals or not all(key):
        raise _mistake(place, "expected KEY=VALUE", "like --set train.steps=500")
    value = _value(written)
    if len(key) + _depth(value) > MAX_DEPTH:
        raise _mistake(place, f"nested deeper than {MAX_DEPTH}")
    if key == ("extends",):
        raise _mistake(place, "only a file can extend another")
    values = _put(tree.values, key, value, place)
    made = {key[:size]: SET for size in range(1, len(key))}  # tables that were not there
    changed = {at: SET for at, _ in walk(value, key)}
    if key[-1].isdigit() and not isinstance(value, dict):
        changed[key[:-1]] = SET  # a list of plain values is one value
    chooses = key == ("process", "use") or (key == ("process",) and _chooses_process(values))
    older = frozenset(tree.values) if chooses else tree.older
    said = {at[0] for at, origin in tree.origins.items() if at and origin == SET}
    return _tree(values, {**made, **tree.origins}, changed, older - said - {key[0]})


def _put(node: Any, key: Key, value: Any, place: str) -> Any:
    """A copy of the node in which `key` has the value."""
    if not key:
        return _merge(node, value)
    head, rest = key[0], key[1:]
    if isinstance(node, list):
        if head not in map(str, range(len(node))):
            which = ", ".join(map(str, range(len(node)))) or "nothing: the list is empty"
            raise _mistake(place, "this is a list; its items have numbers", f"allowed: {which}")
        changed = _put(node[int(head)], rest, value, place)
        return [*node[: int(head)], changed, *node[int(head) + 1 :]]
    if not isinstance(node, dict):
        raise _mistake(place, f"a single value stands there, {toml.short(node)}; it has no keys")
    if (head, rest) == ("use", ()):
        return _merge(node, {"use": value})
    return {**node, head: _put(node.get(head, {} if rest else None), rest, value, place)}


def _value(written: str) -> Any:
    """What the text says in TOML, or else the text itself.

    An inline table may go over several lines here, as a shell's quotes let it.
    """
    if LONG_KEY.search(written):
        return written.strip()
    values = _parsed(written) or _parsed(" ".join(written.splitlines()))
    value = values.get("value")
    plain = isinstance(value, bool | int | float | str | list | dict)  # dates are texts
    return value if plain and len(values) == 1 else written.strip()


def _parsed(written: str) -> dict[str, Any]:
    """What `value = ...` says; nothing, where that is no TOML."""
    import tomllib

    try:
        return tomllib.loads(f"value = {written}")
    except (ValueError, RecursionError):
        return {}


def _mistake(place: str, what: str, hint: str = "") -> RecipeError:
    return RecipeError([Mistake(place, what, hint)])
