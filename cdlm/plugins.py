"""Plugins: what they can do, and loading them so that a broken one stops nothing.

A plugin is a package with an entry point in the group `cdlm`, which names a module with functions
marked `@cdlm.hookimpl`. The built-in components come through the same hook.
"""

from __future__ import annotations

import importlib
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from cdlm.errors import PluginError, nearest
from cdlm.registry import Registrar, Registry

if TYPE_CHECKING:
    from typer import Typer

    from cdlm.records import Event

GROUP = "cdlm"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)
HEARD = ContextVar("HEARD", default=True)  # whether plugins are told of events


class Hooks:
    """All that a plugin can do. It implements what it needs, with the same argument names."""

    @hookspec
    def cdlm_register(self, registry: Registrar) -> None:
        """Bring components: `registry.add("schedule", "cosine", "my_package.module:Cosine")`."""

    @hookspec
    def cdlm_commands(self, app: Typer) -> None:
        """Bring commands: `@app.command()`. A name that is taken is refused."""

    @hookspec
    def cdlm_event(self, event: Event, run_dir: Path) -> None:
        """Hear of everything that happens in a run, but not of steps that a dry run times.

        What it raises is reported once, no more.
        """


HOOKS = [name for name in vars(Hooks) if name.startswith("cdlm_")]


@dataclass(frozen=True)
class Plugin:
    """A plugin that was loaded; a pluggy manager of its own keeps its faults its own."""

    name: str  # of the entry point
    distribution: str
    version: str
    hooks: pluggy.PluginManager = field(repr=False)
    components: tuple[tuple[str, str], ...] = ()  # (kind, name) that it brought
    seconds: float = 0.0  # that loading it took

    @property
    def owner(self) -> str:
        return f"{self.distribution} {self.version}".strip()

    def implements(self, hook: str) -> bool:
        """Whether it has that one of Hooks."""
        return _implements(self.hooks, hook)

    def failure(self, error: BaseException) -> Failure:
        return _failure(self.name, self.distribution, self.version, error)


@dataclass(frozen=True)
class Failure:
    """A plugin, or a part of one, that does not work, and why."""

    plugin: str
    distribution: str
    version: str
    reason: str  # one line
    traceback: str = field(repr=False)

    def __str__(self) -> str:
        owner = f"{self.distribution} {self.version}".strip()
        return f'plugin "{self.plugin}" of {owner} failed: {self.reason}'


@dataclass(frozen=True)
class Plugins:
    """The components that there are, the plugins that work, and those that do not."""

    registry: Registry
    loaded: list[Plugin]
    failures: list[Failure]
    _silenced: set[tuple[str, str]] = field(default_factory=set, repr=False)

    def add_commands(self, app: Typer) -> None:
        """Add the plugins' commands to the app; one that can't be added becomes a failure."""
        for plugin in self.loaded:
            if plugin.implements("cdlm_commands"):
                try:
                    _add_commands(plugin, app)
                except (Exception, SystemExit) as error:
                    self.failures.append(plugin.failure(error))

    def tell(self, event: Event, run_dir: Path) -> list[Failure]:
        """Tell every plugin of an event. Returns the failures to report: one for each plugin."""
        new = []
        for plugin in self.loaded if HEARD.get() else ():
            try:
                plugin.hooks.hook.cdlm_event(event=event, run_dir=run_dir)
            except (Exception, SystemExit) as error:
                if (plugin.owner, plugin.name) not in self._silenced:
                    self._silenced.add((plugin.owner, plugin.name))
                    new.append(plugin.failure(error))
        self.failures.extend(new)
        return new


@contextmanager
def unheard() -> Iterator[None]:
    """No plugin is told of anything meanwhile, such as of a run that is only timed."""
    before = HEARD.set(False)
    try:
        yield
    finally:
        HEARD.reset(before)


@cache
def load() -> Plugins:
    """The built-ins, and every installed plugin that works. Loaded once for each process."""
    return gather(importlib.import_module("cdlm.parts"), *installed())


def gather(
    builtins: object, found: Iterable[metadata.EntryPoint], unreadable: Iterable[Failure] = ()
) -> Plugins:
    """The components of `builtins`, then of each entry point in isolation. The registry is closed.

    What the built-ins raise is raised; what a plugin raises becomes a Failure.
    """
    plugins = Plugins(Registry(), [], list(unreadable))
    own = Plugin("cdlm", "cdlm", _version("cdlm"), _hooks(builtins))
    plugins.loaded.append(_registered(own, plugins.registry))
    seen = {id(builtins): own.owner}
    for point in found:
        try:
            plugins.loaded.append(_load(point, plugins.registry, seen))
        except (Exception, SystemExit) as error:
            plugins.failures.append(_failure(point.name, *_identity(point.dist), error))
    plugins.registry.remarks += [f"{failure}; see cdlm plugins" for failure in plugins.failures]
    plugins.registry.freeze()
    return plugins


