"""Studies: axes of named options, a design and seeds make points, each a recipe that is checked.

    extends = "../notes/plain.toml"     # what all points share; more of it may stand here

    [study]
    design   = "one_at_a_time"          # or "pairs", "grid"
    baseline = { target = "x0" }        # of the other axes the first option
    seeds    = [0, 1, 2]

    [axis.target]                       # named options, each a piece of a recipe
    x0  = { target = { use = "x0" } }
    eps = { target = { use = "eps" } }

An option's piece lies over the recipe as a file lies over the one that it extends. Nothing is
built here, and torch is not imported; `cdlm.conduct` runs what is planned here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

from cdlm import layers, plugins, toml
from cdlm import recipe as recipes
from cdlm.errors import Mistake, RecipeError, nearest
from cdlm.layers import Key, Tree
from cdlm.recipe import Choice, Recipe
from cdlm.registry import Entry, Registry
from cdlm.values import AnyLauncher, Count

Options = dict[str, str]
"""Of every axis the chosen option."""

OWN = ("study", "axis")
EXAMPLE = 'like [axis.target] with eps = { target = { use = "eps" } }'


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """[study], but for its baseline."""

    design: Literal["one_at_a_time", "pairs", "grid"] = "one_at_a_time"  # which options meet
    seeds: tuple[Count, ...] = (0, 1, 2)  # every point is trained with each
    launcher: AnyLauncher | None = None  # where points run; on this machine, unless given


@dataclass(frozen=True)
class Point:
    """One option of every axis, and what comes of it."""

    label: str  # its row in the table
    options: Options
    recipe: Recipe  # with the first seed

    def seeded(self, seed: int) -> Recipe:
        """Its recipe with this seed."""
        return replace(self.recipe, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study that is complete and free of mistakes."""

    name: str
    about: str
    design: str
    seeds: list[int]
    baseline: Options
    axes: dict[str, dict[str, dict[str, Any]]]  # of each axis the options' pieces, by name
    launcher: Choice
    points: list[Point]  # the baseline first

    @property
    def header(self) -> str:
        """What the labels name: "target", or "sampler, steps"."""
        return ", ".join(self.axes)


def load(path: str | Path, sets: Sequence[str] = (), launcher: str = "") -> Study:
    """The study in a file, with `sets` ("train.steps=500") on top. Raises RecipeError.

    launcher: another than the file's, as a name or as a table, '{ use = "local" }'.
    """
    named = launcher if launcher.startswith("{") else f'{{ use = "{launcher}" }}'
    sets = [*sets, *([f"study.launcher={named}"] if launcher else [])]
    tree = layers.assign(layers.read(Path(path)), sets)
    return _Reading(tree, recipes.name_of(Path(path)), plugins.load().registry).study()


