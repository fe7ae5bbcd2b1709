"""Recipes: from TOML to a fully resolved choice of components, or to all the mistakes in it.

Every value of a resolved recipe has been checked against its component's signature, every default
is filled in, and each value knows its origin. Nothing is built here, and torch is not imported.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cdlm import layers, schema, signature, toml
from cdlm.errors import CdlmError, Mistake, PluginError, RecipeError, nearest
from cdlm.layers import Key, Tree
from cdlm.registry import IN_RECIPES, KINDS, Entry, Kind, Registry
from cdlm.signature import Parameter, Spec
from cdlm.values import Above0, Count, NonNegative, Positive, Share

USUAL = Tree(
    {
        "views": {"use": "none"},
        "process": {"use": "gaussian"},
        "objective": {"use": "process_loss"},
    },
    {("views",): "default", ("process",): "default", ("objective",): "default"},
)
"""What lies below every recipe: the stored ones that are older than a kind stay whole."""

LARGEST = 2**63 - 1  # whole numbers beyond it don't fit into a tensor or a seed
LINES = 24  # of an error text; then "and N more"


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """[model]: the widths that belong to the whole model."""

    width: Positive  # E: of the vectors that are diffused
    hidden: Positive  # H: of the transformer
    length: Positive  # L: tokens of a caption, with its end token
    bias: bool = True  # of the projections between E and H


@dataclass(frozen=True, kw_only=True)
class TrainTable:
    """[train]: how the parts are trained."""

    steps: Positive = 1000  # steps of the optimizer
    start: str = ""  # a run, whose weights and vocabulary it begins with; "": new ones
    start_step: Count = 0  # of that run's checkpoint; 0: the newest
    limit: Count = 0  # training captions, the first ones; 0: all
    batch: Positive = 128  # captions seen between two updates, divided by accumulate
    accumulate: Positive = 1  # batches whose gradients make one update
    lr: Above0 = 1e-3  # the highest learning rate
    warmup: Count = 100  # steps in which it rises from 0
    decay: Literal["cosine", "linear", "constant"] = "cosine"  # how it falls after that
    lr_end: Share = 0.0  # the share of lr that it falls to
    weight_decay: NonNegative = 0.01  # of AdamW
    clip: Above0 = 1.0  # largest norm of the gradient
    ema: Share = 0.999  # how much of the averaged weights stays at each step; 0: no average
    precision: Literal["float32", "bfloat16"] = "float32"  # of the network's arithmetic
    compile: bool = False  # the network by torch.compile: minutes at first, then faster on a GPU
    log_every: Positive = 50  # steps between two lines of metrics.jsonl
    validate_every: Count = 0  # steps between two looks at captions not trained on; 0: none
    validate_on: Literal["held", "val"] = "val"  # the split that they are of
    checkpoint_every: Positive = 500  # steps between two checkpoints
    keep: Positive = 3  # checkpoints that are kept


@dataclass(frozen=True, kw_only=True)
class EvaluateTable:
    """[evaluate]: what is captioned and measured after training."""

    split: Literal["train", "held", "val", "test"] = "val"  # of the dataset
    limit: Count = 0  # images, the first ones of the split; 0: all
    batch: Positive = 256  # captions that are sampled together


SAMPLING = ("rounding", "grid", "sampler", "constraint", "selection", "metric", "evaluate")
"""What of a recipe training never looks at; nor at what a component lists as `afterwards`."""

OF_STUDIES = ("study", "axis")

TABLES = {
    name: Entry("table", name, f"{__name__}:{table.__name__}", "cdlm")
    for name, table in (("model", ModelTable), ("train", TrainTable), ("evaluate", EvaluateTable))
}
TOP = {
    "about": Parameter("about", str, "", "what the recipe is for, in a sentence"),
    "seed": Parameter("seed", Count, 0, "of all random numbers"),
}


@dataclass(frozen=True)
class Choice:
    """A component that a recipe picks, with all its parameters."""

    kind: str
    use: str
    parameters: dict[str, Any]

    def table(self) -> dict[str, Any]:
        """As it stands in TOML."""
        return {"use": self.use, **self.parameters}


@dataclass(frozen=True)
class Recipe:
    """A recipe that is complete and free of mistakes."""

    name: str
    about: str
    seed: int
    model: ModelTable
    train: TrainTable
    evaluate: EvaluateTable
    choices: dict[str, Choice | list[Choice]]
    sets: list[str] = field(default_factory=list)  # the --set that made it
    origins: dict[str, str] = field(default_factory=dict)  # "schedule.offset": "base.toml:12"
    without: list[str] = field(default_factory=list)  # kinds for which its process has no use

    @property
    def stepped_by(self) -> str:
        """The kind of the component that says in how many steps captions are sampled."""
        return "process" if "sampler" in self.without else "sampler"

    def one(self, kind: str) -> Choice:
        """The component of a kind that has one. Raises CdlmError where the process has none."""
        if kind in self.without:
            raise CdlmError(f"process {self.one('process').use} has no {kind}")
        choice = self.choices[kind]
        assert isinstance(choice, Choice), f"there are several of kind {kind}"
        return choice

    def many(self, kind: str) -> list[Choice]:
        """The components of a kind that has a list of them, in their order."""
        choices = self.choices.get(kind, [])
        assert isinstance(choices, list), f"there is one of kind {kind}"
        return choices

    @property
    def hash(self) -> str:
        """SHA-256 of all that counts: neither name, about and origins, nor the order of keys."""
        return _digest({name: it for name, it in self.values().items() if name != "about"})

    @property
    def training_hash(self) -> str:
        """SHA-256 of all that its weights rest on: recipes with the same one are trained once."""
        from cdlm import plugins

        registry = plugins.load().registry
        counts = {k: it for k, it in self.values().items() if k not in ("about", *SAMPLING)}
        for kind, choice in self.choices.items():
            if kind in counts and isinstance(choice, Choice):
                spec = signature.read(registry.get(kind, choice.use))
                after = spec.sets.get("afterwards", frozenset())
                counts[kind] = {k: it for k, it in choice.table().items() if k not in after}
        return _digest(counts)

    def values(self) -> dict[str, Any]:
        """The recipe as TOML gives it, with every default; None stands for a value left out."""
        values: dict[str, Any] = {"about": self.about, "seed": self.seed}
        for kind, choice in self.choices.items():
            if isinstance(choice, list):
                values[kind] = [item.table() for item in choice]
            else:
                values[kind] = choice.table()
        for name in TABLES:
            values[name] = dict(vars(getattr(self, name)))
        return values

    def toml(self) -> str:
        """The fully resolved recipe; `load` makes the same one from it."""
        values = self.values()
        lines = [f"# {toml.text(self.name)}, every default filled in"]
        lines += [toml.pair(name, it) for name, it in values.items() if name not in TABLES]
        for name in TABLES:
            lines += ["", f"[{name}]", *(toml.pair(*item) for item in values[name].items())]
        return "\n".join(lines) + "\n"

    def with_sets(self, sets: Sequence[str], registry: Registry | None = None) -> Recipe:
        """This recipe with more --set on top. Raises RecipeError."""
        origins = {tuple(dotted.split(".")): it for dotted, it in self.origins.items()}
        tree = Tree(_without_none(self.values()), {(): self.name, **origins})
        return _resolved(tree, self.name, sets, self.sets, registry)


def _digest(values: dict[str, Any]) -> str:
    """What is only there for speed counts where it is used: it changes the last digits."""
    train = {name: it for name, it in values["train"].items() if name != "compile" or it}
    values = {**values, "train": train}
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(it) for name, it in value.items() if it is not None}
    return [_without_none(it) for it in value] if isinstance(value, list) else value


def load(path: str | Path, sets: Sequence[str] = (), registry: Registry | None = None) -> Recipe:
    """The recipe in a file, with `sets` ("train.steps=500") on top. Raises RecipeError."""
    path = Path(path)
    return _resolved(layers.read(path), name_of(path), sets, [], registry)


def loads(
    text: str,
    name: str = "recipe",
    sets: Sequence[str] = (),
    registry: Registry | None = None,
    *,
    place: str = "recipe.toml",
) -> Recipe:
    """The recipe in a text that extends nothing, such as a stored one; errors call it `place`.

    Raises RecipeError.
    """
    return _resolved(layers.parse(text, place), name, sets, [], registry)


def resolve(tree: Tree, name: str, registry: Registry | None = None) -> Recipe:
    """The recipe that a tree of values makes. Raises RecipeError."""
    return _resolved(tree, name, (), [], registry)


def table(tree: Tree, entry: Entry, registry: Registry) -> tuple[Any, list[Mistake]]:
    """The class of `entry` made of the tree's table of that name; None, and what is wrong in it."""
    reading = _Reading(tree, registry)
    return reading.fixed(entry), list(reading.mistakes.values())


