"""A component's parameters and docstring, read from its source without importing it.

Parts import torch; `cdlm list`, `show` and `check` must not. So the class is found in the source
of its module (only the packages above that module are imported) and read with `ast`. A class that
can't be found that way is imported after all.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_type_hints

from cdlm import schema
from cdlm.errors import CdlmError
from cdlm.registry import Entry

SETS = ("writes", "reads", "needs", "provides", "without", "afterwards")
"""What components declare about each other, and a process of the recipe around it."""
INJECTED = "dims"  # filled in by compose, no part of a recipe
PLAIN_BASES = {"Module", "Protocol", "ABC", "Generic", "object"}  # bring no parameters
FACTORIES: dict[str, Any] = {"list": [], "tuple": ()}
HOPS = 10  # re-exports that are followed from one package to the next


class _Required:
    """The default of a parameter that has none."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


@dataclass(frozen=True)
class Parameter:
    """One parameter of a component; its comment is the remark at the end of its line."""

    name: str
    annotation: Any
    default: Any = REQUIRED
    comment: str = ""

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@dataclass(frozen=True)
class Spec:
    """What can be known of a component without building it."""

    doc: str
    parameters: tuple[Parameter, ...]
    sets: dict[str, frozenset[str]]  # of SETS, those that the class declares


@cache
def read(entry: Entry) -> Spec:
    """The spec of an entry's class. Raises PluginError that names class and parameter."""
    try:
        spec = _from_source(entry.target) or _from_class(entry.load())
        _check(spec)
    except CdlmError:
        raise
    except (Exception, SystemExit) as error:  # whatever a stranger's module does when looked at
        raise entry.broken(_reason(error)) from error
    return spec


def _reason(error: BaseException) -> str:
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _check(spec: Spec) -> None:
    for parameter in spec.parameters:
        if parameter.name == "use":
            raise ValueError('a parameter can\'t be called "use": that key names the component')


# ------------------------------------------------------------------------------ finding the class


@dataclass(frozen=True)
class _Module:
    """A module's source, read but not run."""

    text: str
    tree: ast.Module
    package: str

    def classes(self) -> dict[str, ast.ClassDef]:
        return {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}

    def constants(self) -> dict[str, ast.expr]:
        """NAME = value and NAME: type = value at the top level."""
        found: dict[str, ast.expr] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node.value
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                found[node.target.id] = node.value
        return found

    def origin(self, name: str) -> tuple[str, str] | None:
        """(module, name) from which `name` is imported, where it is."""
        for node in self.tree.body:
            if not isinstance(node, ast.ImportFrom):
                continue
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    source = "." * node.level + (node.module or "")
                    return importlib.util.resolve_name(source, self.package), alias.name
        return None


@cache
def _parse(module: str) -> _Module | None:
    """The module's source, or None where there is none to read. Imports the packages above it."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {module!r}")
    source = getattr(spec.loader, "get_source", lambda _: None)(module)
    return None if source is None else _Module(source, ast.parse(source), spec.parent or "")


def _find(module: str, name: str) -> tuple[_Module, ast.ClassDef] | None:
    """The class in its source, followed through re-exports; None where it is not plainly there."""
    for _ in range(HOPS):
        parsed = _parse(module)
        if parsed is None:
            return None
        if name in parsed.classes():
            return parsed, parsed.classes()[name]
        source = parsed.origin(name)
        if source is None:
            return None
        module, name = source
    return None


# ------------------------------------------------------------------------------ reading the source


def _from_source(target: str) -> Spec | None:
    """The spec, or None where source does not tell it."""
    found = _find(*target.split(":"))
    lineage = _lineage(*found) if found else []
    if not found or not lineage:
        return None
    module, node = found
    sets: dict[str, frozenset[str]] = {}
    for ancestor in reversed(lineage):
        sets |= dict(_sets(ancestor))
    return Spec(ast.get_docstring(node) or "", _parameters(module, lineage), sets)


def _lineage(module: _Module, node: ast.ClassDef) -> list[ast.ClassDef]:
    """The class and its bases, nearest first; empty where a base that matters stands elsewhere."""
    lineage = [node]
    for base in node.bases:
        name = _last_name(base)
        if name in module.classes():
            above = _lineage(module, module.classes()[name])
            if not above:
                return []
            lineage += above
        elif name not in PLAIN_BASES and _init(node) is None:
            return []
    return lineage


def _init(node: ast.ClassDef) -> ast.FunctionDef | None:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item
    return None


def _last_name(node: ast.expr) -> str:
    """`Module` of nn.Module, `dataclass` of @dataclasses.dataclass(frozen=True)."""
    match node:
        case ast.Call(func=inner) | ast.Subscript(value=inner):
            return _last_name(inner)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ast.unparse(node)


def _parameters(module: _Module, lineage: list[ast.ClassDef]) -> tuple[Parameter, ...]:
    """Those of the nearest class that has an __init__ or is a dataclass."""
    for place, node in enumerate(lineage):
        if init := _init(node):
            return tuple(_arguments(module, node, init))
        if any(_last_name(decorator) == "dataclass" for decorator in node.decorator_list):
            return _fields(module, lineage[place:])
    return ()


def _fields(module: _Module, lineage: list[ast.ClassDef]) -> tuple[Parameter, ...]:
    """The fields of a dataclass; as in Python, a field of a base keeps its place."""
    found: dict[str, Parameter] = {}
    for node in reversed(lineage):
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and _is_field(item):
                parameter = _field(module, node, item)
                found[parameter.name] = parameter
    return tuple(found.values())


def _is_field(item: ast.AnnAssign) -> bool:
    said = ast.unparse(item.annotation).strip("'\"")
    if not isinstance(item.target, ast.Name) or item.target.id == INJECTED:
        return False
    if isinstance(item.value, ast.Call):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in item.value.keywords}
        if options.get("init") == "False":
            return False
    return not said.split("[")[0].endswith(("ClassVar", "KW_ONLY"))


def _field(module: _Module, node: ast.ClassDef, item: ast.AnnAssign) -> Parameter:
    assert isinstance(item.target, ast.Name)
    comment = _comment(module.text, item)
    return _parameter(module, node, item.target.id, item.annotation, item.value, comment)


def _arguments(module: _Module, node: ast.ClassDef, init: ast.FunctionDef) -> Iterator[Parameter]:
    given = init.args
    if given.vararg or given.kwarg:
        raise ValueError(
            f"{node.name}.__init__ takes * or ** arguments; its signature is its schema"
        )
    placed = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(placed) - len(given.defaults)) + given.defaults
    pairs = [
        *zip(placed, defaults, strict=True),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ]
    for argument, default in pairs[1:]:  # the first is self
        if argument.arg != INJECTED:
            comment = _comment(module.text, default or argument)
            yield _parameter(module, node, argument.arg, argument.annotation, default, comment)


def _parameter(
    module: _Module,
    node: ast.ClassDef,
    name: str,
    annotation: ast.expr | None,
    default: ast.expr | None,
    comment: str,
) -> Parameter:
    try:
        if annotation is None:
            raise ValueError("it has no annotation")
        value = REQUIRED if default is None else _default(module, default)
        return _checked(Parameter(name, schema.read(annotation), value, comment))
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f'class {node.name}, parameter "{name}": {error}') from error


def _checked(parameter: Parameter) -> Parameter:
    """The parameter, its default as a recipe would give it. Raises ValueError."""
    words = schema.words(parameter.annotation)
    if parameter.required:
        return parameter
    try:
        default = schema.fit(parameter.default, parameter.annotation)
    except schema.Misfit as error:
        raise ValueError(f"its default {parameter.default!r} is not {words}") from error
    return replace(parameter, default=default)


def _default(module: _Module, node: ast.expr) -> Any:
    """The value of a literal, of a module's literal constant, or of field(...) around one."""
    if isinstance(node, ast.Name) and node.id in module.constants():
        node = module.constants()[node.id]
    if isinstance(node, ast.Call) and _last_name(node) == "field":
        return _field_default(module, node)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"its default {ast.unparse(node)} is not a literal") from error


