"""What is on top counts, and every value knows where it is from."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cdlm import layers
from cdlm.errors import RecipeError
from cdlm.layers import Tree

BASE = """\
about = "of the base"
schedule = { use = "cosine", offset = 0.01 }
loss = [
    { use = "mse" },
    { use = "rounding" },
]

[train]
steps = 5
lr = 0.1
"""


def parse(text: str = BASE) -> Tree:
    return layers.parse(text, "base.toml")


def fails(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        layers.parse(text, "a.toml")
    return str(caught.value)


def test_tables_merge_and_lists_replace() -> None:
    above = layers.parse('loss = [{ use = "l1" }]\ntrain.lr = 0.2', "mine.toml")
    merged = layers.overlay(parse(), above)
    assert merged.values["train"] == {"steps": 5, "lr": 0.2}
    assert merged.values["loss"] == [{"use": "l1"}]
    assert merged.place(("train", "lr")) == "mine.toml:2, train.lr"
    assert merged.place(("train", "steps")) == "base.toml:9, train.steps"
    assert ("loss", "1") not in merged.origins


@pytest.mark.parametrize(
    ("table", "merged"),
    [
        ('{ use = "linear" }', {"use": "linear"}),
        ('{ use = "cosine" }', {"use": "cosine", "offset": 0.01}),
        ("{ offset = 1 }", {"use": "cosine", "offset": 1}),
        ("{ floor = 1 }", {"use": "cosine", "offset": 0.01, "floor": 1}),
        ("3", 3),
    ],
)
def test_another_component_replaces_the_whole_table(table: str, merged: object) -> None:
    above = layers.parse(f"schedule = {table}", "mine.toml")
    assert layers.overlay(parse(), above).values["schedule"] == merged


SETS = [
    ("train.lr=3", ("train", "lr"), 3),
    ("train.lr = 3 ", ("train", "lr"), 3),
    ("schedule.offset=0.5", ("schedule", "offset"), 0.5),
    ("loss.1.weight=2", ("loss", "1", "weight"), 2),
    ("new.deep.key=true", ("new", "deep", "key"), True),
    ("loss=[]", ("loss",), []),
    ("about=plain words", ("about",), "plain words"),
    ('about="3"', ("about",), "3"),
    ("about=2024-01-01", ("about",), "2024-01-01"),
    ("about=", ("about",), ""),
    ("about=a=b", ("about",), "a=b"),
    ("about=1\nseed = 3", ("about",), "1\nseed = 3"),
    ("about=one\ntwo", ("about",), "one\ntwo"),
    ("new={a=1,\n     b=2}", ("new", "b"), 2),
]


@pytest.mark.parametrize(("text", "key", "value"), SETS)
def test_set_wins_and_is_the_origin(text: str, key: layers.Key, value: object) -> None:
    tree = layers.assign(parse(), [text])
    assert dict(layers.walk(tree.values))[key] == value
    assert tree.place(key) == f"--set {'.'.join(key)}"


def test_set_changes_nothing_else() -> None:
    tree, before = layers.assign(parse(), ["loss.1.weight=2"]), parse()
    changed = dict(layers.walk(tree.values)).keys() - dict(layers.walk(before.values)).keys()
    assert changed == {("loss", "1", "weight")}
    kept = {key: tree.origins[key] for key in before.origins}
    assert kept == before.origins
    assert before.values == parse().values


@pytest.mark.parametrize("order", [1, -1])
def test_choosing_a_component_keeps_the_parameters_that_are_set(order: int) -> None:
    sets = ["schedule.use=linear", "schedule.most=9"][::order]
    assert layers.assign(parse(), sets).values["schedule"] == {"use": "linear", "most": 9}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.steps", "--set train.steps: expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("a..b=3", "expected KEY=VALUE"),
        ("loss.2.use=l1", "allowed: 0, 1"),
        ("loss.weight=1", "allowed: 0, 1"),
        ("about.x=1", 'a single value stands there, "of the base"'),
        ("extends=base.toml", "only a file can extend another"),
        ("a" + ".a" * 30 + "=1", "nested deeper"),
        ("a=" + "[" * 30 + "]" * 30, "nested deeper"),
    ],
)
def test_a_wrong_set_says_so(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        layers.assign(parse(), [text])
    assert said in str(caught.value)


def test_a_text_is_no_list_of_sets() -> None:
    with pytest.raises(ValueError, match="sets: expected a list of texts, got 'seed=1'"):
        layers.assign(parse(), "seed=1")


def test_all_wrong_sets_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        layers.assign(parse(), ["a", "b", "train.lr=1"])
    assert len(caught.value.mistakes) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = \nb = 1", "a.toml, line 1, column 5: not valid TOML"),
        ("a = 1\na = 2\n", "a.toml, line 2"),
        ("a = [", "not valid TOML"),
        ("a = " + "9" * 5000, "not valid TOML"),
        ("a = " + "[" * 5000, "a.toml: nested deeper than 20"),
        ("a" + ".a" * 50_000 + " = 1", "a.toml: nested deeper than 20"),
        ("[a" + ".a" * 50_000 + "]", "a.toml: nested deeper than 20"),
        ("a = " + "[" * 30 + "]" * 30, "a.toml: nested deeper than 20"),
        ("a = { b = '''\nx''', " + '"c" . ' * 50_000 + "d = 1 }", "nested deeper than 20"),
        ("a." * 30 + "a = 1", "a.toml: nested deeper than 20"),
    ],
)
def test_what_is_not_toml_has_a_place(text: str, said: str) -> None:
    assert said in fails(text)


@pytest.mark.parametrize(
    "line", [" " * 200_000, "[" + " " * 200_000, "a" + " ." * 100_000, '\\"' * 100_000]
)
def test_lines_are_found_in_linear_time(line: str) -> None:
    start = time.perf_counter()
    layers.parse(f'a = """\n{line}\n"""', "a.toml")
    assert time.perf_counter() - start < 10, "a quadratic search takes minutes"


def test_lines_of_tables_in_lists() -> None:
    tree = parse('[[loss]]\nuse = "a"\n[[loss]]\nuse = "b"\n[train]\n"odd key" = 1\n')
    assert tree.place(("loss", "1", "use")) == "base.toml:4, loss.1.use"
    assert tree.place(("train", "odd key")) == 'base.toml:5, train."odd key"'
    assert tree.place(("train", "missing")) == "base.toml:5, train.missing"
    assert tree.place(()) == "base.toml"


def test_a_key_seen_twice_has_no_line() -> None:
    tree = parse('about = """\nseed = 3\n"""\nseed = 4\n')
    assert tree.place(("seed",)) == "base.toml, seed"


# ------------------------------------------------------------------------------------ files


def read(path: Path, text: str | bytes) -> str:
    """The error text of reading a file with this content."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        layers.read(path)
    return str(caught.value)


