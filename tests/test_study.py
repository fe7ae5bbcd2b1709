"""Studies as they are written: axes, designs, pieces of recipes, and every mistake at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from cdlm import layers, study
from cdlm.errors import RecipeError
from cdlm.study import Study, designed

STUDIES = Path(__file__).parents[1] / "recipes" / "studies"
SHIPPED = sorted(STUDIES.rglob("*.toml"))
AXES = {"target": ["x0", "eps", "v"], "steps": ["few", "many"], "loss": ["both", "one"]}
BASE = {"target": "x0", "steps": "few", "loss": "both"}


@pytest.fixture
def written(tiny_recipe: Path, tmp_path: Path):
    """A function: the study that a text makes on top of the tiny recipe."""

    def load(text: str, *sets: str, launcher: str = "") -> Study:
        place = tmp_path / "asked.toml"
        place.write_text(f'extends = "{tiny_recipe}"\n{text}')
        return study.load(place, sets, launcher)

    return load


def mistakes(load, text: str, *sets: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(text, *sets)
    return [str(mistake) for mistake in caught.value.mistakes]


# --------------------------------------------------------------------------------------- designs


@pytest.mark.parametrize(
    ("design", "count"), [("one_at_a_time", 1 + 2 + 1 + 1), ("pairs", 5 + 5), ("grid", 12)]
)
def test_a_design_has_its_points_once_and_the_baseline_first(design: str, count: int) -> None:
    points = designed(design, AXES, BASE)
    assert len({tuple(sorted(point.items())) for point in points}) == len(points) == count
    assert points[0] == BASE


def test_how_many_options_a_point_changes_is_what_its_design_says() -> None:
    changed = {
        design: {sum(point[k] != BASE[k] for k in AXES) for point in designed(design, AXES, BASE)}
        for design in ("one_at_a_time", "pairs", "grid")
    }
    assert changed == {"one_at_a_time": {0, 1}, "pairs": {0, 1, 2}, "grid": {0, 1, 2, 3}}


# ---------------------------------------------------------------------------------------- pieces


TWO = """
[axis.sampler]
ddpm = { sampler.use = "ddpm" }
ddim = { sampler = { use = "ddim", eta = 0.5 } }
[axis.steps]
few  = { sampler.steps = 2 }
many = { sampler.steps = 7 }
"""


def test_axes_of_one_component_meet_whatever_their_order(written) -> None:
    turned = "[axis.steps]" + TWO.partition("[axis.steps]")[2] + TWO.partition("[axis.steps]")[0]
    for text in (TWO, turned):
        points = written('[study]\ndesign = "grid"\n' + text).points
        found = [
            (p.options["sampler"], p.options["steps"], p.recipe.one("sampler")) for p in points
        ]
        for name, steps, chosen in found:
            assert (chosen.use, chosen.parameters["steps"]) == (name, {"few": 2, "many": 7}[steps])
            assert chosen.parameters.get("eta", 0.5) == 0.5


def test_an_option_can_change_one_item_of_a_list(written) -> None:
    found = written("[axis.weight]\nusual = {}\nless = { loss.1.weight = 0.25 }\n")
    usual, less = (point.recipe.many("loss") for point in found.points)
    assert [it.use for it in less] == [it.use for it in usual] == ["mse", "rounding"]
    assert (less[0], less[1].parameters["weight"]) == (usual[0], 0.25)


def test_a_number_that_no_item_has_changes_nothing_silently() -> None:
    below = layers.parse('loss = [{ use = "mse" }]', "base.toml")
    above = layers.parse("loss.1.weight = 0.5", "child.toml")
    assert layers.overlay(below, above).values == {"loss": {"1": {"weight": 0.5}}}


def test_defaults_are_three_seeds_the_first_options_and_this_machine(written) -> None:
    found = written(TWO)
    assert found.seeds == [0, 1, 2]
    assert found.baseline == {"sampler": "ddpm", "steps": "few"}
    assert (found.launcher.use, found.design) == ("local", "one_at_a_time")
    assert [point.label for point in found.points] == ["baseline", "sampler: ddim", "steps: many"]


def test_set_changes_the_study_and_what_its_points_share(written) -> None:
    found = written(TWO, "study.seeds=[7]", "train.steps=9", launcher='{ use = "local" }')
    assert found.seeds == [7]
    assert {point.recipe.train.steps for point in found.points} == {9}


def test_what_training_never_looks_at_leaves_the_training_hash(written) -> None:
    found = written('[study]\ndesign = "grid"\n' + TWO)
    hashes = {point.recipe.hash for point in found.points}
    assert (len(hashes), len({point.recipe.training_hash for point in found.points})) == (4, 1)
    seeds = {found.points[0].seeded(seed).training_hash for seed in (0, 1)}
    assert len(seeds) == 2


@pytest.mark.parametrize("piece", ["guidance.drop = 0.2", "train.lr = 1e-4", "variance.spread = 1"])
def test_what_training_looks_at_changes_the_training_hash(written, piece: str) -> None:
    found = written(f"[axis.a]\nusual = {{}}\nother = {{ {piece} }}\n")
    assert len({point.recipe.training_hash for point in found.points}) == 2


def test_a_guidance_scale_is_set_afterwards(written) -> None:
    found = written("[axis.a]\nusual = {}\nother = { guidance.scale = 3.0 }\n")
    assert len({point.recipe.training_hash for point in found.points}) == 1


# -------------------------------------------------------------------------------------- mistakes


def test_every_mistake_of_a_study_is_told_at_once(written) -> None:
    told = mistakes(
        written,
        """
