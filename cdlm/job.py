"""A run with its parts built: what training, evaluation and captioning work with."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdlm import checkpoint, foreign, plugins, ranks, rundir, signature
from cdlm import recipe as recipes
from cdlm.checkpoint import Checkpoint
from cdlm.compose import Parts, compose, dataset, make, metrics
from cdlm.data import flat
from cdlm.errors import CdlmError, Mistake, RecipeError, RunError
from cdlm.features import features, view_features
from cdlm.layers import SET, joined, key_of
from cdlm.parts.lengths import Predicted
from cdlm.places import cache_dir
from cdlm.progress import Tell, silent
from cdlm.protocols import Encoder, Selection, Split, Tokenizer
from cdlm.recipe import Choice, Recipe
from cdlm.records import Dims
from cdlm.rundir import RunDir
from cdlm.sample import forbidden

AFTERWARDS = (
    "seed", "dataset", "encoder", "guidance", "variance", "rounding", "grid", "sampler",
    "constraint", "selection", "metric", "evaluate",
)  # fmt: skip
"""What of a recipe may be set anew once its run is trained: no weight depends on it.

And of its other components the parameters that are so by their own word, `afterwards`.
"""

SAMPLING = (
    "process", "length", "guidance", "variance", "rounding", "grid", "sampler", "constraint",
    "selection",
)  # fmt: skip
"""What of it is built anew without loading the weights again."""

log = logging.getLogger(__name__)


def choose_device(wanted: str) -> str:
    """ "auto" is CUDA where there is some, and one of several processes takes its own.

    Raises CdlmError for a device that is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and ranks.launched():
        wanted = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        torch.empty(1, device=wanted).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).partition("\n")[0].partition(". ")[0]
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise CdlmError(f"--device {wanted}: {said}\n    there is: {', '.join(there)}") from error
    if ranks.launched() and wanted.startswith("cuda"):
        torch.cuda.set_device(wanted)
    return wanted


def stored(run: RunDir) -> Recipe:
    """The recipe of a run. Raises RecipeError, and RunError where it needs a plugin."""
    name = rundir.known(run.path).get("recipe", run.path.parent.name)
    try:
        return recipes.loads(run.recipe_text(), name, place=str(run.recipe))
    except RecipeError as error:
        gone = foreign.missing(run.provenance().get("components", {}))
        if not gone:
            raise
        needs = ", ".join(f"{owner} ({', '.join(its)})" for owner, its in gone.items())
        names = " ".join(owner.partition(" ")[0] for owner in gone)
        raise RunError(
            f"{run.path}: this run was made with plugins that are not installed here: {needs}\n"
            f"    pip install {names}    (those of cdlm's own repository: pip install -e "
            "plugins/NAME)"
        ) from error


def altered(recipe: Recipe, sets: Sequence[str]) -> Recipe:
    """A trained run's recipe with `sets` on top. Raises RecipeError where weights rest on them."""
    after = recipe.with_sets(sets)
    free = _afterwards(recipe)
    old, new = _rested_on(recipe, free), _rested_on(after, free)
    fixed = {key for key in new if new[key] != old.get(key)}
    mistakes = [
        Mistake(joined(SET, key), "this run is trained, and its weights rest on this")
        for key in dict.fromkeys(map(key_of, sets))
        if key[0] in fixed and ".".join(key) not in free
    ]
    if mistakes:
        allowed = [name for name in AFTERWARDS if name not in recipe.without] + free
        hint = f"allowed: {', '.join(allowed)}; for the rest, train another run"
        raise RecipeError([*mistakes[:-1], replace(mistakes[-1], hint=hint)])
    return after


def _afterwards(recipe: Recipe) -> list[str]:
    """The parameters of its other components that no weight depends on: "process.steps", ..."""
    registry, free = plugins.load().registry, list[str]()
    for kind, choice in recipe.choices.items():
        if kind not in AFTERWARDS and isinstance(choice, Choice):
            spec = signature.read(registry.get(kind, choice.use))
            free += [f"{kind}.{name}" for name in sorted(spec.sets.get("afterwards", ()))]
    return free


def _rested_on(recipe: Recipe, free: Sequence[str]) -> dict[str, Any]:
    """What of a recipe weights depend on."""
    values = {name: it for name, it in recipe.values().items() if name not in AFTERWARDS}
    for kind, _, name in (key.partition(".") for key in free):
        values[kind].pop(name, None)
    return values


