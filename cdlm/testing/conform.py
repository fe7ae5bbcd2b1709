"""From a kind and a name to pytest tests, one for every law of the kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdlm import recipe, study
from cdlm.compose import make
from cdlm.errors import CdlmError, nearest
from cdlm.recipe import Choice
from cdlm.registry import KINDS
from cdlm.testing import data, flow, network, process, sampling, studies, whole
from cdlm.testing.examples import CAPTIONS, DIMS

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

Law = Callable[[Any], None]
"""(component) -> nothing; raises AssertionError where the component breaks it."""

WHOLE = "works_in_a_captioner"
BUILT = "can_be_built"


def laws(kind: str) -> dict[str, Law]:
    """The laws of a kind by name. Raises CdlmError for an unknown kind."""
    if kind not in KINDS:
        raise CdlmError(f'there is no kind "{kind}"; {nearest(kind, KINDS)}')
    prefix = f"check_{kind}_"
    found: dict[str, Law] = {
        name.removeprefix(prefix): law
        for module in (data, flow, process, network, sampling, studies)
        for name, law in vars(module).items()
        if name.startswith(prefix)
    }
    if kind in whole.KINDS:
        found[WHOLE] = partial(whole.check_captioner_works, kind)
    return found


def build(kind: str, name: str, **parameters: Any) -> Any:
    """The registry's component, small, its weights the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        component = make(Choice(kind, name, parameters), dims=DIMS)
    if kind == "tokenizer":
        component.fit(CAPTIONS)
    return component


def check_recipe(path: str | Path) -> None:
    """The recipe in this file has no mistakes. Raises RecipeError, which lists them all."""
    recipe.load(path)


def check_study(path: str | Path) -> None:
    """The study in this file has no mistakes, nor has a point of it. Raises RecipeError."""
    study.load(path)


def conformance(
    kind: str, name: str, *, waive: Mapping[str, str] | None = None, **parameters: Any
) -> Callable[..., None]:
    """A test function with one case for every law of the kind; assign it to a `test_...` name.

    The first case is `can_be_built`: the component can be had, and has all that `cdlm.protocols`
    asks of its kind. Where it fails the laws are skipped, so that what is wrong is said once.
    `waive` says which laws do not hold by design and why, {law: reason}; a waived law that does
    hold fails the test. Raises CdlmError for an unknown kind or law.
    """
    import pytest

    known, waived = laws(kind), dict(waive or {})
    for law in waived:
        if law not in known:
            raise CdlmError(f'kind {kind} has no law "{law}"; {nearest(law, known)}')

    cases = {BUILT: _nothing_more} | known

    @pytest.mark.parametrize("law", [_case(*item, waived) for item in cases.items()])
    def test(law: Law) -> None:
        try:
            component = build(kind, name, **parameters)
        except CdlmError:
            if law is _nothing_more:
                raise
            pytest.skip(f"it can't be built; {BUILT} says why")
        law(component)

    return test


def _nothing_more(component: Any) -> None:
    """It has been built, and that is all that is asked."""


def _case(name: str, law: Law, waived: Mapping[str, str]) -> ParameterSet:
    import pytest

    if name not in waived:
        return pytest.param(law, id=name)
    mark = pytest.mark.xfail(reason=waived[name], strict=True, raises=AssertionError)
    return pytest.param(law, id=name, marks=mark)
