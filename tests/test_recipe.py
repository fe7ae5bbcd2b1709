"""A recipe resolves to itself; a mistake has place, nearest right answer and what is allowed."""

from __future__ import annotations

import random
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdlm import layers, recipe, toml
from cdlm.errors import CdlmError, RecipeError
from cdlm.recipe import LARGEST, LINES, USUAL, Recipe
from cdlm.registry import IN_RECIPES, Registry

PARTS = '''
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cdlm.values import Fraction, Positive

raise RuntimeError("nothing is built while a recipe is checked")

@dataclass(frozen=True, kw_only=True)
class Plain:
    """Nothing to set."""

@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Falls along a cosine."""
    offset: float = 0.008  # keeps sigma from vanishing
    floor: float = 1e-3

@dataclass(frozen=True, kw_only=True)
class Linear:
    """Falls along a line."""
    most: Fraction  # noise at the end
    mode: Literal["log", "square"] = "log"
    sizes: tuple[int, ...] = (1, 2)
    name: str | None = None

@dataclass(frozen=True, kw_only=True)
class Photos:
    """Photos."""
    provides: ClassVar[set[str]] = {"images"}
    root: str  # folder of the photos

@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Scenes."""
    provides: ClassVar[set[str]] = {"images", "scenes"}

class Truth:
    """Judges by the scene."""
    needs: ClassVar[set[str]] = {"scenes"}

class Jury:
    """Judges by the scene and by its own mood."""
    needs: ClassVar[set[str]] = {"scenes", "moods"}

class Token:
    """Adds a token."""
    writes: ClassVar[set[str]] = {"tokens"}
    def __init__(self, *, segment: bool = True, dims: Dims) -> None: ...

class Film:
    """Writes time."""
    writes: ClassVar[set[str]] = {"time"}

class Sequence:
    """Reads tokens."""
    reads: ClassVar[set[str]] = {"tokens"}
    def __init__(self, *, layers: Positive = 6, dims: Dims) -> None: ...

class Adaptive:
    """Reads all."""
    reads: ClassVar[set[str]] = {"tokens", "time"}

class Masked:
    """A process without a schedule."""
    without: ClassVar[set[str]] = {"schedule"}
    def __init__(self, *, steps: Positive = 9) -> None: ...

class Broken:
    """Has a parameter that no recipe can say."""
    def __init__(self, *, path: Path) -> None: ...
'''
NAMED = {
    "schedule": {"cosine": "Cosine", "linear": "Linear", "broken": "Broken"},
    "dataset": {"photos": "Photos", "scenes": "Scenes"},
    "metric": {"bleu": "Plain", "truth": "Truth", "jury": "Jury"},
    "conditioning": {"token": "Token", "film": "Film"},
    "process": {"plain": "Plain", "masked": "Masked", "gaussian": "Plain"},
    "denoiser": {"sequence": "Sequence", "adaptive": "Adaptive"},
}
BASE = (
    """\
about = "the \\"base\\"\\n of all"
dataset = { use = "scenes" }
schedule = { use = "cosine", offset = 0.01 }
conditioning = [{ use = "token", segment = false }]
denoiser = { use = "sequence" }
metric = [{ use = "bleu" }, { use = "truth" }]
loss = [{ use = "plain" }]
constraint = []
process = { use = "plain" }
"""
    + "".join(
        f'{kind} = {{ use = "plain" }}\n'
        for kind, it in IN_RECIPES.items()
        if kind not in NAMED and not it.many
    )
    + """
[model]
width = 16
hidden = 32
length = 8

[train]
steps = 20
"""
)
Check = Callable[..., Recipe]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A registry whose components can't be imported, only read."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "recipe_test_parts.py").write_text(PARTS)
    registry = Registry()
    for kind in IN_RECIPES:
        for name, cls in NAMED.get(kind, {"plain": "Plain"}).items():
            registry.add(kind, name, f"recipe_test_parts:{cls}")
    sys.path.insert(0, str(folder))
    yield registry
    sys.path.remove(str(folder))


@pytest.fixture
def check(registry: Registry) -> Check:
    """Resolves text over BASE, with --set."""

    def check(text: str = "", *sets: str) -> Recipe:
        base, mine = layers.parse(BASE, "base.toml"), layers.parse(text, "mine.toml")
        return recipe._resolved(layers.overlay(base, mine), "mine", sets, [], registry)

    return check