def _load(point: metadata.EntryPoint, registry: Registry, seen: dict[int, str]) -> Plugin:
    """One plugin, its components registered: all of them, or none where it raises.

    What it prints goes to standard error: standard output is the command's own.
    """
    began = time.perf_counter()
    with redirect_stdout(sys.stderr):
        module = point.load()
        if id(module) in seen:
            raise PluginError(f"{point.value} has been loaded already, for {seen[id(module)]}")
        with registry.all_or_nothing():
            plugin = Plugin(point.name, *_identity(point.dist), _hooks(module))
            registered = _registered(plugin, registry)
    seen[id(module)] = plugin.owner
    return replace(registered, seconds=time.perf_counter() - began)


def _registered(plugin: Plugin, registry: Registry) -> Plugin:
    before = len(registry.entries())
    plugin.hooks.hook.cdlm_register(registry=registry.owned_by(plugin.owner))
    brought = tuple((entry.kind, entry.name) for entry in registry.entries()[before:])
    return replace(plugin, components=brought)


def _hooks(module: object) -> pluggy.PluginManager:
    """A manager with this one plugin. Raises PluginError where it has no hook, or a wrong one."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    manager.register(module)
    for name, caller in vars(manager.hook).items():
        if not name.startswith("_") and not caller.has_spec():
            raise PluginError(f'there is no hook "{name}"; {nearest(name, HOOKS)}')
    manager.check_pending()
    if not any(_implements(manager, name) for name in HOOKS):
        raise PluginError(
            f"{_described(module)} has no function marked @cdlm.hookimpl; hooks: {', '.join(HOOKS)}"
        )
    return manager


def _implements(manager: pluggy.PluginManager, hook: str) -> bool:
    return bool(getattr(manager.hook, hook).get_hookimpls())


def _described(module: object) -> str:
    return getattr(module, "__name__", None) or repr(module)[:60]


def _add_commands(plugin: Plugin, app: Typer) -> None:
    """Let the plugin fill an app of its own; take its commands over where all names are free."""
    from typer import Typer
    from typer.main import get_group

    brought = Typer()
    plugin.hooks.hook.cdlm_commands(app=brought)
    taken = set(get_group(app).commands) & set(get_group(brought).commands)
    if taken:
        raise PluginError(f"there is a command {', '.join(sorted(taken))} already")
    app.registered_commands += brought.registered_commands
    app.registered_groups += brought.registered_groups


# ----------------------------------------------------------------------- what is installed


def installed(path: list[str] | None = None) -> tuple[list[metadata.EntryPoint], list[Failure]]:
    """The entry points of the group `cdlm`, and the distributions whose list can't be read.

    Each distribution is read by itself: metadata.entry_points() fails as a whole on one bad file.
    The order is that of the names, so that of two plugins that collide it is always the same that
    loads.
    """
    points: list[metadata.EntryPoint] = []
    failures: list[Failure] = []
    seen: set[str] = set()
    for distribution in metadata.distributions(path=sys.path if path is None else path):
        try:
            points += _points(distribution, seen)
        except Exception as error:
            failures.append(_failure("?", *_identity(distribution), error))
    return sorted(points, key=lambda it: (_identity(it.dist), it.name)), failures


def _points(distribution: metadata.Distribution, seen: set[str]) -> Iterator[metadata.EntryPoint]:
    """Its entry points; none where the same distribution stands earlier on the path."""
    text = distribution.read_text("entry_points.txt") or ""
    if not re.search(rf"^[ \t]*\[\s*{GROUP}\s*\]", text, re.MULTILINE):
        return
    name = re.sub(r"[-_.]+", "-", _identity(distribution)[0]).lower()
    if name not in seen:
        seen.add(name)
        yield from distribution.entry_points.select(group=GROUP)


def _identity(distribution: metadata.Distribution | None) -> tuple[str, str]:
    """(name, version), whatever state its METADATA is in."""
    try:
        assert distribution is not None
        return distribution.metadata["Name"] or "?", distribution.metadata["Version"] or ""
    except Exception:
        return "an unnamed distribution", ""


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # run from a checkout
        return ""


def _failure(name: str, distribution: str, version: str, error: BaseException) -> Failure:
    text = "".join(traceback.format_exception(error))
    return Failure(name, distribution, version, _reason(error), text)


def _reason(error: BaseException) -> str:
    """The error on one line of at most 200 characters."""
    said = " ".join(str(error).split())
    kind = "" if isinstance(error, PluginError) else f"{type(error).__name__}: "
    return (kind + said)[:200]
