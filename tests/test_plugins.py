"""A broken plugin stops nothing, is named with its distribution, and leaves nothing behind."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer

from cdlm import plugins, signature
from cdlm.errors import CdlmError, PluginError
from cdlm.plugins import Plugins, hookimpl, unheard
from cdlm.records import Event

BUILT_IN = ModuleType("built_in")
GOOD = """
from cdlm.plugins import hookimpl

@hookimpl
def cdlm_register(registry):
    registry.add("conditioning", "film", "good_film:Film")
"""


@hookimpl
def _register(registry: object) -> None:
    registry.add("schedule", "cosine", "json:JSONDecoder")  # type: ignore[attr-defined]


BUILT_IN.cdlm_register = _register  # type: ignore[attr-defined]

Install = Callable[..., None]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of installed distributions."""
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("zz_broken", None)  # of another test in this process
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def install(site: Path, name: str, text: str, points: str = "", version: str = "0.1") -> None:
    """Pretend that pip installed the distribution `name`, of one module."""
    module = name.replace("-", "_")
    (site / f"{module}.py").write_text(textwrap.dedent(text))
    info = site / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points or f"[cdlm]\n{module} = {module}\n")


def load(site: Path) -> Plugins:
    return plugins.gather(BUILT_IN, *plugins.installed([str(site)]))


def test_a_working_plugin_adds_its_components(site: Path) -> None:
    install(site, "good-film", GOOD)
    loaded = load(site)
    assert loaded.failures == []
    built_in, film = loaded.loaded
    assert built_in.components == (("schedule", "cosine"),)
    assert (film.distribution, film.version) == ("good-film", "0.1")
    assert film.components == (("conditioning", "film"),)
    assert loaded.registry.get("conditioning", "film").owner == "good-film 0.1"


HOOK = "from cdlm.plugins import hookimpl\n@hookimpl\n"
BROKEN = {
    "import error": ("import no_such_module_at_all", "ModuleNotFoundError"),
    "syntax error": ("def", "SyntaxError"),
    "exit at import": ("raise SystemExit(3)", "SystemExit: 3"),
    "error at import": ("1 / 0", "ZeroDivisionError"),
    "endless import": ("def f(): f()\nf()", "RecursionError"),
    "register raises": (
        HOOK + "def cdlm_register(registry):\n"
        "    registry.add('target', 'half', 'm:C')\n    raise RuntimeError('two\\nlines')",
        "RuntimeError: two lines",
    ),
    "register exits": (HOOK + "def cdlm_register(registry): raise SystemExit", "SystemExit"),
    "collision with a built-in": (
        HOOK + "def cdlm_register(registry):\n"
        "    registry.add('target', 'half', 'm:C')\n    registry.add('schedule', 'cosine', 'm:C')",
        "cdlm",
    ),
    "collision with a plugin": (
        HOOK + "def cdlm_register(registry): registry.add('conditioning', 'film', 'm:C')",
        "good-film 0.1 has brought one of that name",
    ),
    "unknown kind": (
        HOOK + "def cdlm_register(registry): registry.add('schedul', 'a', 'm:C')",
        'did you mean "schedule"',
    ),
    "misspelt hook": (
        HOOK + "def cdlm_registr(registry): pass",
        'there is no hook "cdlm_registr"; did you mean "cdlm_register"',
    ),
    "stale hook": (HOOK + "def cdlm_register(registry, config): pass", "config"),
    "target that is no text": (
        HOOK + "def cdlm_register(registry): registry.add('target', 'a', dict)",
        "are texts",
    ),
    "name that is no text": (
        HOOK + "def cdlm_register(registry): registry.add('target', None, 'm:C')",
        "are texts",
    ),
    "wrong method": (
        HOOK + "def cdlm_register(registry): registry.register('target', 'a', 'm:C')",
        "AttributeError",
    ),
    "forgotten marker": ("def cdlm_register(registry): pass", "marked @cdlm.hookimpl"),
    "no hooks": ("", "marked @cdlm.hookimpl"),
}


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_plugin_stops_nothing(site: Path, way: str) -> None:
    text, said = BROKEN[way]
    install(site, "good-film", GOOD)
    install(site, "zz-broken", text)
    loaded = load(site)
    [failure] = loaded.failures
    assert (failure.plugin, failure.distribution) == ("zz_broken", "zz-broken")
    assert failure.version == "0.1"
    assert said in failure.reason
    assert "\n" not in failure.reason
    assert "Traceback" in failure.traceback
    added = {(entry.kind, entry.name) for entry in loaded.registry.entries()}
    assert added == {("schedule", "cosine"), ("conditioning", "film")}


@pytest.mark.parametrize("way", BROKEN)
def test_an_unknown_component_mentions_the_broken_plugin(site: Path, way: str) -> None:
    install(site, "good-film", GOOD)
    install(site, "zz-broken", BROKEN[way][0])
    with pytest.raises(CdlmError, match=r"of zz-broken 0\.1 failed: .*; see cdlm plugins"):
        load(site).registry.get("denoiser", "whatever")


POINTS = {
    "missing attribute": ("[cdlm]\nbad = zz_broken:nothing\n", "AttributeError"),
    "attribute of a wrong type": ("[cdlm]\nbad = zz_broken:NUMBER\n", "3 has no function marked"),
    "missing module": ("[cdlm]\nbad = not_there\n", "ModuleNotFoundError"),
    "line without an equals sign": ("[cdlm]\nbad\n", "TypeError"),
    "value that is no reference": ("[cdlm]\nbad = 1 + 1\n", ""),
}


