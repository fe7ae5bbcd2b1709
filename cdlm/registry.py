"""Kinds of component, and who brings what under which name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cdlm.errors import CdlmError, PluginError, nearest


@dataclass(frozen=True)
class Kind:
    """One noun of a diffusion captioner; a recipe picks a component for it."""

    name: str
    about: str
    many: bool = False  # a list of tables in a recipe, rather than one table
    least: int = 0  # length that such a list must have
    once: bool = False  # each component at most once in it, since its name labels its values
    in_recipe: bool = True  # chosen in recipes; else elsewhere, as a study chooses its launcher


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("dataset", "images with captions, in named splits"),
        Kind("encoder", "turns images into features; frozen"),
        Kind("views", "how else training looks at a photo: cut out, mirrored"),
        Kind("tokenizer", "turns captions into ids and back"),
        Kind("process", "takes captions apart in training, and makes them in sampling"),
        Kind("length", "says which positions a caption occupies"),
        Kind("embedding", "turns word ids into the vectors that are diffused, and back to scores"),
        Kind("schedule", "says how signal turns into noise"),
        Kind("noise", "draws what captions are corrupted with in training"),
        Kind("timesteps", "says which noise levels training visits, and how much each counts"),
        Kind("target", "says what the network is asked to predict"),
        Kind("conditioning", "writes time or image into the network's input; a chain", many=True),
        Kind("denoiser", "the transformer"),
        Kind("self_conditioning", "tells the network of its own last estimate"),
        Kind("guidance", "combines the predictions with and without the image"),
        Kind("variance", "says how freely a step back is drawn, for samplers that draw"),
        Kind(
            "loss", "one weighted term of the training loss; a sum", many=True, least=1, once=True
        ),
        Kind("objective", "says what training makes smaller: the loss of the process, or another"),
        Kind("rounding", "pulls the estimate of x0 towards words before the sampler uses it"),
        Kind("grid", "says which times sampling visits"),
        Kind("sampler", "goes from noise to text, step by step"),
        Kind(
            "constraint", "says which words a sampled caption may have where; all hold", many=True
        ),
        Kind("selection", "chooses one caption of several candidates"),
        Kind(
            "metric", "judges captions against what is known of their images", many=True, once=True
        ),
        Kind("launcher", "starts the points of a study, here or elsewhere", in_recipe=False),
    )
}
IN_RECIPES = {name: kind for name, kind in KINDS.items() if kind.in_recipe}

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")  # snake_case
TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # module.path:Class


@dataclass(frozen=True)
class Entry:
    """A component that can be had: kind and name, where its class stands, and who brought it."""

    kind: str
    name: str
    target: str  # "module:Class", imported only when the component is built
    owner: str  # distribution and version

    @property
    def built_in(self) -> bool:
        """Whether it came with cdlm itself."""
        return self.owner.partition(" ")[0] == "cdlm"

    def load(self) -> Any:
        """The class itself: the one place that imports a component's module.

        Raises PluginError naming the owner.
        """
        module, _, name = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (Exception, SystemExit) as error:
            raise self.broken(f"{type(error).__name__}: {error}") from error

    def broken(self, reason: str) -> PluginError:
        """The error that says which component of whom can't be used, and why."""
        return PluginError(f'{self.kind} "{self.name}" of {self.owner} ({self.target}): {reason}')


class Registry:
    """All components, by kind and name. Names never override each other."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}
        self._frozen = False
        self.remarks: list[str] = []  # why a component may be missing; said beside "no such name"

    def add(self, kind: str, name: str, target: str, *, owner: str = "cdlm") -> None:
        """Make the class at `target` ("module:Class") known as the `kind` called `name`.

        Raises PluginError for an unknown kind, a name that is taken or not snake_case, a target
        of another form, and after `freeze`.
        """
        if fault := self._fault(kind, name, target):
            raise PluginError(f"{owner} can't add {kind} {_quoted(name)}: {fault}")
        self._entries[kind, name] = Entry(kind, name, target, owner)

    def _fault(self, kind: str, name: str, target: str) -> str:
        """What is wrong with these arguments of `add`, or ""."""
        if self._frozen:
            return "the registry is closed; components are added in cdlm_register, and only there"
        if not all(isinstance(argument, str) for argument in (kind, name, target)):
            return f"kind, name and target are texts, got {(kind, name, target)!r}"
        if kind not in KINDS:
            return f'there is no kind "{kind}"; {nearest(kind, KINDS)}'
        if not NAME.fullmatch(name):
            return 'names are snake_case, like "extra_token"'
        if not TARGET.fullmatch(target):
            return f'a target is "module:Class", got "{target}"'
        if taken := self._entries.get((kind, name)):
            return f"{taken.owner} has brought one of that name ({taken.target})"
        return ""

    def get(self, kind: str, name: str) -> Entry:
        """The entry of that kind and name. Raises CdlmError with the nearest right one."""
        if name not in self.names(kind):
            raise CdlmError(f'no {kind} is called "{name}"; {self.hint(kind, name)}')
        return self._entries[kind, name]

    def hint(self, kind: str, name: str) -> str:
        """What the writer of an unknown name may have meant, and why it may be missing."""
        elsewhere = [other for other, known in self._entries if known == name]
        found = f'there is a {elsewhere[0]} called "{name}"; ' if elsewhere else ""
        return "; ".join([found + nearest(name, self.names(kind)), *self.remarks])

    def names(self, kind: str) -> list[str]:
        """The names of that kind, in the order in which they came. Raises CdlmError."""
        if kind not in KINDS:
            raise CdlmError(f'there is no kind "{kind}"; {nearest(kind, KINDS)}')
        return [name for known, name in self._entries if known == kind]

    def entries(self) -> list[Entry]:
        """All entries, in the order in which they came."""
        return list(self._entries.values())

    def freeze(self) -> None:
        """From now on `add` is an error."""
        self._frozen = True

    def owned_by(self, owner: str) -> Registrar:
        """What a plugin gets: it can add, under its own distribution's name, and nothing else."""
        return Registrar(self, owner)

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Forget what was added inside where an exception leaves the block."""
        before = dict(self._entries)
        try:
            yield
        except BaseException:
            self._entries = before
            raise


class Registrar:
    """The registry as one plugin sees it."""

    def __init__(self, registry: Registry, owner: str) -> None:
        self._registry = registry
        self.owner = owner

    def add(self, kind: str, name: str, target: str) -> None:
        """Make the class at `target` ("module:Class") known as the `kind` called `name`."""
        self._registry.add(kind, name, target, owner=self.owner)


def _quoted(name: object) -> str:
    return f'"{name}"' if isinstance(name, str) else repr(name)
