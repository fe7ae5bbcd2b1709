"""Twelve ways in which a plugin breaks, as a person meets them: the rest works, and the text helps.

Each is installed beside a plugin that works, in a process of its own. What is said names the
plugin and its distribution; what is wrong at loading or in a signature is found without torch.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import CDLM, Said
from test_plugins import install

import cdlm

HOOK = "import cdlm\n@cdlm.hookimpl\ndef cdlm_register(registry):\n"
NAMED = 'plugin "zz_broken" of zz-broken 0.1 failed: '
GOOD = (
    HOOK
    + '    registry.add("conditioning", "well", "good_film:Well")\n'
    + '''
class Well:
    """Nothing is written."""
'''
)


@dataclass(frozen=True)
class Way:
    """How a plugin is broken, and what `cdlm plugins` says of it."""

    text: str  # of its module
    said: str
    points: str = ""  # its entry points, where they are what is broken
    recipe: str = field(default="", kw_only=True)  # what a recipe with its component is told


def adds(name: str, body: str) -> str:
    """A plugin that brings one conditioning, Zz."""
    return HOOK + f'    registry.add("conditioning", "{name}", "zz_broken:Zz")\n' + body


WAYS = {
    "1 it imports what is not installed": Way(
        "import no_such_module", NAMED + "ModuleNotFoundError: No module named 'no_such_module'"
    ),
    "2 its source is no Python": Way("def", NAMED + "SyntaxError: invalid syntax"),
    "3 it exits": Way("import sys\nsys.exit('bye')", NAMED + "SystemExit: bye"),
    "4 it raises in its hook": Way(
        HOOK + "    registry.add('target', 'half', 'm:C')\n    raise OSError('no\\nlicence')",
        NAMED + "OSError: no licence",
    ),
    "5 its name is taken": Way(
        HOOK + "    registry.add('schedule', 'cosine', 'm:C')",
        NAMED + 'zz-broken 0.1 can\'t add schedule "cosine": cdlm',
    ),
    "6 it names a kind that there is not": Way(
        HOOK + "    registry.add('schedul', 'mine', 'm:C')",
        NAMED + 'zz-broken 0.1 can\'t add schedul "mine": there is no kind "schedul"; '
        'did you mean "schedule"?',
    ),
    "7 its hook is misspelt": Way(
        HOOK.replace("cdlm_register", "cdlm_registers") + "    pass",
        NAMED + 'there is no hook "cdlm_registers"; did you mean "cdlm_register"?',
    ),
    "8 its hook is of another version": Way(
        HOOK.replace("registry)", "registry, config)") + "    pass",
        NAMED + "PluginValidationError: ",
    ),
    "9 its entry point leads nowhere": Way(
        HOOK + "    pass",
        'plugin "zz" of zz-broken 0.1 failed: AttributeError: ',
        "[cdlm]\nzz = zz_broken:nothing\n",
    ),
    "10 its component is gone": Way(
        adds("zz", ""),
        "  conditioning zz  can't be used: "
        'conditioning "zz" of zz-broken 0.1 (zz_broken:Zz): AttributeError: ',
        recipe='conditioning "zz" of zz-broken 0.1 (zz_broken:Zz): AttributeError: ',
    ),
    "11 its signature is no schema": Way(
        adds("zz", "class Zz:\n    def __init__(self, **rest): pass"),
        'can\'t be used: conditioning "zz" of zz-broken 0.1 (zz_broken:Zz): Zz.__init__ takes * '
        "or ** arguments",
        recipe='conditioning "zz" of zz-broken 0.1 (zz_broken:Zz): Zz.__init__ takes * or **',
    ),
    "12 it prints, and is slow": Way(
        "import time\nprint('hello from zz')\ntime.sleep(0.4)\n" + HOOK + "    pass",
        "  slows every command by 0.4 s: what its module imports",
    ),
}


Ask = Callable[..., Said]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """`cdlm ARGUMENTS` where a working plugin, and a broken one, are installed."""
    site = tmp_path / "site"
    site.mkdir()
    install(site, "good-film", GOOD)
    paths = os.pathsep.join([str(Path(cdlm.__file__).parents[1]), str(site)])
    given = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def asked(*argv: object) -> Said:
        words = [*CDLM, *map(str, argv)]
        done = subprocess.run(words, cwd=tmp_path, env=given, capture_output=True, text=True)
        return Said(done.returncode, done.stdout, done.stderr)

    return asked


def broken(tmp_path: Path, way: Way) -> None:
    install(tmp_path / "site", "zz-broken", way.text, way.points)


@pytest.mark.parametrize("name", WAYS)
def test_the_broken_one_is_named_and_the_rest_works(
    name: str, tmp_path: Path, ask: Ask, tiny_recipe: Path
) -> None:
    way = WAYS[name]
    broken(tmp_path, way)
    said = ask("plugins")
    assert said.code == 0 and "Traceback" not in said.err
    assert said.out.startswith("cdlm ")
    assert "good-film 0.1 (entry point good_film)\n  conditioning well  Nothing" in said.out
    assert way.said in said.out
    checked = ask("check", tiny_recipe)
    assert checked.code == 0 and "no mistakes" in checked.out


@pytest.mark.parametrize("name", WAYS)
def test_a_recipe_that_needs_it_is_told_why_it_is_missing(
    name: str, tmp_path: Path, ask: Ask, tiny_recipe: Path
) -> None:
    way = WAYS[name]
    broken(tmp_path, way)
    recipe = 'conditioning=[{use="time_add"}, {use="zz"}]'
    said = ask("check", tiny_recipe, "--set", recipe)
    assert said.code == 2 and "Traceback" not in said.err
    failed = way.said.startswith(("plugin ", NAMED))
    assert (way.recipe or (way.said if failed else 'no conditioning is called "zz"')) in said.err


def test_no_command_minds_all_of_them_at_once(tmp_path: Path, ask: Ask, tiny_recipe: Path) -> None:
    for i, way in enumerate(WAYS.values()):
        name = f"zz-broken{i}"
        text = way.text.replace("zz_broken", name.replace("-", "_"))
        points = way.points.replace("zz_broken", name.replace("-", "_"))
        install(tmp_path / "site", name, text, points)
    for argv in (["--help"], ["list"], ["show", "schedule", "cosine"], ["show", tiny_recipe]):
        said = ask(*argv)
        assert said.code == 0 and "Traceback" not in said.err, argv
        assert "hello from zz" not in said.out and "hello from zz" in said.err
    said = ask("train", tiny_recipe, "--set", "train.steps=2")
    assert said.code == 0
    # Nine fail to load, and the 11th brings what the 10th has brought.
    assert said.err.count("; see cdlm plugins --verbose") == 10


# ----------------------------------------------------------------------- in training and sampling

RUNNING = '''
from dataclasses import dataclass
from typing import ClassVar
from torch import nn


class Zz(nn.Module):
    """Raises in training, or gives what others fall over."""

    writes: ClassVar[set[str]] = set()
    extra = 0

    def __init__(self, *, way: str, dims):
        super().__init__()
        self.way = way

    def forward(self, stream, condition):
        if self.way == "raises":
            return stream.nothing
        return stream if self.way == "fine" else None

@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Raises in sampling."""

    order: ClassVar[int] = 1
    steps: int = 2

    def step(self, state, s, denoise, schedule, rng):
        return 1 / 0