def name_of(path: Path) -> str:
    """The path below a folder called recipes, or else the file's name; without its suffix."""
    parts = path.absolute().with_suffix("").parts
    if "recipes" not in parts[:-1]:
        return parts[-1]
    below = len(parts) - 1 - parts[-2::-1].index("recipes")
    return "/".join(parts[below:])


def example(entry: Entry) -> str:
    """A line of TOML that picks this component, required parameters and defaults written out."""
    spec = signature.read(entry)
    written = {
        parameter.name: schema.stand_in(parameter.annotation)
        if parameter.required
        else parameter.default
        for parameter in spec.parameters
    }
    table = toml.text({"use": entry.name, **written})
    return f"{entry.kind} = [{table}]" if KINDS[entry.kind].many else f"{entry.kind} = {table}"


# ----------------------------------------------------------------------------------- checking


def _resolved(
    tree: Tree, name: str, sets: Sequence[str], before: list[str], registry: Registry | None
) -> Recipe:
    if registry is None:
        from cdlm import plugins

        registry = plugins.load().registry
    reading = _Reading(layers.assign(layers.overlay(USUAL, tree), sets), registry)
    values = reading.values()
    if reading.mistakes:
        raise RecipeError(_fewer(list(reading.mistakes.values()), tree.origin(())))
    origins = {".".join(key): origin for key, origin in reading.origins.items()}
    return Recipe(name=name, **values, sets=[*before, *sets], origins=origins)


