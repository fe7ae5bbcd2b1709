"""A run for others: what it takes to caption and to score with it, and no more."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdlm import checkpoint
from cdlm.errors import RunError
from cdlm.job import alike, altered, stored
from cdlm.recipe import Recipe
from cdlm.rundir import (
    MEMBERS,
    METRICS,
    PROVENANCE,
    RECIPE,
    RunDir,
    draft_folder,
    write_json,
    write_text,
)

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
KEPT = ("tokenizer.json", METRICS)
PRIVATE = ("argv", "folder")  # of the provenance: paths of the machine that it was trained on


def export(
    run: RunDir,
    out: Path,
    step: int | None = None,
    average: int | None = None,
    sets: Sequence[str] = (),
    precision: torch.dtype = torch.bfloat16,
    members: Sequence[RunDir] = (),
) -> Path:
    """Write the averaged weights of the newest checkpoint, or of one step, into a new folder `out`.

    With `average` it is the mean of all checkpoints that are kept from that step on.
    Beside them stand the recipe with `sets` on top, vocabulary, learning curves, and provenance
    less the paths of this machine. It is a run like any other to `eval`, `caption` and `Captioner`;
    to train on, the optimizer's memory is missing. Captions, and those of the dataset beside them,
    stay behind. bfloat16 keeps 8 of 24 bits of every weight and halves the file.
    With `members`, and those that the run has already, it is an ensemble: they say its captions
    together, by one encoder and sampled as `sets` have it. `step` and `average` hold for all that
    are not yet members.
    Source: Vaswani et al. 2017, section 6.1 (the mean of checkpoints).
    Raises RunError where there is no such checkpoint, where runs can't say captions together, and
    where `out` exists; RecipeError for sets that the weights rest on.
    """
    recipe = altered(stored(run), sets)
    others = [*run.members, *(it for member in members for it in (member, *member.members))]
    seen = {"encoder": recipe.choices["encoder"]}
    theirs = [replace(it, choices=it.choices | seen) for it in alike(run, others)]
    try:
        with draft_folder(out) as place:
            _write(run, recipe, place, step, average, precision)
            for number, (other, its) in enumerate(zip(others, theirs, strict=True), 1):
                which = (step, average) if other in members else (None, None)
                folder = place / MEMBERS / str(number)
                folder.mkdir(parents=True)
                _write(other, its, folder, *which, precision)
    except OSError as error:
        raise RunError(f"{out}: can't write the run there: {error.strerror or error}") from error
    return out


def _write(
    run: RunDir,
    recipe: Recipe,
    place: Path,
    step: int | None,
    average: int | None,
    precision: torch.dtype,
) -> None:
    """What others need of one run, into a folder. Raises OSError, RunError."""
    found = checkpoint.find(run.checkpoints, step)
    steps = _from(run, average, found.step) if average else [found.step]
    weights = _mean(run, steps[:-1], found.tensors["weights"])
    for name in KEPT:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, place / name)
    write_text(place / RECIPE, recipe.toml())
    named = {"recipe": recipe.name, "hash": recipe.hash}
    write_json(place / PROVENANCE, _public(run.provenance()) | named)
    kept = {name: _rounded(it, precision) for name, it in weights.items()}
    state = found.state | {"averaged": steps}
    checkpoint.save(place / "checkpoints", found.step, {"weights": kept}, state, 1)


def _public(known: dict[str, Any]) -> dict[str, Any]:
    """Provenance that tells nothing of the machine's folders, nor of changes to other files."""
    known = {key: it for key, it in known.items() if key not in PRIVATE}
    return known | {"git": {key: it for key, it in known["git"].items() if key != "diff"}}


def _from(run: RunDir, first: int, last: int) -> list[int]:
    """The steps from `first` to `last` of which there are checkpoints. Raises RunError for one."""
    steps = [step for step in checkpoint.steps(run.checkpoints) if first <= step <= last]
    if len(steps) < 2:
        raise RunError(f"{run.checkpoints}: fewer than two checkpoints from step {first} on")
    return steps


def _mean(run: RunDir, earlier: Sequence[int], last: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of the last weights and those of earlier steps; whole numbers are the last's."""
    total = {name: it.double() for name, it in last.items()}
    for step in earlier:
        for name, it in checkpoint.find(run.checkpoints, step).tensors["weights"].items():
            total[name] += it
    return {
        name: (total[name] / (1 + len(earlier))).to(it.dtype) if it.is_floating_point() else it
        for name, it in last.items()
    }


def _rounded(value: Tensor, precision: torch.dtype) -> Tensor:
    return value.to(precision) if value.is_floating_point() else value