def _field_default(module: _Module, call: ast.Call) -> Any:
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if "default" in options:
        return _default(module, options["default"])
    factory = options.get("default_factory")
    if factory is None:
        return REQUIRED
    if isinstance(factory, ast.Lambda):
        return _default(module, factory.body)
    if ast.unparse(factory) in FACTORIES:
        return FACTORIES[ast.unparse(factory)]
    raise ValueError(f"its default_factory {ast.unparse(factory)} is not a literal")


def _comment(text: str, node: ast.expr | ast.AnnAssign | ast.arg) -> str:
    """The remark behind a node, at the end of its last line."""
    line = text.split("\n")[(node.end_lineno or 1) - 1]
    rest = line.encode()[node.end_col_offset or 0 :].decode().strip().lstrip(",)").strip()
    return rest.removeprefix("#").strip() if rest.startswith("#") else ""


def _sets(node: ast.ClassDef) -> Iterator[tuple[str, frozenset[str]]]:
    """The class-level sets of literal texts, such as `writes = {"tokens"}`."""
    for item in node.body:
        targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
        name = getattr(targets[0], "id", "")
        value = getattr(item, "value", None)
        if name in SETS and value is not None:
            yield name, _literal_set(node.name, name, value)


def _literal_set(owner: str, name: str, node: ast.expr) -> frozenset[str]:
    if isinstance(node, ast.Call) and _last_name(node) in ("set", "frozenset"):
        node = node.args[0] if node.args else ast.Tuple([], ast.Load())
    try:
        items = frozenset(ast.literal_eval(node))
    except (ValueError, TypeError) as error:
        raise ValueError(f"class {owner}: {name} must be a literal set of texts") from error
    if not all(isinstance(item, str) for item in items) or isinstance(node, ast.Constant):
        raise ValueError(f"class {owner}: {name} must be a literal set of texts")
    return items


# ------------------------------------------------------------------------------ reading the class


def _from_class(component: Any) -> Spec:
    """The same of a class whose source is not to be had; it has no comments."""
    init = vars(component).get("__init__", component)
    hints = get_type_hints(init, include_extras=True)
    parameters = [
        _inspected(component, name, hints, parameter)
        for name, parameter in inspect.signature(component).parameters.items()
        if name != INJECTED
    ]
    sets = {name: frozenset(getattr(component, name)) for name in SETS if hasattr(component, name)}
    return Spec(inspect.getdoc(component) or "", tuple(parameters), sets)


def _inspected(
    component: Any, name: str, hints: dict[str, Any], parameter: inspect.Parameter
) -> Parameter:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise ValueError(
            f"{component.__name__} takes * or ** arguments; its signature is its schema"
        )
    default = REQUIRED if parameter.default is parameter.empty else parameter.default
    return _checked(Parameter(name, hints.get(name, parameter.annotation), default))