@pytest.mark.parametrize("way", POINTS)
def test_a_broken_entry_point_stops_nothing(site: Path, way: str) -> None:
    points, said = POINTS[way]
    install(site, "good-film", GOOD)
    install(site, "zz-broken", "NUMBER = 3", points)
    loaded = load(site)
    [failure] = loaded.failures
    assert failure.distribution == "zz-broken"
    assert said in failure.reason
    assert loaded.registry.names("conditioning") == ["film"]


def test_a_module_named_by_two_entry_points_is_loaded_once(site: Path) -> None:
    install(site, "good-film", GOOD, "[cdlm]\none = good_film\ntwo = good_film\n")
    loaded = load(site)
    assert [it.name for it in loaded.loaded] == ["cdlm", "one"]
    assert "has been loaded already, for good-film 0.1" in loaded.failures[0].reason


def test_of_two_versions_the_first_on_the_path_counts(site: Path, tmp_path: Path) -> None:
    install(site, "good-film", GOOD)
    later = tmp_path / "later"
    later.mkdir()
    install(later, "Good.Film", GOOD, "[cdlm]\ngood_film = good_film\n", version="9.9")
    loaded = plugins.gather(BUILT_IN, *plugins.installed([str(site), str(later)]))
    assert [it.version for it in loaded.loaded[1:]] == ["0.1"]
    assert loaded.failures == []


def test_a_distribution_without_metadata_still_works(site: Path) -> None:
    install(site, "good-film", GOOD)
    (site / "good_film-0.1.dist-info" / "METADATA").unlink()
    assert load(site).registry.names("conditioning") == ["film"]


def test_an_unreadable_list_of_entry_points_is_reported(site: Path) -> None:
    install(site, "good-film", GOOD)
    install(site, "zz-broken", "")
    (site / "zz_broken-0.1.dist-info" / "entry_points.txt").write_bytes(b"[cdlm]\nx = \xff\n")
    loaded = load(site)
    assert loaded.failures[0].distribution == "zz-broken"
    assert loaded.registry.names("conditioning") == ["film"]


def test_ctrl_c_passes_through(site: Path) -> None:
    install(site, "zz-broken", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load(site)


def test_a_target_that_is_not_there_is_found_on_use(site: Path) -> None:
    text = GOOD.replace("good_film:Film", "good_film_that_is_gone:Film")
    install(site, "good-film", text)
    loaded = load(site)
    assert loaded.failures == []
    for use in (lambda it: it.load(), signature.read):
        with pytest.raises(PluginError, match=r'conditioning "film" of good-film 0\.1'):
            use(loaded.registry.get("conditioning", "film"))


def test_registering_later_is_refused(site: Path) -> None:
    loaded = load(site)
    with pytest.raises(PluginError, match="closed"):
        loaded.registry.owned_by("late 1").add("target", "late", "m:C")


# --------------------------------------------------------------------------- commands and events

COMMAND = HOOK + "def cdlm_commands(app):\n    @app.command()\n    def {}(): print('brought')\n"


def app() -> typer.Typer:
    mine = typer.Typer()
    mine.command()(lambda: None)
    mine.registered_commands[0].name = "train"
    return mine


def commands(mine: typer.Typer) -> set[str]:
    return set(typer.main.get_group(mine).commands)


def test_a_command_is_added(site: Path) -> None:
    install(site, "good-film", COMMAND.format("draw_film"))
    loaded, mine = load(site), app()
    loaded.add_commands(mine)
    assert loaded.failures == []
    assert commands(mine) == {"train", "draw-film"}


@pytest.mark.parametrize(
    "text",
    [
        COMMAND.format("train"),
        HOOK + "def cdlm_commands(app): 1 / 0",
        HOOK + "def cdlm_commands(app):\n    @app.command()\n    def f(a: list[list[int]]): pass",
    ],
)
def test_a_command_that_can_not_be_added_is_a_failure(site: Path, text: str) -> None:
    install(site, "zz-broken", text)
    loaded, mine = load(site), app()
    loaded.add_commands(mine)
    assert [it.distribution for it in loaded.failures] == ["zz-broken"]
    assert commands(mine) == {"train"}


def test_events_reach_plugins_and_a_failing_one_is_reported_once(site: Path) -> None:
    heard = "from pathlib import Path\n" + HOOK
    heard += "def cdlm_event(event, run_dir): (run_dir / event.name).touch()\n"
    install(site, "good-film", heard)
    install(site, "aa-broken", HOOK + "def cdlm_event(event): raise SystemExit(9)")
    loaded = load(site)
    first = loaded.tell(Event(step=1, name="loss", value=0.5), site)
    second = loaded.tell(Event(step=2, name="end", value=0.5), site)
    assert [it.distribution for it in first] == ["aa-broken"]
    assert second == []
    assert (site / "loss").exists() and (site / "end").exists()
    with unheard():
        loaded.tell(Event(step=3, name="timed", value=0.5), site)
    loaded.tell(Event(step=4, name="after", value=0.5), site)
    assert (site / "after").exists() and not (site / "timed").exists()
