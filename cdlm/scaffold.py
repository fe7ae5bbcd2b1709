"""`cdlm new plugin`: a package that can be installed, whose tests pass, ready to be changed.

What it writes stands in `templates/plugin`: files in which DISTRIBUTION, PACKAGE, COMPONENT,
Component and KIND are names to fill in, and one small component that works for each kind. What a
kind asks for, its manual in the README, comes from `cdlm.protocols`; the recipe and the study come
from the shipped recipe, in which the new component takes the place of its like.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdlm import contract, layers, plugins, toml
from cdlm.errors import CdlmError, nearest
from cdlm.places import recipes_dir, templates_dir
from cdlm.registry import KINDS, NAME
from cdlm.rundir import temporary

DISTRIBUTION = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
BASE = "extra_token.toml"  # the shipped recipe that a new one extends
REPLACED = {"conditioning": -1, "loss": 0}  # the item of a list that gives way; others are joined
FITTING = {  # what else a recipe needs for a component of this kind, above the one it extends
    "dataset": 'metric = [{ use = "exact_match" }, { use = "bleu" }]\n',
    "tokenizer": "[model]\nlength = 72\n",
}
FEW_OR_MANY = {  # an axis for what training does not look at: a metric judges samplers
    "few": {"sampler": {"use": "ddim", "steps": 5}},
    "many": {"sampler": {"use": "ddim", "steps": 50}},
}


@dataclass(frozen=True)
class Names:
    """What one new plugin is called, everywhere that it has a name."""

    distribution: str  # cdlm-film
    package: str  # cdlm_film
    component: str  # film
    kind: str
    example: str  # Film: its class

    def filled(self, text: str, **blocks: str) -> str:
        """A template's text with the names, and longer blocks, in their places."""
        words = {**blocks, "DISTRIBUTION": self.distribution, "PACKAGE": self.package}
        words |= {"COMPONENT": self.component, "Component": self.example, "KIND": self.kind}
        return re.sub("|".join(words), lambda found: words[found[0]], text)


def plugin(name: str, kind: str, folder: Path) -> Path:
    """Write a plugin package called `name` with one component of this kind into a new folder.

    Raises CdlmError for a kind that there is not, and for names that can't be used or are taken.
    """
    if kind not in KINDS:
        raise CdlmError(f'there is no kind "{kind}"\n    {nearest(kind, KINDS)}')
    template = templates_dir() / "plugin"
    source = (template / "components" / f"{kind}.py").read_text(encoding="utf-8")
    names = _names(name, kind, source)
    place = folder / names.distribution
    if place.exists():
        raise CdlmError(f"{place}: there is something already, and it is not overwritten")
    files = _files(names, template, source)
    try:
        _write(place, files)
    except OSError as error:
        raise CdlmError(f"{place}: can't be written: {error.strerror}") from error
    return place


def _write(place: Path, files: dict[str, str]) -> None:
    """All files, or no folder."""
    draft = temporary(place)
    for path, text in files.items():
        (draft / path).parent.mkdir(parents=True, exist_ok=True)
        (draft / path).write_text(text, encoding="utf-8")
    draft.rename(place)


def _names(name: str, kind: str, source: str) -> Names:
    """Every name that follows from the first one, none of them taken. Raises CdlmError."""
    if not DISTRIBUTION.fullmatch(name):
        raise CdlmError(f'"{name}" is no name for a package: small letters and -, like "cdlm-film"')
    package = name.replace("-", "_")
    component = package.removeprefix("cdlm_")
    if not NAME.fullmatch(component) or keyword.iskeyword(component):
        raise CdlmError(f'"{component}" is no name for a component: snake_case, like "film"')
    if importlib.util.find_spec(package) is not None:
        raise CdlmError(f'there is a Python package "{package}" already; take another name')
    registry = plugins.load().registry
    if component in registry.names(kind):
        owner = registry.get(kind, component).owner
        raise CdlmError(f'{owner} has a {kind} called "{component}" already; take another name')
    example = "".join(part.capitalize() for part in component.split("_"))
    if re.search(rf"\b{example}\b", source):  # Level, of cdlm.records, is in use there
        example += "".join(part.capitalize() for part in kind.split("_"))
    return Names(name, package, component, kind, example)


