"""A run for others: what it takes to caption and to score with it, and no more."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from cdlm import checkpoint
from cdlm.errors import RunError
from cdlm.rundir import METRICS, PROVENANCE, RECIPE, SUMMARY, RunDir, draft_folder, write_json

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
KEPT = (RECIPE, "tokenizer.json", METRICS, SUMMARY)
PRIVATE = ("argv", "folder")  # of the provenance: paths of the machine that it was trained on


def export(run: RunDir, out: Path, step: int | None, precision: torch.dtype) -> Path:
    """Write the averaged weights of the newest checkpoint, or of one step, into a new folder `out`.

    Beside them stand recipe, vocabulary, learning curves, summary and provenance, less the paths of
    this machine. It is a run like any other to `eval`, `caption`, `report` and `Captioner`; to
    train on, the optimizer's memory is missing. Captions, and the dataset's own beside them, stay
    behind. bfloat16 keeps 8 of 24 bits of every weight and halves the file.
    Raises RunError where there is no such checkpoint, and where `out` exists.
    """
    found = checkpoint.find(run.checkpoints, step)
    try:
        with draft_folder(out) as place:
            for name in KEPT:
                if (run.path / name).is_file():
                    shutil.copyfile(run.path / name, place / name)
            known = {key: it for key, it in run.provenance().items() if key not in PRIVATE}
            known["git"] = {key: it for key, it in known["git"].items() if key != "diff"}
            write_json(place / PROVENANCE, known)
            kept = {name: _rounded(it, precision) for name, it in found.tensors["weights"].items()}
            checkpoint.save(place / "checkpoints", found.step, {"weights": kept}, found.state, 1)
    except OSError as error:
        raise RunError(f"{out}: can't write the run there: {error.strerror or error}") from error
    return out


def _rounded(value: Tensor, precision: torch.dtype) -> Tensor:
    return value.to(precision) if value.is_floating_point() else value