def said(check: Check, text: str = "", *sets: str) -> str:
    with pytest.raises(RecipeError) as caught:
        check(text, *sets)
    return str(caught.value)


def test_defaults_are_filled_in_and_values_know_their_origin(check: Check) -> None:
    it = check("train.batch = 4", "train.lr=1", "loss=[{use='plain'}]")
    assert it.one("schedule").parameters == {"offset": 0.01, "floor": 1e-3}
    assert (it.train.steps, it.train.batch, it.train.lr, it.train.warmup) == (20, 4, 1.0, 100)
    assert [choice.use for choice in it.many("metric")] == ["bleu", "truth"]
    assert it.sets == ["train.lr=1", "loss=[{use='plain'}]"]
    assert {key: it.origins[key] for key in ("train.steps", "train.batch", "train.lr")} == {
        "train.steps": "base.toml:33",
        "train.batch": "mine.toml:1",
        "train.lr": "--set",
    }
    assert it.origins["schedule.offset"] == "base.toml:3"
    assert it.origins["schedule.floor"] == "default of cosine"
    assert it.origins["train.ema"] == "default of train"
    assert it.origins["seed"] == "default"
    assert it.origins["loss.0.use"] == "--set"


def test_every_value_has_an_origin(check: Check) -> None:
    it = check()
    leaves = {
        ".".join(key)
        for key, value in layers.walk(it.values())
        if not isinstance(value, dict | list) or value == []
    }
    assert leaves == set(it.origins)


LINEAR = 'schedule = { use = "linear", most = 1, sizes = [3], mode = "square" }'


@pytest.mark.parametrize(
    "text",
    [
        "",
        LINEAR,
        "metric = []",
        'about = "quotes \\" and \\\\ and \\u0000 \\u007f \\u2028 \\n é 🙂"',
        'dataset = { use = "photos", root = "C:\\\\photos \\t" }\nmetric = []',
        "train = { lr = 1e-30, weight_decay = 1e22, clip = 3 }",
        f"seed = {LARGEST}",
    ],
)
def test_the_resolved_recipe_resolves_to_itself(
    check: Check, registry: Registry, text: str
) -> None:
    it = check(text)
    again = recipe.loads(it.toml(), registry=registry)
    assert again.values() == it.values()
    assert again.hash == it.hash
    assert again.toml().splitlines()[1:] == it.toml().splitlines()[1:]


def test_a_switch_of_speed_counts_only_where_it_is_on(check: Check) -> None:
    """Runs from before there was the switch keep their names."""
    plain, fast = check(), check("", "train.compile=true")
    assert fast.hash != plain.hash
    values = plain.values()
    del values["train"]["compile"], values["about"]
    assert recipe._digest(values) == plain.hash


def test_the_hash_ignores_words_and_order(check: Check, registry: Registry) -> None:
    it = check()
    assert check("", "about=other words").hash == it.hash
    values = tomllib.loads(it.toml())
    text = "".join(toml.pair(name, values[name]) + "\n" for name in reversed(values))
    assert recipe.loads(text, "other", registry=registry).hash == it.hash


@pytest.mark.parametrize(
    "text",
    [
        "seed=1",
        "model.width=17",
        "train.lr=0.5",
        "evaluate.limit=3",
        "schedule.floor=0.5",
        "denoiser.layers=5",
        "conditioning.0.segment=true",
        "metric=[]",
        "denoiser.use=adaptive",
    ],
)
def test_the_hash_changes_with_any_value(check: Check, text: str) -> None:
    assert check("", text).hash != check().hash


def test_set_wins_over_every_file(check: Check) -> None:
    it = check("train.steps = 5\nschedule.offset = 3", "train.steps=7", "schedule.offset=9")
    assert (it.train.steps, it.one("schedule").parameters["offset"]) == (7, 9.0)


def test_with_sets_is_as_if_set_from_the_start(check: Check, registry: Registry) -> None:
    later = check("", "seed=2").with_sets(["schedule.use=linear", "schedule.most=1"], registry)
    at_once = check("", "seed=2", "schedule.use=linear", "schedule.most=1")
    assert later == at_once