def test_a_chain_of_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "deep/middle.toml").write_text('extends = "../base.toml"\ntrain.steps = 6')
    top = tmp_path / "deep/top.toml"
    top.write_text('extends = "middle.toml"\ntrain.lr = 7')
    tree = layers.read(top)
    assert tree.values["train"] == {"steps": 6, "lr": 7}
    assert tree.origin(("train", "steps")) == f"{tmp_path}/deep/middle.toml:2"
    assert tree.origin(("about",)) == f"{tmp_path}/base.toml:1"
    assert tree.origin(()) == f"{top}"
    assert "extends" not in tree.values


def test_windows_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 3\r\nabout = 4\r\n")
    assert layers.read(path).place(("about",)) == f"{path}:2, about"


def test_a_cycle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text('extends = "./a.toml"')
    assert "a.toml: extends itself" in read(tmp_path / "a.toml", 'extends = "b.toml"')


@pytest.mark.parametrize("parent", ['"bas.toml"', '"base"'])
def test_a_missing_parent_gets_the_nearest(tmp_path: Path, parent: str) -> None:
    (tmp_path / "base.toml").write_text(BASE)
    said = read(tmp_path / "a.toml", f"extends = {parent}")
    assert 'there is no such file\n    did you mean "base.toml"? allowed: a.toml, base.toml' in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends = 3", "a.toml:1, extends: expected the path of a recipe"),
        ('extends = ""', "expected the path"),
        ('extends = "."', "not a file"),
        ('extends = "no/such.toml"', "nor is there a folder"),
        ('extends = "a\\u0000b"', "no such file"),
        (f'extends = "{"a" * 5000}"', "can't be read"),
        (b"about = '\xff'", "not UTF-8 at byte 9"),
        (b"#" * (layers.MAX_BYTES + 1), "at most 256 KiB"),
    ],
)
def test_a_file_that_can_not_be_read_says_why(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert said in read(tmp_path / "a.toml", text)


def test_a_recipe_that_ships_with_cdlm_is_extended_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "cdlm:extra_token.toml"\nseed = 3\n')
    tree = layers.read(tmp_path / "mine.toml")
    assert tree.values["seed"] == 3 and tree.values["dataset"]["use"] == "shapes"
    assert tree.origin(("dataset",)).rpartition(":")[0].endswith("recipes/extra_token.toml")


def test_a_recipe_that_does_not_ship_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "cdlm:extra_tokens.toml"\n')
    with pytest.raises(RecipeError, match=r'did you mean "extra_token\.toml"'):
        layers.read(tmp_path / "mine.toml")
