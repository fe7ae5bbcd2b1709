"""What every kind asks of its components, read from `cdlm.protocols`: one source for all who ask.

`compose` holds each component that it builds to it, so that a missing method is said once, and with
the component's name; `cdlm new` writes it into the manual of a new plugin.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from cdlm import protocols

CALLED = ("__call__", "__len__")  # methods that Python calls, and no one by name
NOTHING = object()


@dataclass(frozen=True)
class Contract:
    """What a component of one kind has: values that are there, and methods by name."""

    about: str  # the first sentence of the protocol
    values: tuple[str, ...]
    methods: dict[str, inspect.Signature]  # without self
    docs: dict[str, str]  # of the methods


@cache
def contracts() -> dict[str, Contract]:
    """The contract of every kind."""
    found = {}
    for protocol in vars(protocols).values():
        doc = inspect.getdoc(protocol) or "" if inspect.isclass(protocol) else ""
        if kind := re.match(r"kind `(\w+)`: ", doc):
            found[kind[1]] = _contract(protocol, doc.removeprefix(kind[0]))
    return found


def _contract(protocol: Any, about: str) -> Contract:
    methods = {
        name: it
        for name, it in vars(protocol).items()
        if inspect.isfunction(it) and (name in CALLED or not name.startswith("_"))
    }
    return Contract(
        about=" ".join(about.split("\n\n")[0].split()),
        values=tuple(inspect.get_annotations(protocol)) + tuple(_properties(protocol)),
        methods={name: _bound(it) for name, it in methods.items()},
        docs={name: inspect.getdoc(it) or "" for name, it in methods.items()},
    )


def _properties(protocol: Any) -> Iterator[str]:
    return (name for name, it in vars(protocol).items() if isinstance(it, property))


def _bound(method: Any) -> inspect.Signature:
    signature = inspect.signature(method)
    _, *rest = signature.parameters.values()
    return signature.replace(parameters=rest)


def faults(kind: str, component: Any) -> list[str]:
    """What the component lacks of its kind's contract, a line for each; empty where it has all."""
    contract = contracts()[kind]
    missing = [name for name in contract.values if not _has_value(component, name)]
    found = [f'it has no value "{name}"' for name in missing]
    for name, signature in contract.methods.items():
        found += _method_faults(component, name, signature)
    return found


def _has_value(component: Any, name: str) -> bool:
    """Whether it is there, or declared by the class to come: a tokenizer's `pad` comes with fit."""
    declared = (inspect.get_annotations(it) for it in type(component).__mro__)
    return getattr(component, name, NOTHING) is not NOTHING or any(name in it for it in declared)


def _method_faults(component: Any, name: str, wanted: inspect.Signature) -> list[str]:
    method, called = _method(component, name)
    arguments = ", ".join(wanted.parameters)
    if not callable(method):
        return [f"it has no method {called}({arguments})"]
    try:
        taken = inspect.signature(method)
    except (TypeError, ValueError):  # written in C: what it takes is not to be known
        return []
    try:
        taken.bind(*wanted.parameters)
    except TypeError:
        own = ", ".join(taken.parameters)
        return [f"its method {called} takes ({own}), and is called with ({arguments})"]
    return []


def _method(component: Any, name: str) -> tuple[Any, str]:
    """The method, or None; and what its author calls it: an nn.Module is called by `forward`."""
    forward = getattr(component, "forward", NOTHING)
    if name == "__call__" and forward is not NOTHING:
        # The `forward` of a module that defines none is this function of torch's.
        there = getattr(forward, "__name__", "") != "_forward_unimplemented"
        return (forward if there else None), "forward"
    return getattr(component, name, None), name
