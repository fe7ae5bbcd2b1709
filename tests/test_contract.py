"""What a component lacks of its kind's protocol is found before it is used, and said once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn

from cdlm import contract, plugins
from cdlm.compose import make
from cdlm.errors import PluginError
from cdlm.recipe import Choice
from cdlm.registry import KINDS, Registry
from cdlm.testing import conformance


def nothing(*_: Any) -> None:
    """A method that takes whatever it gets."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_contract(kind: str) -> None:
    found = contract.contracts()[kind]
    assert found.methods and found.about
    assert all(found.docs.values()), "a method of a protocol without a docstring"


def test_there_is_no_contract_without_a_kind() -> None:
    assert set(contract.contracts()) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_that_has_nothing_lacks_everything(kind: str) -> None:
    asked = contract.contracts()[kind]
    faults = contract.faults(kind, object())
    assert len(faults) == len(asked.values) + len(asked.methods)


def test_what_is_missing_is_named() -> None:
    timesteps = lambda batch, rng: None  # noqa: E731
    assert contract.faults("timesteps", timesteps) == ["it has no method observe(t, loss)"]


def test_a_value_that_comes_later_may_be_declared() -> None:
    class Later:
        pad: int
        end: int
        fit = encode = decode = save = load = nothing

        def __len__(self) -> int:
            return 3

    assert contract.faults("tokenizer", Later()) == []


def test_a_method_of_other_arguments_is_told_how_it_is_called() -> None:
    target = SimpleNamespace(encode=lambda noised, schedule: 0, decode=lambda y, x_t: 0)
    said = "its method decode takes (y, x_t), and is called with (y, x_t, t, schedule)"
    assert contract.faults("target", target) == [said]


def test_a_module_is_called_by_forward() -> None:
    class Blank(nn.Module):
        reads = {"tokens"}  # noqa: RUF012

    class Two(Blank):
        def forward(self, h: Any, mask: Any) -> None:
            """One argument too many."""

    assert contract.faults("denoiser", Blank()) == ["it has no method forward(stream)"]
    said = "its method forward takes (h, mask), and is called with (stream)"
    assert contract.faults("denoiser", Two()) == [said]


# ----------------------------------------------------------------------- where it is asked for


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    """A plugin's broken components, each in a module that can be imported."""
    module = ModuleType("zz_broken")
    lines = [
        "class Half:", "    def __call__(self, batch, rng): pass", "",
        "class Strict:", "    def __init__(self, dims): self.nothing.at_all", "",
    ]  # fmt: skip
    (tmp_path / "zz_broken.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, module.__name__, raising=False)
    found = Registry()
    for name, target in {"half": "Half", "strict": "Strict"}.items():
        found.add("timesteps", name, f"zz_broken:{target}", owner="zz-broken 0.1")
    monkeypatch.setattr(plugins, "load", lambda: SimpleNamespace(registry=found))
    return found


def test_composing_says_what_is_missing_and_whose_it_is(registry: Registry) -> None:
    said = r'timesteps "half" of zz-broken 0\.1 \(zz_broken:Half\): it has no method observe'
    with pytest.raises(PluginError, match=said):
        make(Choice("timesteps", "half", {}))


def test_a_constructor_that_fails_is_named(registry: Registry) -> None:
    said = r'"strict" of zz-broken 0\.1 .* it can\'t be built: AttributeError'
    with pytest.raises(PluginError, match=said):
        make(Choice("timesteps", "strict", {}), dims=3)


@pytest.mark.parametrize("name", ["half", "strict"])
def test_conformance_says_it_once(registry: Registry, name: str) -> None:
    test = conformance("timesteps", name)
    built, *laws = (case.values[0] for case in test.pytestmark[0].args[1])  # type: ignore[attr-defined]
    with pytest.raises(PluginError):
        test(built)
    for law in laws:
        with pytest.raises(pytest.skip.Exception, match="can_be_built says why"):
            test(law)
