"""What `cdlm list`, `show`, `plugins` and `doctor` print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdlm import plugins, schema, signature, toml
from cdlm import recipe as recipes
from cdlm.errors import CdlmError, PluginError, nearest
from cdlm.plugins import Plugin
from cdlm.registry import KINDS, Entry, Registry
from cdlm.signature import Parameter

if TYPE_CHECKING:
    from cdlm.doctor import Finding

SLOW = 0.3  # seconds to load a plugin from which `cdlm plugins` says so


def shown(what: str, name: str, sets: Sequence[str]) -> str:
    """The component `what name`, the kind `what`, the one component called so, or the recipe."""
    kinds = [entry.kind for entry in plugins.load().registry.entries() if entry.name == what]
    if not name and (Path(what).exists() or not (what in KINDS or kinds)):
        return recipe(Path(what), sets)
    if sets:
        raise CdlmError("--set is for recipes, and has no effect here")
    if name or what in KINDS:
        return component(what, name) if name else components(what)
    if len(kinds) > 1:
        raise CdlmError(f"which {what}? {', '.join(f'show {kind} {what}' for kind in kinds)}")
    return component(kinds[0], what)


def components(kind: str = "") -> str:
    """Every component of a kind, or of all, with the first line of its docstring."""
    if kind:
        _check_kind(kind)
    registry = plugins.load().registry
    blocks = []
    for one in [KINDS[kind]] if kind else KINDS.values():
        rows = [_row(registry.get(one.name, name)) for name in registry.names(one.name)]
        blocks.append("\n".join([f"{one.name}: {one.about}", *_columns(rows)]))
    return "\n\n".join(blocks)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise CdlmError(f'there is no kind "{kind}"\n    {nearest(kind, KINDS)}')


def _row(entry: Entry) -> tuple[str, str]:
    owner = "" if entry.built_in else f" [{entry.owner}]"
    return entry.name, _about(entry) + owner


def _about(entry: Entry) -> str:
    """The first line of a component's docstring, or why there is none to be had."""
    try:
        return signature.read(entry).doc.strip().partition("\n")[0]
    except PluginError as error:
        return f"can't be used: {error}"


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in rows]


def component(kind: str, name: str) -> str:
    """A component's docstring, parameters, owner, and a line of TOML that picks it."""
    _check_kind(kind)
    entry = plugins.load().registry.get(kind, name)
    spec = signature.read(entry)
    lines = [f"{kind} {name}, from {entry.owner} ({entry.target})", "", spec.doc, ""]
    if spec.parameters:
        lines += ["parameters", *_columns(map(_parameter, spec.parameters)), ""]
    return "\n".join([*lines, recipes.example(entry)])


def _parameter(parameter: Parameter) -> tuple[str, str]:
    default = "required" if parameter.required else f"default {toml.text(parameter.default)}"
    about = f"; {parameter.comment}" if parameter.comment else ""
    return parameter.name, f"{schema.words(parameter.annotation)}, {default}{about}"


def recipe(path: Path, sets: Sequence[str]) -> str:
    """A recipe with every default filled in, and where each value is from."""
    resolved = recipes.load(path, sets)
    rows = [(f"{key} = {toml.text(value)}", key) for key, value in _leaves(resolved.values())]
    width = min(60, max(len(text) for text, _ in rows))
    origins = resolved.origins
    lines = [f"{text:<{width}}  # {_origin(key, origins)}" for text, key in rows]
    if resolved.without:
        process = resolved.one("process").use
        lines.append(f"# process {process} goes without {', '.join(resolved.without)}")
    return "\n".join([f"# {resolved.name}, hash {resolved.hash[:8]}", *lines])


def _leaves(value: object, key: str = "") -> Iterable[tuple[str, object]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{key}.{i}")
    elif value is not None:
        yield key, value


def _origin(key: str, origins: dict[str, str]) -> str:
    """The origin of a value, or of the nearest table around it."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key, "default")


def plugins_installed(verbose: bool = False) -> str:
    """Each plugin and what it brings; failures with their reasons, or whole tracebacks."""
    found = plugins.load()
    own, *others = found.loaded
    lines = [f"{own.owner}, built in: {len(own.components)} components (cdlm list)"]
    for plugin in others:
        lines += [f"{plugin.owner} (entry point {plugin.name})", *_brought(plugin, found.registry)]
    for failure in found.failures:
        lines.append(f"failed: {failure}")
        lines += [f"  {line}" for line in failure.traceback.splitlines() if verbose]
    if found.failures and not verbose:
        lines.append("cdlm plugins --verbose prints their tracebacks")
    if not others and not found.failures:
        lines.append("no plugins are installed")
    return "\n".join(lines)


def _brought(plugin: Plugin, registry: Registry) -> Iterator[str]:
    """A line for each component, and for whatever else a plugin does."""
    rows = [
        (f"{kind} {name}", _about(registry.get(kind, name))) for kind, name in plugin.components
    ]
    yield from _columns(rows)
    if plugin.implements("cdlm_commands"):
        yield "  brings commands (cdlm --help)"
    if plugin.implements("cdlm_event"):
        yield "  hears of everything that happens in a run"
    if plugin.seconds > SLOW:
        yield (
            f"  slows every command by {plugin.seconds:.1f} s: what its module imports belongs "
            "into the modules of its components"
        )


def health() -> tuple[bool, str]:
    """Whether nothing is bad, and the doctor's findings on this machine."""
    from cdlm.doctor import examine

    return findings(examine({str(f.plugin): f.reason for f in plugins.load().failures}))


def findings(found: Sequence[Finding]) -> tuple[bool, str]:
    """Whether nothing is bad, and a line or two for each."""
    lines = []
    for finding in found:
        lines.append(f"{finding.status:<5} {finding.name}: {finding.text}")
        if finding.mend:
            lines.append(f"      {finding.mend}")
    return all(finding.status != "bad" for finding in found), "\n".join(lines)