def test_load_names_the_recipe_by_its_place(tmp_path: Path, registry: Registry) -> None:
    folder = tmp_path / "recipes" / "flickr8k"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(BASE)
    (tmp_path / "own.toml").write_text('extends = "recipes/flickr8k/mine.toml"')
    assert recipe.load(folder / "mine.toml", registry=registry).name == "flickr8k/mine"
    assert recipe.load(str(tmp_path / "own.toml"), ["seed=4"], registry).name == "own"


EXAMPLES = {
    ("schedule", "linear"): '{ use = "linear", most = 0.5, mode = "log", sizes = [1, 2] }',
    ("conditioning", "token"): '[{ use = "token", segment = true }]',
}


@pytest.mark.parametrize(("kind", "name"), EXAMPLES)
def test_an_example_is_a_line_that_works(
    check: Check, registry: Registry, kind: str, name: str
) -> None:
    line = recipe.example(registry.get(kind, name))
    assert line == f"{kind} = {EXAMPLES[kind, name]}"
    check(line)


MISTAKES = [
    ("schedul = 3", "mine.toml:1, schedul: there is no such key", 'did you mean "schedule"?'),
    ("trian.steps = 3", "mine.toml:1, trian: there is no such key", 'did you mean "train"?'),
    ("train.step = 3", "mine.toml:1, train.step: there is no such key", 'did you mean "steps"?'),
    (
        "\nschedule.offse = 3",
        "mine.toml:2, schedule.offse",
        'did you mean "offset"? allowed: floor',
    ),
    (
        'schedule = { use = "cosin" }',
        'mine.toml:1, schedule.use: no schedule is called "cosin"',
        'did you mean "cosine"? allowed: broken, cosine, linear',
    ),
    ('target = { use = "film" }', 'no target is called "film"', "there is a conditioning called"),
    ("schedule = { use = 3 }", "schedule.use: expected the name of a schedule, got 3", "allowed"),
    ("schedule = 3", "schedule: expected a table, got 3", "like schedule = { use = "),
    ("schedule = []", "schedule: expected a table, got []", "like schedule = { use = "),
    ('loss = { use = "plain" }', "loss: expected a list of tables", "like loss = [{ use = "),
    ('loss = ["plain"]', 'mine.toml:1, loss.0: expected a table, got "plain"', "like loss ="),
    ("loss = []", "loss: expected at least 1, got []", ""),
    ("loss = [{ weight = 1 }]", "loss.0: which loss? `use` is missing", "allowed: plain"),
    ('loss = [{ use = "plain" }, { use = "plain" }]', "loss.1: plain stands in the list alr", ""),
    ("train = 3", "train: expected a table, got 3", "[train]"),
    ('train.steps = "many"', 'expected a whole number above 0, got "many"', "steps of the"),
    ("train.steps = 2.5", "train.steps: expected a whole number above 0, got 2.5", "steps of"),
    ("train.steps = true", "expected a whole number above 0, got true", ""),
    ("train.steps = 0", "expected a whole number above 0, got 0", ""),
    ("train.ema = 1", "expected a number at least 0 and below 1, got 1", ""),
    ('train.decay = "cosin"', 'expected "cosine" or', 'did you mean "cosine"? allowed: constant'),
    ("seed = -1", "mine.toml:1, seed: expected a whole number at least 0, got -1", ""),
    ("seed = 9223372036854775808", "seed: expected a number of at most 64 bits", ""),
    ("train.lr = nan", "train.lr: expected a finite number, got nan", ""),
    ("train.lr = inf", "train.lr: expected a finite number, got inf", ""),
    ("train.lr = 1e999", "train.lr: expected a finite number", ""),
    ("about = 2024-01-01", "about: dates and times have no meaning here", "quotes"),
    ('schedule = { use = "linear" }', "schedule.most: missing: a number at least 0", "most = 0.5"),
    ('dataset = { use = "photos" }\nmetric = []', "dataset.root: missing: a text", "folder of the"),
    ('schedule = { use = "broken" }', 'parameter "path": Path is not among', ""),
    (
        'conditioning = [{ use = "token" }, { use = "film" }]',
        "conditioning.1: film writes time, which sequence does not read",
        "what reads time: denoiser adaptive",
    ),
    (
        'dataset = { use = "photos", root = "a" }',
        "base.toml:6, metric.1: truth needs scenes, which nothing in this recipe provides",
        "what provides scenes: dataset scenes",
    ),
    (
        'dataset = { use = "photos", root = "a" }\nmetric = [{ use = "jury" }]',
        "metric.0: jury needs moods and scenes, which nothing in this recipe provides",
        "what provides moods: nothing; what provides scenes: dataset scenes",
    ),
    ('extends = "base.toml"', "mine.toml:1, extends: a stored recipe extends nothing", ""),
    ('"a\\nb" = 1', 'mine.toml, "a\\nb": there is no such key', ""),
]