class _Reading:
    """One pass over a study's tree, which notes every mistake."""

    def __init__(self, tree: Tree, name: str, registry: Registry) -> None:
        self.tree, self.name, self.registry = tree, name, registry
        self.mistakes: list[Mistake] = []

    def study(self) -> Study:
        """The study. Raises RecipeError with all that is wrong."""
        table = self.table()
        axes = self.axes()
        baseline = self.baseline(axes)
        self._check_apart(axes)
        self._check_seeds(table)
        self._stop_if_wrong()
        assert table is not None
        points = self.points(table.design, axes, baseline)
        self._stop_if_wrong()
        given: Any = table.launcher
        chosen = given or {"use": "local"}
        return Study(
            name=self.name,
            about=points[0].recipe.about,
            design=table.design,
            seeds=list(table.seeds),
            baseline=baseline,
            axes=axes,
            launcher=Choice(
                "launcher", chosen["use"], {k: v for k, v in chosen.items() if k != "use"}
            ),
            points=points,
        )

    def note(self, key: Key, what: str, hint: str = "") -> None:
        self.mistakes.append(Mistake(self.tree.place(key), what, hint))

    def _stop_if_wrong(self) -> None:
        if self.mistakes:
            raise RecipeError(list(dict.fromkeys(self.mistakes)))

    def table(self) -> StudyTable | None:
        """[study], or None where it has mistakes."""
        given = self.tree.values.get("study", {})
        if isinstance(given, dict):
            given = {name: value for name, value in given.items() if name != "baseline"}
        entry = Entry("table", "study", f"{__name__}:StudyTable", "cdlm")
        values = {**self.tree.values, "study": given}
        found, mistakes = recipes.table(Tree(values, self.tree.origins), entry, self.registry)
        self.mistakes += mistakes
        return found

    def _check_seeds(self, table: StudyTable | None) -> None:
        if table and not table.seeds:
            self.note(("study", "seeds"), "expected at least one seed", "like seeds = [0, 1, 2]")
        if table and len(set(table.seeds)) < len(table.seeds):
            self.note(("study", "seeds"), "a seed stands there twice")

    # ------------------------------------------------------------------------------------- axes

    def axes(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The options of every axis, each with its piece; those with mistakes left out."""
        given = self.tree.values.get("axis")
        if not isinstance(given, dict) or not given:
            self.note(("axis",) if given is not None else (), "a study needs an axis", EXAMPLE)
            return {}
        return {name: self.options(name, it) for name, it in given.items()}

    def options(self, axis: str, given: Any) -> dict[str, dict[str, Any]]:
        """The options of one axis."""
        if not isinstance(given, dict) or not given:
            self.note(("axis", axis), f"expected named options, got {toml.short(given)}", EXAMPLE)
            return {}
        for name, piece in given.items():
            if not isinstance(piece, dict):
                said = f"expected a piece of a recipe, got {toml.short(piece)}"
                self.note(("axis", axis, name), said, EXAMPLE)
        good = {name: piece for name, piece in given.items() if isinstance(piece, dict)}
        for name, piece in good.items():
            for own in ("seed", "about", "extends", *OWN):
                if own in piece:
                    hint = "seeds = [...] in [study] says it" if own == "seed" else ""
                    self.note(("axis", axis, name, own), "no option can change this", hint)
        return good

    def baseline(self, axes: Mapping[str, Mapping[str, Any]]) -> Options:
        """The option of every axis that the others are compared with."""
        study = self.tree.values.get("study", {})
        given = study.get("baseline", {}) if isinstance(study, dict) else {}
        if not isinstance(given, dict):
            hint = f"like {{ {next(iter(axes), 'target')} = ... }}"
            self.note(("study", "baseline"), f"expected a table, got {toml.short(given)}", hint)
            return {}
        for axis, option in given.items():
            key = ("study", "baseline", axis)
            if axis not in axes:
                self.note(key, "there is no such axis", nearest(axis, axes))
            elif not isinstance(option, str) or option not in axes[axis]:
                said = f"{axis} has no option {toml.short(option)}"
                self.note(key, said, nearest(str(option), axes[axis]))
        return {axis: given.get(axis, next(iter(options), "")) for axis, options in axes.items()}

    def _check_apart(self, axes: Mapping[str, Mapping[str, dict[str, Any]]]) -> None:
        """Note where two axes set the same value: which one counts would depend on their order."""
        for (one, ones), (two, twos) in combinations(axes.items(), 2):
            for (a, first), (b, second) in product(ones.items(), twos.items()):
                both = sorted(
                    key for key in _leaves(first) for it in _leaves(second) if _meet(key, it)
                )
                if both:
                    key = ("axis", two, b)
                    self.note(key, f"sets {'.'.join(both[0])}, which axis {one} sets too, in {a}")
                    break

    # ------------------------------------------------------------------------------------ points

    def points(
        self, design: str, axes: Mapping[str, Mapping[str, Any]], baseline: Options
    ) -> list[Point]:
        """The points of the design. Notes the mistakes in their recipes."""
        found = []
        for options in designed(design, {name: list(it) for name, it in axes.items()}, baseline):
            label = _label(design, options, baseline)
            try:
                found.append(Point(label, options, self.recipe(options)))
            except RecipeError as error:
                self.mistakes += [self._of(mistake, label, found) for mistake in error.mistakes]
        return found

    def _of(self, mistake: Mistake, label: str, sound: list[Point]) -> Mistake:
        """The mistake; where the baseline is free of it, with the point that has it."""
        return replace(mistake, what=f"{mistake.what} (in the point {label})") if sound else mistake

    def recipe(self, options: Options) -> Recipe:
        """What comes of these options. Raises RecipeError."""
        values = {name: it for name, it in self.tree.values.items() if name not in OWN}
        tree = Tree(
            values, {k: it for k, it in self.tree.origins.items() if k[:1] not in _OWN_KEYS}
        )
        pieces = [self._piece(axis, option) for axis, option in options.items()]
        for piece in pieces:  # choices first: they drop the parameters of what was there
            tree = layers.overlay(tree, replace(piece, values=_choices(piece.values)))
        for piece in pieces:
            tree = layers.overlay(tree, piece)
        return recipes.resolve(tree, self.name, self.registry)

    def _piece(self, axis: str, option: str) -> Tree:
        key = ("axis", axis, option)
        origins = {k[3:]: it for k, it in self.tree.origins.items() if k[:3] == key and k[3:]}
        return Tree(self.tree.values["axis"][axis][option], origins)


_OWN_KEYS = {(name,) for name in OWN}


def designed(
    design: str, axes: Mapping[str, Sequence[str]], baseline: Options
) -> list[dict[str, str]]:
    """The points of a design, the baseline first, no one twice.

    one_at_a_time: the baseline, and every other option by itself. pairs: those, and all pairs of
    other options of two axes. grid: every option of every axis with all of the others.
    """
    if design == "grid":
        points = [dict(zip(axes, options, strict=True)) for options in product(*axes.values())]
        return sorted(points, key=lambda options: options != baseline)
    others = {axis: [it for it in axes[axis] if it != baseline[axis]] for axis in axes}
    points = [baseline, *(baseline | {axis: it} for axis in axes for it in others[axis])]
    if design == "pairs":
        for one, two in combinations(axes, 2):
            points += [baseline | {one: a, two: b} for a in others[one] for b in others[two]]
    return points


def _label(design: str, options: Options, baseline: Options) -> str:
    """The row's name: what differs from the baseline; in a grid, and of one axis, the options."""
    if design == "grid" or len(options) == 1:
        return ", ".join(options.values())
    return ", ".join(f"{k}: {it}" for k, it in options.items() if baseline[k] != it) or "baseline"


def _leaves(piece: Any, at: Key = ()) -> Iterator[Key]:
    """The keys of all that a piece sets."""
    if isinstance(piece, dict) and (piece or not at):
        for name, value in piece.items():
            yield from _leaves(value, (*at, name))
    else:
        yield at


def _meet(one: Key, two: Key) -> bool:
    """Whether one of the two stands at, or within, the other."""
    size = min(len(one), len(two))
    return one[:size] == two[:size]


def _choices(piece: dict[str, Any]) -> dict[str, Any]:
    """Of a piece what says `use`, and no more."""
    found = {k: _choices(it) for k, it in piece.items() if isinstance(it, dict)}
    own = {"use": piece["use"]} if "use" in piece else {}
    return own | {k: it for k, it in found.items() if it}