def alike(run: RunDir, members: Sequence[RunDir]) -> list[Recipe]:
    """The recipes of runs that can say captions together with this one.

    They see the same image, and say the same words in one way; their networks, and what they were
    trained on, may differ. Raises RunError for one that can't.
    """
    if not members:
        return []
    recipe, others = stored(run), [stored(member) for member in members]
    wanted = _in_common(run, recipe)
    for member, other in zip(members, others, strict=True):
        found = _in_common(member, other)
        if differs := next((name for name in wanted if wanted[name] != found[name]), None):
            raise RunError(
                f"{member.path}: it can't say captions together with {run.path}\n"
                f"    its {differs} is another; networks, data and seeds may differ"
            )
    process = recipe.one("process").use
    spec = signature.read(plugins.load().registry.get("process", process))
    if "ensemble" not in spec.sets.get("provides", ()):
        raise RunError(
            f"{run.path}: its process, {process}, can't say captions together with another run"
        )
    return others


def _in_common(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    """What is the same for all of an ensemble, by name."""
    parts = _rested_on(recipe, _afterwards(recipe))
    return {
        "encoder": recipe.one("encoder"),
        **{kind: parts.get(kind) for kind in ("process", "length", "tokenizer")},
        "model.length": recipe.model.length,
        "vocabulary": vocabulary(run),
    }


@dataclass(frozen=True)
class Job:
    """A run with its parts built: what training, evaluation and captioning work with."""

    run: RunDir
    recipe: Recipe
    parts: Parts
    device: str
    splits: dict[str, Split] = field(default_factory=dict)  # those loaded so far, by name
    members: tuple[Job, ...] = ()  # of an ensemble: those that say captions together with it
    begun: list[Selection] = field(default_factory=list)  # that were shown the training photos

    @classmethod
    def open(cls, run: RunDir, device: str, sets: Sequence[str] = ()) -> Job:
        """The parts of a run's recipe, with `sets` on top, on a device; weights not yet loaded.

        Where the run's folder holds members, they are opened beside it, and sampled as it is.
        Raises RunError, RecipeError, CdlmError.
        """
        trained = stored(run)
        recipe = altered(trained, sets) if sets else trained
        for change in foreign.changes(run.provenance().get("components", {}), foreign.used(recipe)):
            log.warning("%s", change)
        splits: dict[str, Split] = {}
        encoder: Encoder = make(recipe.one("encoder"))
        encoder.to(device)
        metrics(recipe)  # a metric that can't be built is found before training, not after
        with ranks.first():
            tokenizer = _tokenizer(run, recipe, splits)
        parts = compose(recipe, encoder, tokenizer)
        forbidden(parts, torch.device("cpu"))  # so is a constraint on words that there are not
        _check_guidance(trained, recipe, parts.dims)
        alone, members = cls(run, recipe, parts, device, splits), run.members
        return alone._joined_by(list(map(alone._member, members, alike(run, members))))

    def _member(self, run: RunDir, recipe: Recipe) -> Job:
        """Another run, to say captions together with this one."""
        sampling = {kind: self.recipe.choices[kind] for kind in SAMPLING if kind in recipe.choices}
        recipe = replace(recipe, choices=recipe.choices | sampling)
        parts = compose(recipe, self.parts.encoder, self.parts.tokenizer)
        return Job(run, recipe, parts, self.device)

    def _joined_by(self, members: Sequence[Job]) -> Job:
        """This job with others beside it, all in one voice."""
        beside = tuple(job.parts for job in members)
        if isinstance(self.parts.length, Predicted):
            self.parts.length.beside = [it.length for it in beside]  # type: ignore[misc]
        return replace(self, members=tuple(members), parts=replace(self.parts, beside=beside))

    def sampling(self, sets: Sequence[str]) -> Job:
        """This job sampled in another way, weights shared. Raises RecipeError, CdlmError."""
        recipe, dims = altered(self.recipe, sets), self.parts.dims
        _check_guidance(self.recipe, recipe, dims)
        old, now = self.recipe.choices, recipe.choices
        changed = [kind for kind in SAMPLING if now.get(kind) != old.get(kind)]
        new = {kind: _sampling_part(recipe, kind, self.parts) for kind in changed}
        other = replace(self, recipe=recipe, parts=replace(self.parts, **new))
        return other._joined_by([it.sampling(sets) for it in self.members])

    def split(self, name: str) -> Split:
        """A split of the run's dataset."""
        if name not in self.splits:
            self.splits[name] = dataset(self.recipe).split(name)
        return self.splits[name]

    def features(self, name: str, tell: Tell = silent) -> Tensor:
        """The features of a split's images, N C each, from the cache where it has them."""
        return features(self.parts.encoder, self.split(name), cache_dir(), tell)

    def views(self, name: str, tell: Tell = silent) -> Tensor | None:
        """The features of other views of a split's photos, K N C each; None without any."""
        seen = make(self.recipe.one("views"))
        return view_features(self.parts.encoder, seen, self.split(name), cache_dir(), tell)

    def begin_selection(self, tell: Tell = silent) -> None:
        """Show the selection the training photos, if it asks. Raises DataError, CdlmError."""
        selection = self.parts.selection
        begin = getattr(selection, "begin", None)
        if begin is None or any(it is selection for it in self.begun):
            return
        split = self.split("train")
        of_each = zip(split.captions, split.pictured, strict=True)
        begin([texts for texts, there in of_each if there], self.features("train", tell))
        self.begun.append(selection)

    def load_weights(self, step: int | None = None) -> int:
        """Take the averaged weights of the newest checkpoint, or of one step; says which.

        Members take their newest ones. Raises RunError.
        """
        found = checkpoint.find(self.run.checkpoints, step)
        modules = self.parts.modules()
        with fitting(found, self.run):
            modules.load_state_dict(found.tensors["weights"])
        modules.to(self.device).eval()
        for member in self.members:
            member.load_weights()
        return found.step


def _sampling_part(recipe: Recipe, kind: str, parts: Parts) -> Any:
    """The recipe's component of this kind, or list of them, for a network that is trained.

    One that learns shares the weights of the one in its place, if they are of the same sizes.
    """
    choices = recipe.choices[kind]
    if isinstance(choices, list):
        return [make(choice, dims=parts.dims) for choice in choices]
    part, trained = make(choices, dims=parts.dims), getattr(parts, kind)
    if not isinstance(part, nn.Module):
        return part
    if list(part.parameters()):
        if type(part) is not type(trained) or _sizes(part) != _sizes(trained):
            raise CdlmError(f'{kind} "{choices.use}" learns in training; this run had none like it')
        part.load_state_dict(trained.state_dict(), assign=True)
    return part.eval()


def _sizes(part: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in part.state_dict().items()}


def _check_guidance(trained: Recipe, recipe: Recipe, dims: Dims) -> None:
    """A guidance that is set anew may need a network that has learnt to do without the image."""
    if "guidance" in trained.without:
        return
    before, now = (make(it.one("guidance"), dims=dims) for it in (trained, recipe))
    asks = now.eval().both(torch.linspace(0, 1, 1001))
    if trained.one("guidance") != recipe.one("guidance") and asks and not before.drop:
        raise CdlmError(
            "guidance: it compares with predictions made without the image, which this run was "
            'not trained for\n    train with guidance = { use = "scale", drop = 0.1 }, or leave '
            "the scale at 1"
        )


def _tokenizer(run: RunDir, recipe: Recipe, splits: dict[str, Split]) -> Tokenizer:
    """The run's vocabulary: the stored one; else that of the run it starts with, or learnt."""
    tokenizer: Tokenizer = make(recipe.one("tokenizer"))
    if run.tokenizer.is_file():
        try:
            tokenizer.load(run.tokenizer)
        except Exception as error:  # Hugging Face's tokenizers raise bare Exception
            raise RunError(
                f"{run.tokenizer}: can't be read: {error}\n    take it from a copy of this run; "
                "or delete it and go on with --resume, which learns it again from the captions"
            ) from error
        return tokenizer
    if recipe.train.start:
        with rundir.draft(run.tokenizer) as place:
            shutil.copyfile(start_of(recipe).tokenizer, place)
        return _tokenizer(run, recipe, splits)
    splits["train"] = dataset(recipe).split("train")
    tokenizer.fit(flat(splits["train"]))
    with rundir.draft(run.tokenizer) as place:
        tokenizer.save(place)
    return tokenizer


def start_of(recipe: Recipe) -> RunDir:
    """The run whose weights and vocabulary training begins with. Raises RunError."""
    try:
        run = RunDir.open(Path(recipe.train.start))
    except RunError as error:
        raise RunError(f"train.start: {error}") from error
    if not run.tokenizer.is_file():
        raise RunError(f"train.start: {run.tokenizer}: is not there; that run has no vocabulary")
    return run


@contextmanager
def fitting(found: Checkpoint, run: RunDir) -> Iterator[None]:
    """Weights go only into the model and to the vocabulary that they were trained with."""
    if found.state["vocabulary"] != vocabulary(run):
        raise RunError(
            f"{run.tokenizer}: not the vocabulary that {found.path} was trained with\n"
            "    take it from a copy of this run"
        )
    try:
        yield
    except (RuntimeError, KeyError, ValueError) as error:
        said = [line.strip() for line in str(error).splitlines()]
        raise RunError(
            f"{found.path}: these weights do not fit the model of {run.recipe}, or its encoder\n"
            f"    {said[min(1, len(said) - 1)][:200]}"
        ) from error


def vocabulary(run: RunDir) -> str:
    """Tells a run's vocabulary from another's. Raises RunError where it has none yet."""
    try:
        return sha256(run.tokenizer.read_bytes()).hexdigest()
    except OSError as error:
        raise RunError(f"{run.tokenizer}: can't be read: {error.strerror}") from error