@dataclass(frozen=True, kw_only=True)
class Half:
    """A grid that can't be called."""
'''
BRINGS = (
    adds("zz", "")
    + '    registry.add("sampler", "zz", "zz_broken:Sampler")\n'
    + '    registry.add("grid", "half", "zz_broken:Half")\n'
    + RUNNING
)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (
            ['conditioning=[{use="time_add"}, {use="zz", way="raises"}]'],
            'error: conditioning "zz" of zz-broken 0.1 (zz_broken:Zz): it raised AttributeError: '
            "'Stream' object has no attribute 'nothing'\n    {site}/zz_broken.py:25, in forward: "
            "return stream.nothing\n    the whole traceback: the same command after "
            "CDLM_TRACEBACK=1\n",
        ),
        (
            ["sampler.use=zz"],
            'error: sampler "zz" of zz-broken 0.1 (zz_broken:Sampler): it raised '
            "ZeroDivisionError: division by zero\n    {site}/zz_broken.py:36, in step: return 1 / 0"
            "\n    the whole traceback: the same command after CDLM_TRACEBACK=1\n",
        ),
        (
            ["grid.use=half"],
            'error: grid "half" of zz-broken 0.1 (zz_broken:Half): it has no method '
            "__call__(steps, schedule); see grid in cdlm/protocols.py\n",
        ),
    ],
)
def test_a_component_that_fails_in_a_run_is_named(
    tmp_path: Path, ask: Ask, tiny_recipe: Path, sets: list[str], said: str
) -> None:
    install(tmp_path / "site", "zz-broken", BRINGS)
    options = [word for text in ["train.steps=2", *sets] for word in ("--set", text)]
    found = ask("run", tiny_recipe, *options)
    assert found.code == 2
    assert found.err.endswith(said.format(site=tmp_path / "site")), found.err


def test_where_our_own_code_falls_over_what_a_plugin_gave_the_plugin_is_mentioned(
    tmp_path: Path, ask: Ask, tiny_recipe: Path
) -> None:
    install(tmp_path / "site", "zz-broken", BRINGS)
    wrong = 'conditioning=[{use="time_add"}, {use="zz", way="gives None"}]'
    found = ask("train", tiny_recipe, "--set", "train.steps=2", "--set", wrong)
    assert found.code == 1 and "Traceback" in found.err
    assert "loaded from plugins: " in found.err
    assert 'conditioning "zz" of zz-broken 0.1' in found.err


def test_the_traceback_is_there_for_who_asks(
    tmp_path: Path, ask: Ask, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "zz-broken", BRINGS)
    raises = 'conditioning=[{use="time_add"}, {use="zz", way="raises"}]'
    paths = os.pathsep.join([str(Path(cdlm.__file__).parents[1]), str(tmp_path / "site")])
    done = subprocess.run(
        [*CDLM, "train", str(tiny_recipe), "--set", raises],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths, "CDLM_TRACEBACK": "1"},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert "return stream.nothing" in done.stderr


# ------------------------------------------------------------------------------ code that changes


def test_a_run_says_that_a_plugins_code_has_changed(
    tmp_path: Path, ask: Ask, tiny_recipe: Path
) -> None:
    install(tmp_path / "site", "zz-broken", BRINGS)
    fine = 'conditioning=[{use="time_add"}, {use="zz", way="fine"}]'
    trained = ask("train", tiny_recipe, "--set", "train.steps=2", "--set", fine)
    assert trained.code == 0, trained.err
    run = trained.out.split("run: ")[1].strip()
    assert "this run began with" not in ask("eval", run).err
    module = tmp_path / "site" / "zz_broken.py"
    module.write_text(module.read_text() + "# another line\n")
    said = ask("eval", run)
    assert said.code == 0
    assert "warning: conditioning zz: this run began with zz-broken 0.1 (code " in said.err