@pytest.mark.parametrize(("text", "mistake", "hint"), MISTAKES)
def test_a_mistake_has_place_and_hint(check: Check, text: str, mistake: str, hint: str) -> None:
    whole = said(check, text)
    assert mistake in whole
    assert hint in whole
    assert len(whole.splitlines()) <= 2, "one mistake is told once"


@pytest.mark.parametrize(
    ("sets", "mistake"),
    [
        (["train.steps=x"], '--set train.steps: expected a whole number above 0, got "x"'),
        (["schedule.use=linear"], "--set schedule.most: missing"),
        (["schedule.use=cosin"], '--set schedule.use: no schedule is called "cosin"'),
        (["dataset.use=photos", "dataset.root=3", "metric=[]"], "a text needs quotes: '\"3\"'"),
        (["about=\udc80"], "--set about: expected a text that is valid Unicode"),
        (["conditioning.0.use=film"], "--set conditioning.0: film writes time"),
    ],
)
def test_a_mistake_of_set_is_placed_there(check: Check, sets: list[str], mistake: str) -> None:
    assert mistake in said(check, "", *sets)


@pytest.mark.parametrize("kind", [kind for kind in IN_RECIPES if kind not in USUAL.values])
def test_a_missing_kind_gets_an_example(registry: Registry, kind: str) -> None:
    values = {name: it for name, it in tomllib.loads(BASE).items() if name != kind}
    text = "".join(toml.pair(name, it) + "\n" for name, it in values.items())
    with pytest.raises(RecipeError) as caught:
        recipe.loads(text, registry=registry)
    [mistake] = caught.value.mistakes
    assert str(mistake).startswith(f"recipe.toml: no {kind} is chosen\n    like {kind} = ")


def test_a_recipe_without_a_process_is_gaussian(registry: Registry) -> None:
    it = recipe.loads(BASE.replace('process = { use = "plain" }', ""), registry=registry)
    assert it.one("process").use == "gaussian" and it.origins["process.use"] == "default"


MASKED = 'process = { use = "masked" }\n'


def test_kinds_that_a_process_goes_without_drop_out_of_what_it_extends(check: Check) -> None:
    it = check(MASKED)
    assert it.without == ["schedule"] and "schedule" not in it.values()
    assert check().without == []
    with pytest.raises(CdlmError, match="process masked has no schedule"):
        it.one("schedule")


def test_what_a_dropped_kind_said_counts_for_nothing(check: Check, registry: Registry) -> None:
    """Neither for the hash, nor in the stored recipe, nor when more is set."""
    one, other = (check(MASKED, *sets) for sets in ([], ["seed=0"]))
    text = BASE.replace("offset = 0.01", "offset = 0.5")
    base, mine = layers.parse(text, "base.toml"), layers.parse(MASKED, "mine.toml")
    moved = recipe._resolved(layers.overlay(base, mine), "mine", [], [], registry)
    assert one.hash == other.hash == moved.hash != check().hash
    assert recipe.loads(one.toml(), registry=registry).hash == one.hash
    assert one.with_sets(["process.steps=2"], registry).one("process").parameters == {"steps": 2}


@pytest.mark.parametrize(
    ("text", "sets", "place"),
    [
        (MASKED + "schedule.offset = 0.02", [], "mine.toml:2, schedule"),
        (MASKED, ["schedule.offset=0.02"], "--set schedule.offset"),
        (MASKED, ["schedule.use=linear"], "--set schedule.use"),
        ("", ["process.use=masked", "schedule.use=linear"], "--set schedule.use"),
        ("", ["schedule.use=linear", 'process={use="masked"}'], "--set schedule.use"),
    ],
)
def test_what_has_no_effect_is_refused(
    check: Check, text: str, sets: list[str], place: str
) -> None:
    whole = said(check, text, *sets)
    assert whole.startswith(f"{place}: process masked has no schedule\n    leave it out; ")
    assert len(whole.splitlines()) == 2