def _files(names: Names, template: Path, source: str) -> dict[str, str]:
    """The text of every file of the package, by its path within."""
    base = layers.read(recipes_dir() / BASE).values
    blocks = {
        "CONTRACT": manual(names.kind),
        "CHOICE": _choice(names, base),
        "AXIS": _axis(names, base),
    }
    package, component = f"src/{names.package}", names.component
    origins = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{package}/__init__.py": "src/__init__.py",
        f"tests/test_{component}.py": "tests/test_component.py",
        f"recipes/{component}.toml": "recipes/component.toml",
        f"recipes/studies/{component}.toml": "recipes/study.toml",
    }
    texts = {
        path: names.filled((template / origin).read_text(encoding="utf-8"), **blocks)
        for path, origin in origins.items()
    }
    return texts | {f"{package}/{component}.py": names.filled(source)}


def manual(kind: str) -> str:
    """What `cdlm.protocols` asks of a kind, as a list in Markdown."""
    asked = contract.contracts()[kind]
    lines = [f"- `{name}`" for name in asked.values]
    for name, signature in asked.methods.items():
        call = f"{name}({', '.join(signature.parameters)})"
        lines.append(f"- `{call}`: {' '.join(asked.docs[name].split())}")
    wrapped = [textwrap.fill(line, 100, subsequent_indent="  ") for line in lines]
    return "\n".join([f"{asked.about[0].upper()}{asked.about[1:]}", "", *wrapped])


def _choice(names: Names, base: dict[str, Any]) -> str:
    """The recipe's lines that pick the component."""
    if names.kind not in base:
        study = f"studies/{names.component}.toml"
        return f"# A {names.kind} is no part of a recipe: {study} chooses it."
    lines = toml.pair(names.kind, _with(names, base)) + "\n" + FITTING.get(names.kind, "")
    return lines.rstrip("\n")


def _with(names: Names, base: dict[str, Any]) -> Any:
    """What the kind's key has in a recipe where the new component stands."""
    mine: dict[str, Any] = {"use": names.component}
    if not KINDS[names.kind].many:
        return mine
    usual = list(base[names.kind])
    if names.kind not in REPLACED:
        return [*usual, mine]
    place = REPLACED[names.kind]
    if "weight" in usual[place]:
        mine["weight"] = usual[place]["weight"]
    usual[place] = mine
    return usual


def _axis(names: Names, base: dict[str, Any]) -> str:
    """The study's design, and its one axis: what was there before, and the new component."""
    chosen = "" if names.kind in base else f'{names.kind} = {{ use = "{names.component}" }}\n'
    options: dict[str, Any] = FEW_OR_MANY
    if names.kind in base and names.kind != "metric":
        options = {
            _label(names.kind, base[names.kind]): {names.kind: base[names.kind]},
            names.component: {names.kind: _with(names, base)},
        }
    axis = next(iter(next(iter(options.values()))))
    lines = [
        "[study]",
        'design   = "one_at_a_time"',
        f"baseline = {toml.text({axis: next(iter(options))})}",
        f"seeds    = [0, 1, 2]\n{chosen}",
        f"[axis.{axis}]",
        *(f"{label} = {{ {_pairs(values)} }}" for label, values in options.items()),
    ]
    return "\n".join(lines)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {toml.text(value)}" for name, value in values.items())


def _label(kind: str, before: Any) -> str:
    """How a study's table calls what the component is compared with."""
    if not KINDS[kind].many:
        return before["use"]
    return before[REPLACED[kind]]["use"] if kind in REPLACED else "without"
