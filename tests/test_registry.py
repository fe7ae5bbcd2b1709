"""Names never override, mistakes name the nearest right answer, and only `load` imports."""

from __future__ import annotations

import pytest

from cdlm.errors import CdlmError, PluginError
from cdlm.registry import Registry


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add("schedule", "cosine", "json:JSONDecoder")
    registry.add("schedule", "linear", "json:JSONEncoder")
    registry.add("target", "x0", "json:JSONDecoder", owner="cdlm-film 0.1")
    return registry


def test_get_returns_what_was_added(registry: Registry) -> None:
    entry = registry.get("target", "x0")
    assert (entry.kind, entry.name, entry.owner) == ("target", "x0", "cdlm-film 0.1")
    assert registry.names("schedule") == ["cosine", "linear"]
    assert len(registry.entries()) == 3


def test_a_taken_name_is_refused_naming_both_owners(registry: Registry) -> None:
    with pytest.raises(PluginError, match=r"other 2\.0 can't add.*cdlm-film 0\.1 has brought"):
        registry.owned_by("other 2.0").add("target", "x0", "json:JSONEncoder")
    assert registry.get("target", "x0").target == "json:JSONDecoder"


@pytest.mark.parametrize(
    ("kind", "name", "target", "said"),
    [
        ("schedul", "a", "m:C", 'did you mean "schedule"'),
        ("schedule", "Cosine", "m:C", "snake_case"),
        ("schedule", "co-sine", "m:C", "snake_case"),
        ("schedule", "", "m:C", "snake_case"),
        ("schedule", "a", "m.C", 'a target is "module:Class"'),
        ("schedule", "a", "m:C()", 'a target is "module:Class"'),
        ("schedule", "a", dict, "are texts"),
        (["schedule"], "a", "m:C", "are texts"),
    ],
)
def test_a_wrong_argument_is_refused(
    registry: Registry, kind: str, name: str, target: str, said: str
) -> None:
    with pytest.raises(PluginError, match=said):
        registry.add(kind, name, target)
    assert len(registry.entries()) == 3


def test_an_unknown_name_gets_the_nearest_and_what_is_allowed(registry: Registry) -> None:
    with pytest.raises(CdlmError, match='did you mean "cosine"\\? allowed: cosine, linear'):
        registry.get("schedule", "cosin")


def test_a_name_of_another_kind_is_pointed_out(registry: Registry) -> None:
    with pytest.raises(CdlmError, match='there is a target called "x0"'):
        registry.get("schedule", "x0")


def test_an_unknown_kind_gets_the_nearest(registry: Registry) -> None:
    with pytest.raises(CdlmError, match='did you mean "schedule"'):
        registry.get("schedules", "cosine")


def test_remarks_are_said_with_an_unknown_name(registry: Registry) -> None:
    registry.remarks.append("plugin film failed")
    with pytest.raises(CdlmError, match="plugin film failed"):
        registry.get("schedule", "film")


def test_a_frozen_registry_takes_nothing(registry: Registry) -> None:
    registry.freeze()
    with pytest.raises(PluginError, match="closed"):
        registry.add("schedule", "sqrt", "m:C")


def test_all_or_nothing_forgets_what_was_added_before_an_error(registry: Registry) -> None:
    before = registry.entries()
    with pytest.raises(KeyboardInterrupt), registry.all_or_nothing():
        registry.add("schedule", "sqrt", "m:C")
        raise KeyboardInterrupt
    assert registry.entries() == before


def test_load_returns_the_class_itself(registry: Registry) -> None:
    import json

    assert registry.get("schedule", "cosine").load() is json.JSONDecoder


@pytest.mark.parametrize("target", ["no_such_module_at_all:C", "json:NoSuchClass"])
def test_a_target_that_is_not_there_names_the_owner(registry: Registry, target: str) -> None:
    registry.add("schedule", "film", target, owner="cdlm-film 0.1")
    with pytest.raises(PluginError, match=r'schedule "film" of cdlm-film 0\.1'):
        registry.get("schedule", "film").load()