def _fewer(mistakes: list[Mistake], place: str) -> list[Mistake]:
    """As many as fit into LINES lines, and how many more there are."""
    kept, lines = 0, 0
    for mistake in mistakes:
        lines += str(mistake).count("\n") + 1
        kept += lines <= LINES
    rest = len(mistakes) - kept
    return [*mistakes[:kept], *([Mistake(place, f"and {rest} more")] if rest else [])]


class _Reading:
    """One pass over a recipe's tree; fills in what is left out, and notes every mistake once."""

    def __init__(self, tree: Tree, registry: Registry) -> None:
        self.tree = tree
        self.registry = registry
        self.mistakes: dict[Key, Mistake] = {}
        self.origins: dict[Key, str] = {}
        self.placed: list[tuple[Key, Choice]] = []
        self.without = self._without()
        self.kinds = [it for name, it in IN_RECIPES.items() if name not in self.without]

    def values(self) -> dict[str, Any]:
        """The fields of a Recipe; of no use where there are mistakes."""
        self._check_plain_values()
        top = self.tree.values
        for name in top:
            if name not in {*TOP, *TABLES, *IN_RECIPES, "extends"}:
                allowed = nearest(name, [*TOP, *TABLES, *IN_RECIPES])
                study = "this file is a study: cdlm study FILE --dry-run checks it"
                hint = study if name in OF_STUDIES else allowed
                self.note((name,), "there is no such key", hint)
        if "extends" in top:
            self.note(("extends",), "a stored recipe extends nothing")
        values = {name: self.value((), it, top, "default") for name, it in TOP.items()}
        self._check_without()
        choices = {kind.name: self.choices(kind) for kind in self.kinds}
        tables = {name: self.fixed(entry) for name, entry in TABLES.items()}
        self._check_pairs()
        return {**values, **tables, "choices": choices, "without": sorted(self.without)}

    def note(self, key: Key, what: str, hint: str = "", place: str = "") -> None:
        """Keep the first mistake about `key`."""
        self.mistakes.setdefault(key, Mistake(place or self.tree.place(key), what, hint))

    def wrong(self, key: Key) -> bool:
        """Whether there is a mistake at `key` or within."""
        return any(known[: len(key)] == key for known in self.mistakes)

    def _check_plain_values(self) -> None:
        """Note what TOML can say and a recipe can't: dates, NaN, numbers beyond 64 bits."""
        for key, value in layers.walk(self.tree.values):
            if fault := _fault(value):
                self.note(key, fault)

    def _without(self) -> frozenset[str]:
        """The kinds for which the chosen process has no use; none where it can't be read."""
        given = self.tree.values.get("process")
        use = given.get("use") if isinstance(given, dict) else None
        if not isinstance(use, str) or use not in self.registry.names("process"):
            return frozenset()
        spec = self.spec(self.registry.get("process", use), ("process",))
        return spec.sets.get("without", frozenset()) if spec else frozenset()

    def _check_without(self) -> None:
        """Note what is said of kinds for which the process has no use, where it is chosen or above.

        What is older was said for another process, and drops out with it.
        """
        for kind in sorted(self.tree.values.keys() & (self.without - self.tree.older)):
            within = [key for key, it in self.tree.origins.items() if it == layers.SET]
            key = next((key for key in within if key[:1] == (kind,)), (kind,))
            use = self.tree.values["process"]["use"]
            hint = f"leave it out; process {use} goes without {', '.join(sorted(self.without))}"
            self.note(key, f"process {use} has no {kind}", hint)

    # ------------------------------------------------------------------------------ tables

    def fixed(self, entry: Entry) -> Any:
        """One of TABLES, or None where it has mistakes."""
        key = (entry.name,)
        given = self.tree.values.get(entry.name, {})
        if not isinstance(given, dict):
            self.note(key, f"expected a table, got {toml.short(given)}", f"write [{entry.name}]")
            return None
        found = self.parameters(key, given, signature.read(entry), f"default of {entry.name}")
        return None if self.wrong(key) else entry.load()(**found)

    def parameters(
        self, key: Key, given: dict[str, Any], spec: Spec, default: str
    ) -> dict[str, Any]:
        """All parameters of a table, checked and filled in."""
        known = {parameter.name: parameter for parameter in spec.parameters}
        for name in given:
            if name not in known:
                self.note((*key, name), "there is no such key", nearest(name, known))
        return {name: self.value(key, it, given, default) for name, it in known.items()}

    def value(self, key: Key, parameter: Parameter, given: dict[str, Any], default: str) -> Any:
        """One parameter's value: what is given, or its default."""
        at = (*key, parameter.name)
        expected = schema.words(parameter.annotation)
        if parameter.name in given:
            self.origins[at] = self.tree.origin(at)
            fitted = self._fitted(at, given[parameter.name], parameter, expected)
            return self._nested(at, fitted, parameter)
        self.origins[at] = default
        if parameter.required:
            instance = toml.pair(parameter.name, schema.stand_in(parameter.annotation))
            place = layers.joined(self.tree.origin((*key, "use")), at)
            self.note(at, f"missing: {expected}", _hint(f"like {instance}", parameter), place)
        return copy.deepcopy(parameter.default)

    def _fitted(self, key: Key, value: Any, parameter: Parameter, expected: str) -> Any:
        try:
            return schema.fit(value, parameter.annotation)
        except schema.Misfit:
            if not self.wrong(key):
                said = f"expected {expected}, got {toml.short(value)}"
                advice = self._advice(key, value, expected, parameter)
                self.note(key, said, _hint(advice, parameter))
            return None

    def _nested(self, key: Key, value: Any, parameter: Parameter) -> Any:
        """The value; where it picks components, their tables complete."""
        kind = schema.kind_of(parameter.annotation)
        if kind is None or value is None:
            return value
        if isinstance(value, list | tuple):
            items = enumerate(value)
            return [self._nested((*key, str(i)), item, parameter) for i, item in items]
        choice = self.choice(kind, key, value)
        return choice and choice.table()

    def _advice(self, key: Key, value: Any, expected: str, parameter: Parameter) -> str:
        """What the writer may have meant: a similar option, or a text that --set read otherwise."""
        options = schema.options(parameter.annotation)
        if options and isinstance(value, str):
            return nearest(value, options)
        mistaken = isinstance(value, bool | int | float) and "a text" in expected
        if mistaken and self.tree.origin(key) == layers.SET:
            return f"a text needs quotes: '\"{toml.text(value)}\"'"
        return ""

    # -------------------------------------------------------------------------- components

    def choices(self, kind: Kind) -> Any:
        """The Choice, or list of them, that the recipe makes for this kind."""
        given = self.tree.values.get(kind.name)
        key = (kind.name,)
        if given is None:
            self.note(key, f"no {kind.name} is chosen", self._instance(kind), self.tree.origin(()))
        elif kind.many != isinstance(given, list):
            wanted = "a list of tables" if kind.many else "a table"
            self.note(key, f"expected {wanted}, got {toml.short(given)}", self._instance(kind))
        elif not kind.many:
            return self._place(key, self.choice(kind.name, key, given))
        elif len(given) < kind.least:
            self.note(key, f"expected at least {kind.least}, got {toml.short(given)}")
        else:
            if not given:  # else each item has its own
                self.origins[key] = self.tree.origin(key)
            keys = [(*key, str(i)) for i in range(len(given))]
            items = [
                self._place(at, self.choice(kind.name, at, it))
                for at, it in zip(keys, given, strict=True)
            ]
            self._check_once(kind, items)
            return items
        return [] if kind.many else None

    def _place(self, key: Key, choice: Choice | None) -> Choice | None:
        """Remember what the recipe itself picks, not what a component within it is made of."""
        if choice is not None:
            self.placed.append((key, choice))
        return choice

    def choice(self, kind: str, key: Key, given: Any) -> Choice | None:
        """One component's table, checked; None where it can't be known which component it is."""
        if not isinstance(given, dict):
            said = f"expected a table, got {toml.short(given)}"
            self.note(key, said, self._instance(KINDS[kind]))
            return None
        use = given.get("use")
        if not isinstance(use, str) or use not in self.registry.names(kind):
            self._note_use(kind, key, given)
            return None
        self.origins[(*key, "use")] = self.tree.origin((*key, "use"))
        rest = {name: value for name, value in given.items() if name != "use"}
        spec = self.spec(self.registry.get(kind, use), key)
        if spec is None:
            return None
        return Choice(kind, use, self.parameters(key, rest, spec, f"default of {use}"))

    def _check_once(self, kind: Kind, items: list[Choice | None]) -> None:
        """Note a component that stands in a list twice and may not."""
        uses = [item.use if item else "" for item in items]
        for index, use in enumerate(uses):
            if kind.once and use and use in uses[:index]:
                self.note((kind.name, str(index)), f"{use} stands in the list already")

    def _note_use(self, kind: str, key: Key, given: dict[str, Any]) -> None:
        """Note that the table does not say which component it means."""
        if "use" not in given:
            self.note(key, f"which {kind}? `use` is missing", self.registry.hint(kind, ""))
        elif not isinstance(given["use"], str):
            said = f"expected the name of a {kind}, got {toml.short(given['use'])}"
            self.note((*key, "use"), said, self.registry.hint(kind, ""))
        else:
            said = f"no {kind} is called {toml.short(given['use'])}"
            self.note((*key, "use"), said, self.registry.hint(kind, given["use"]))

    def spec(self, entry: Entry, key: Key) -> Spec | None:
        """The component's spec, or None and a note where its class can't be read."""
        try:
            return signature.read(entry)
        except PluginError as error:
            self.note((*key, "use"), " ".join(str(error).split()))
            return None

    def _instance(self, kind: Kind) -> str:
        """A line that chooses a component of this kind."""
        for name in self.registry.names(kind.name):
            try:
                line = example(self.registry.get(kind.name, name))
            except PluginError:
                continue
            return f"like {line}; allowed: {', '.join(self.registry.names(kind.name))}"
        return self.registry.hint(kind.name, "")

    # -------------------------------------------------------------------------------- pairs

    def _check_pairs(self) -> None:
        """Note what a component asks for and no other has."""
        picked = [choice for _, choice in self.placed]
        denoisers = [choice for choice in picked if choice.kind == "denoiser"]
        for key, choice in self.placed:
            if denoisers:
                self._check_has(key, choice, "writes", denoisers, "reads")
            if self._all_known():
                self._check_has(key, choice, "needs", picked, "provides")

    def _all_known(self) -> bool:
        """Whether every component that the recipe picks is known; else who provides what is not."""
        given = [self.tree.values.get(kind.name) for kind in self.kinds]
        tables = sum(len(it) if isinstance(it, list) else 1 for it in given)
        return None not in given and tables == len(self.placed)

    def _check_has(
        self, key: Key, choice: Choice, asks: str, others: list[Choice], has: str
    ) -> None:
        there = frozenset[str]().union(*(self._declared(it.kind, it.use, has) for it in others))
        lacking = self._declared(choice.kind, choice.use, asks) - there
        if lacking:
            what, verb = " and ".join(sorted(lacking)), has.removesuffix("s")
            others_name = others[0].use if len(others) == 1 else "nothing in this recipe"
            does_not = (
                f"{others_name} does not {verb}" if len(others) == 1 else f"{others_name} {has}"
            )
            said = f"{choice.use} {asks} {what}, which {does_not}"
            place = layers.joined(self.tree.origin((*key, "use")), key)
            # One denoiser has to read all of it; several components may provide it together.
            asked = [lacking] if has == "reads" else [frozenset({it}) for it in sorted(lacking)]
            self.note(key, said, "; ".join(self._able(has, it) for it in asked), place)

    def _declared(self, kind: str, name: str, which: str) -> frozenset[str]:
        return signature.read(self.registry.get(kind, name)).sets.get(which, frozenset())

    def _able(self, which: str, wanted: frozenset[str]) -> str:
        """Which components, of any kind, declare all that is wanted, in words."""
        able = []
        for entry in self.registry.entries():
            with suppress(PluginError):
                if wanted <= signature.read(entry).sets.get(which, frozenset()):
                    able.append(f"{entry.kind} {entry.name}")
        return f"what {which} {' and '.join(sorted(wanted))}: {', '.join(able) or 'nothing'}"


def _fault(value: Any) -> str:
    """What no recipe may say, or ""."""
    if isinstance(value, float) and value - value != 0:
        return f"expected a finite number, got {value}"
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        return "expected a number of at most 64 bits, got a larger one"
    if isinstance(value, str) and not _encodable(value):
        return "expected a text that is valid Unicode"
    if not isinstance(value, bool | int | float | str | list | dict):
        return f"dates and times have no meaning here, got {value}; a text needs quotes"
    return ""


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hint(advice: str, parameter: Parameter) -> str:
    """The advice, and what the parameter is."""
    return "; ".join(filter(None, [advice, parameter.comment]))
