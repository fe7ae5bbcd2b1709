"""The house rules: who imports whom, what stays light, and what every component says of itself."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cdlm
from cdlm import plugins, schema, signature
from cdlm.registry import KINDS, Entry

ROOT = Path(cdlm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
SPINE = (
    "cdlm", "cdlm.__main__", "cdlm.blame", "cdlm.board", "cdlm.charts", "cdlm.cli", "cdlm.compare",
    "cdlm.conduct", "cdlm.contract", "cdlm.describe", "cdlm.doctor", "cdlm.errors", "cdlm.foreign",
    "cdlm.layers", "cdlm.outcome", "cdlm.parts", "cdlm.places", "cdlm.plugins", "cdlm.progress",
    "cdlm.protocols", "cdlm.recipe", "cdlm.records", "cdlm.registry", "cdlm.rundir",
    "cdlm.scaffold", "cdlm.schema", "cdlm.signature", "cdlm.stop", "cdlm.study", "cdlm.toml",
    "cdlm.values",
)  # fmt: skip
HEAVY = (
    "torch",
    "transformers",
    "open_clip",
    "torchvision",
    "numpy",
    "PIL",
    "tokenizers",
    "matplotlib",
)
FOR_PARTS = ("errors", "kernels", "parts", "protocols", "records", "values")  # of cdlm
ALSO = {"parts/__init__.py": ("plugins", "registry"), "parts/encoders": ("places",)}
BUILT_IN = [entry for entry in plugins.load().registry.entries() if entry.built_in]
NAMES = [f"{entry.kind}-{entry.name}" for entry in BUILT_IN]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere: cdlm's with their full names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms(path: Path) -> set[str]:
    """The modules or packages right below cdlm from which a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("cdlm.")}


# ---------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize(
    "path", [path for path in FILES if relative(path).startswith("parts/")], ids=relative
)
def test_parts_import_only_what_components_are_written_against(path: Path) -> None:
    extra = [
        room for place, more in ALSO.items() if relative(path).startswith(place) for room in more
    ]
    assert rooms(path) <= {*FOR_PARTS, *extra}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nobody_imports_the_command_line_and_only_tests_import_testing(path: Path) -> None:
    of_the_command_line = relative(path).startswith(("cli/", "__main__"))
    assert "cli" not in rooms(path) or of_the_command_line
    testing = relative(path).startswith(("testing/", "templates/plugin/tests/"))
    assert "testing" not in rooms(path) or testing


PUBLIC = {
    "": ("CdlmError", "DataError", "PluginError", "RecipeError", "RunError", "hookimpl"),
    "errors": (), "protocols": (), "records": (), "values": (), "testing": (),
    "network": ("guided", "withhold"), "sample": ("forbidden", "to_possible"),
    "compose": ("Parts",), "parts": (),
}  # fmt: skip
"""What plugins may import from cdlm: these names of a module, or all that do not begin with _."""

PLUGINS = sorted((ROOT.parent / "plugins").glob("*/src/**/*.py"))


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: f"{path.parts[-4]}-{path.stem}")
def test_components_of_plugins_are_written_against_public_names(path: Path) -> None:
    for name in imports(path):
        if name.startswith("cdlm."):
            place, _, wanted = name.removeprefix("cdlm.").rpartition(".")
            names = PUBLIC.get(place.split(".")[0], ("nothing",)) or (wanted,)
            assert wanted in names and not wanted.startswith("_"), f"{name} is not public"


@pytest.mark.parametrize("name", ["protocols", "records", "errors", "values"])
def test_what_components_are_written_against_needs_nothing_else(name: str) -> None:
    """Protocols name Parts as well: a process gets them all."""
    also = {"compose"} if name == "protocols" else set()
    assert rooms(ROOT / f"{name}.py") <= {"protocols", "records", "errors", "values"} | also


def heavy_after(statement: str) -> set[str]:
    """Which of the heavy libraries a fresh interpreter has loaded after this statement."""
    probe = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(HEAVY) & set(done.stdout.split())


def test_the_spine_loads_nothing_heavy() -> None:
    assert heavy_after(f"import {', '.join(SPINE)}") == set()


def test_the_spine_is_all_that_is_not_flow_parts_or_kernels() -> None:
    """A new module is either in SPINE above, or one that needs torch: nothing in between."""
    spine = {name.removeprefix("cdlm.") for name in SPINE}
    others = {path.stem for path in ROOT.glob("*.py")} - spine - {"__init__"}
    assert others == {
        "captioner", "checkpoint", "checkup", "compose", "data", "estimate", "evaluate", "export",
        "features", "frontier", "gallery", "gaussian", "graph", "job", "network", "objective",
        "pretrain", "probe", "ranks", "results", "run", "sample", "speed", "train",
    }  # fmt: skip


def test_the_probe_sees_what_is_heavy() -> None:
    """The control: without it the test above could pass by looking in the wrong place."""
    assert "torch" in heavy_after("import cdlm.train")


def test_describing_every_built_in_loads_nothing_heavy() -> None:
    look = """
from cdlm import plugins, signature
for entry in plugins.load().registry.entries():
    signature.read(entry)
"""
    assert heavy_after(look) == set()


# ------------------------------------------------------------------------------------- components


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_built_in_of_every_kind(kind: str) -> None:
    assert [entry for entry in BUILT_IN if entry.kind == kind]


@pytest.mark.parametrize("entry", BUILT_IN, ids=NAMES)
def test_every_built_in_begins_with_one_plain_sentence(entry: Entry) -> None:
    first = signature.read(entry).doc.split("\n")[0]
    assert first and not first[0].islower() and "." in first
    assert len(first) <= 100


@pytest.mark.parametrize("entry", BUILT_IN, ids=NAMES)
def test_the_schema_read_from_source_is_that_of_the_class(entry: Entry) -> None:
    """`cdlm show` reads source; what it says must be what the class takes."""
    read = {p.name: p for p in signature.read(entry).parameters}
    taken = {
        name: parameter
        for name, parameter in inspect.signature(entry.load()).parameters.items()
        if name != signature.INJECTED
    }
    assert list(read) == list(taken)
    for name, parameter in taken.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name
        assert read[name].required == (parameter.default is inspect.Parameter.empty), name
        if not read[name].required:
            assert read[name].default == schema.fit(parameter.default, read[name].annotation), name


@pytest.mark.parametrize("entry", BUILT_IN, ids=NAMES)
def test_what_a_built_in_declares_is_what_its_class_declares(entry: Entry) -> None:
    found = entry.load()
    for name, declared in signature.read(entry).sets.items():
        assert declared == set(getattr(found, name)), name


@pytest.mark.parametrize("entry", BUILT_IN, ids=NAMES)
def test_a_dataclass_component_is_frozen(entry: Entry) -> None:
    found: Any = entry.load()
    if dataclasses.is_dataclass(found):
        assert found.__dataclass_params__.frozen  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------ style


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_functions_are_short_and_public_ones_say_what_they_do(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a module without a docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