[study]
design   = "gird"
sedes    = 3
baseline = { targt = "x0", steps = "ten" }
launcher = { use = "lokal" }
[axis.target]
x0  = { target = { use = "x0" } }
eps = { target = { use = "eps" }, seed = 3 }
[axis.steps]
two  = { sampler.steps = 2, target.use = "v" }
five = 5
""",
    )
    for place, said in [
        ("asked.toml:5, study.sedes", 'did you mean "seeds"?'),
        ("asked.toml:4, study.design", 'did you mean "grid"?'),
        ("asked.toml:7, study.launcher.use", 'did you mean "local"?'),
        ("asked.toml:10, axis.target.eps.seed", "seeds = [...] in [study] says it"),
        ("asked.toml:13, axis.steps.five", "expected a piece of a recipe, got 5"),
        ("asked.toml:6, study.baseline.targt", 'did you mean "target"?'),
        ("asked.toml:6, study.baseline.steps", "allowed: two"),
        ("asked.toml:12, axis.steps.two", "sets target.use, which axis target sets too"),
    ]:
        assert any(place in it and said in it for it in told), (place, told)
    assert len(told) == 8


def test_every_mistake_of_its_recipes_is_told_at_once_and_once(written) -> None:
    told = mistakes(
        written,
        """
[axis.target]
x0  = { target = { use = "x0" } }
eps = { targett = { use = "eps" } }
[axis.denoiser]
usual  = {}
linear = { denoiser = { use = "linear" } }
modern = { denoiser = { use = "modern", heads = "2" } }
""",
    )
    assert len(told) == 3
    assert "asked.toml:5, targett: there is no such key (in the point target: eps)" in told[0]
    assert "extra_token writes tokens, which linear does not read (in the point" in told[1]
    assert 'expected a whole number above 0, got "2" (in the point denoiser: modern)' in told[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a study needs an axis"),
        ("[study]\nseeds = []\n[axis.a]\nb = {}", "expected at least one seed"),
        ("[study]\nseeds = [1, 1]\n[axis.a]\nb = {}", "a seed stands there twice"),
        ("[study]\nbaseline = 3\n[axis.a]\nb = {}", "expected a table, got 3"),
        ("[axis]\na = 3", "expected named options, got 3"),
        ("study = 3\n[axis.a]\nb = {}", "expected a table, got 3"),
    ],
)
def test_a_mistake_says_what_is_wrong(written, text: str, said: str) -> None:
    assert said in "\n".join(mistakes(written, text))


# --------------------------------------------------------------------------------------- shipped


@pytest.mark.parametrize("path", SHIPPED, ids=lambda it: f"{it.parent.name}-{it.stem}")
def test_a_shipped_study_is_free_of_mistakes_and_every_point_differs(path: Path) -> None:
    """The files of its dataset need not be there."""
    found = study.load(path)
    assert found.about.endswith("?")
    assert len({point.recipe.hash for point in found.points}) == len(found.points) > 1
    assert len({point.label for point in found.points}) == len(found.points)


def test_every_shipped_study_has_a_full_size_twin() -> None:
    """But for those that are of photos alone."""
    small = {path.name for path in SHIPPED if path.parent.name == "studies"}
    full = {path.name for path in SHIPPED if path.parent.name == "flickr8k"}
    assert small | {"leads.toml", "training.toml"} == full
    assert small


def test_the_tables_of_the_readme_are_filled_in_by_its_script(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("fill", STUDIES / "fill.py")
    assert spec and spec.loader
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    text = (STUDIES / "README.md").read_text()
    small = {f"studies-{path.stem}" for path in SHIPPED if path.parent.name == "studies"}
    others = {"process", "studies-flickr8k-leads", "studies-flickr8k-training"}
    assert small | others == {it[1] for it in fill.PLACE.findall(text)}
    (tmp_path / "studies-width").mkdir()
    (tmp_path / "studies-width" / "table.md").write_text("| new |\n")
    once = fill.filled(text, tmp_path)
    assert once.count("| new |") == 1
    assert fill.filled(once, tmp_path) == once