def test_layers_above_the_one_that_chooses_the_process_are_held_to_it(
    check: Check, registry: Registry
) -> None:
    """A recipe over a masked one, and a study's piece that chooses one, over another recipe."""
    names = ("base.toml", "masked.toml", "mine.toml")
    tree, masked, mine = map(layers.parse, (BASE, MASKED, "schedule.offset = 0.02"), names)
    below = layers.overlay(tree, masked)
    assert recipe._resolved(below, "masked", [], [], registry).without == ["schedule"]
    with pytest.raises(RecipeError, match=r"mine.toml:1, schedule: process masked has no schedule"):
        recipe._resolved(layers.overlay(below, mine), "mine", [], [], registry)
    piece = layers.Tree({"process": {"use": "masked"}}, {})
    over = layers.overlay(layers.overlay(tree, mine), piece)
    assert recipe._resolved(over, "study", [], [], registry).without == ["schedule"]


def test_what_has_no_effect_can_not_be_set_on_a_resolved_recipe(
    check: Check, registry: Registry
) -> None:
    with pytest.raises(RecipeError, match="--set schedule: process masked has no schedule"):
        check(MASKED).with_sets(["schedule.offset=0.02"], registry)


def test_all_mistakes_are_told_at_once(check: Check) -> None:
    whole = said(
        check, "a = 1\ntrain.steps = 0\n[schedule]\nuse = 'linear'\nmode = 'lag'", "seed=x"
    )
    for place in ("a", "train.steps", "schedule.most", "schedule.mode", "--set seed"):
        assert f"{place}: " in whole


def test_many_mistakes_are_cut_short(check: Check) -> None:
    whole = said(check, "".join(f"key{i} = 1\n" for i in range(500)))
    assert len(whole.splitlines()) <= LINES + 1
    assert whole.splitlines()[-1] == f"mine.toml: and {500 - LINES // 2} more"


# ------------------------------------------------------------------------------------ hostility

VALUES: list[str] = [
    "3", "-1", "0", "nan", "-inf", "1e999", "true", '""', '"cosine"', "[]", "{}", "[[]]", "[{}]",
    "2024-01-01", "99999999999999999999", '"\\u0000"', "{ use = 3 }", '{ use = "linear" }',
    '[{ use = "film" }]', "[1, 2]", "0.5", "'''\nseed = 3\n'''", "[" * 300 + "]" * 300,
]  # fmt: skip


def mutated(text: str, rng: random.Random) -> str:
    """The text with one to four lines, values or characters changed."""
    for _ in range(rng.randint(1, 4)):
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        key = lines[at].partition("=")[0] or "x"
        where = rng.randrange(len(text) + 1)
        text = rng.choice(
            [
                "\n".join([*lines[:at], *lines[at + 1 :]]),
                "\n".join([*lines[:at], f"{key}= {rng.choice(VALUES)}", *lines[at + 1 :]]),
                "\n".join([*lines[: at + 1], *lines[at:]]),
                text[:where] + text[where + 1 :],
                text[:where]
                + chr(rng.choice([0, 10, 34, 61, 91, 123, 8232, 128578]))
                + text[where:],
            ]
        )
    return text


def test_no_mutation_raises_anything_but_our_errors(registry: Registry) -> None:
    rng = random.Random(0)
    refused = 0
    for _ in range(2000):
        text = mutated(BASE, rng)
        sets = [f"{rng.choice(BASE.split())}={rng.choice(VALUES)}"] if rng.random() < 0.2 else []
        try:
            it = recipe.loads(text, sets=sets, registry=registry)
            assert recipe.loads(it.toml(), registry=registry).hash == it.hash
        except CdlmError as error:
            refused += 1
            assert len(str(error).splitlines()) <= LINES + 1
    assert 1000 < refused < 2000


def test_checking_a_recipe_never_imports_torch(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(BASE)
    program = """
import sys
from cdlm import recipe
from cdlm.errors import RecipeError
try:
    recipe.load(sys.argv[1])
except RecipeError as error:
    assert "no target is called" in str(error), error
else:
    raise SystemExit("the recipe names components that there are not")
heavy = {"torch", "transformers", "numpy", "open_clip", "PIL", "pydantic"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "mine.toml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
