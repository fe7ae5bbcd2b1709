"""What an evaluation found, as files: in the run's folder, and in COCO's form of results."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdlm import checkpoint, rundir
from cdlm.errors import DataError, RunError
from cdlm.evaluate import Score, available, records, signature
from cdlm.layers import key_of
from cdlm.parts.metrics.coco import Bleu, CiderD, Meteor, RougeL, Spice
from cdlm.parts.metrics.text import CaptionLength, Diversity, Repetition
from cdlm.protocols import Metric
from cdlm.records import Answers

if TYPE_CHECKING:
    from cdlm.job import Job
    from cdlm.run import Outcome

FOLDER = "eval"  # of a run's folder
COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.jpg")


def record(job: Job, outcome: Outcome) -> dict[str, Any]:
    """All that a published number needs beside it: how, on what, by which code, when, how sure."""
    plan, git = job.recipe.evaluate, rundir.git_state()
    trained = checkpoint.last_state(job.run.checkpoints)
    return {
        "recipe": job.recipe.name,
        "hash": job.recipe.hash,
        "sets": job.recipe.sets,
        "seed": job.recipe.seed,
        "split": plan.split,
        "n": len(outcome.answers.captions),
        "step": outcome.step,
        "captions": outcome.how,
        "about": outcome.about,
        "protocol": signature(outcome.scores, outcome.how),
        "scores": available(outcome.scores),
        "intervals": {it.name: it.interval for it in outcome.scores if it.interval},
        "not_scored": {it.name: it.missing for it in outcome.scores if it.missing},
        **{name.replace(" ", "_"): available(it) for name, it in outcome.beside.items()},
        "sampling_seconds": round(outcome.seconds, 3),
        "training_seconds": trained.get("seconds"),
        "averaged_steps": trained.get("averaged", [outcome.step]),
        "training_processes": trained.get("processes", 1),
        "training_speed": trained.get("speed", {}),
        "parameters": sum(
            it.numel() for voice in job.parts.voices for it in voice.modules().parameters()
        ),
        "members": [_trained(it) for it in job.members],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(job.device),
        "commit": git["commit"],
        "changed_files": git.get("changed", []),
    }


def _trained(member: Job) -> dict[str, Any]:
    """What stands beside a number for a run that says the captions together with another."""
    state = checkpoint.last_state(member.run.checkpoints)
    return {
        "recipe": member.recipe.name,
        "seed": member.recipe.seed,
        "step": member.run.last_step,
        "training_seconds": state.get("seconds"),
    }


def device_name(device: str) -> str:
    """A device as a table of results names it: "NVIDIA H100 80GB HBM3", "cpu, 2 threads"."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} threads"


def keep(job: Job, outcome: Outcome, sets: Sequence[str]) -> Path:
    """Write an evaluation with these `sets` into the run's folder, in place of an equal one's.

    The path of its record; its captions are beside it, as .jsonl. Raises RunError.
    """
    others = [text for text in sets if key_of(text) != ("evaluate", "split")]
    if outcome.step != job.run.last_step:
        others.append(f"step={outcome.step}")
    options = f"-{_slug(others)}" if others else ""
    place = job.run.path / FOLDER / f"{job.recipe.evaluate.split}{options}.json"
    lines = b"".join(rundir.line(it) for it in records(outcome.answers, outcome.said))
    try:
        place.parent.mkdir(exist_ok=True)
        rundir.write_bytes(place.with_suffix(".jsonl"), lines)
        rundir.write_json(place, record(job, outcome))
    except OSError as error:
        raise RunError(f"{place}: can't keep the result: {error.strerror}") from error
    return place


def _slug(options: Sequence[str]) -> str:
    """The options in a file's name; many are cut short, and told apart by a hash."""
    name, room = rundir.options_slug(options), rundir.SLUG_CHARS - 9
    if len(name) <= room:
        return name
    return f"{name[:room]}-{sha256(repr(sorted(options)).encode()).hexdigest()[:8]}"


# ------------------------------------------------------------------------------ COCO's own form


def coco_results(answers: Answers) -> list[dict[str, Any]]:
    """[{image_id, caption}], as COCO's server and coco-caption read it.

    COCO's images have their numbers; others keep their names.
    """
    rows = zip(answers.image_ids, answers.captions, strict=True)
    return [{"image_id": _coco_id(name), "caption": caption} for name, caption in rows]


def _coco_id(name: str) -> int | str:
    found = COCO_NAME.fullmatch(name)
    return int(found[1]) if found else name


def read_answers(captions: Path, annotations: Path) -> Answers:
    """The captions of a file of results beside the references of a file of annotations.

    In the order of the annotations, and of its images those alone that have a caption.
    Raises DataError for files of another form, images captioned twice, and unknown images.
    """
    references: dict[Any, list[str]] = {}
    for note in _rows(_of(_json(annotations), "annotations"), annotations):
        references.setdefault(note["image_id"], []).append(note["caption"])
    said: dict[Any, str] = {}
    for row in _rows(_json(captions), captions):
        name = row["image_id"]
        if name in said or name not in references:
            why = "captioned twice" if name in said else f"has no reference in {annotations}"
            raise DataError(f"{captions}: image {name}: {why}")
        said[name] = row["caption"]
    names = [name for name in references if name in said]
    return Answers(
        image_ids=[str(name) for name in names],
        captions=[said[name] for name in names],
        references=[references[name] for name in names],
        truths=[None] * len(names),
    )


def published() -> list[Metric]:
    """What can be said of captions and references without images or a run."""
    coco: list[Metric] = [Bleu(), Meteor(), RougeL(), CiderD(), Spice()]
    return [*coco, Diversity(), Repetition(), CaptionLength()]


def as_json(scores: Sequence[Score], answers: Answers) -> dict[str, Any]:
    """Scores that belong to no run, with what they need beside them."""
    return {
        "n": len(answers.captions),
        "protocol": signature(scores, "captions of a file"),
        "scores": available(scores),
        "intervals": {it.name: it.interval for it in scores if it.interval},
        "not_scored": {it.name: it.missing for it in scores if it.missing},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a file of JSON: {error}") from error


def _of(found: Any, key: str) -> Any:
    return found.get(key) if isinstance(found, dict) else None


def _rows(found: Any, path: Path) -> list[dict[str, Any]]:
    """The items, found to have an image and a caption each. Raises DataError."""
    good = isinstance(found, list) and all(
        isinstance(it, dict)
        and isinstance(it.get("image_id"), int | str)
        and isinstance(it.get("caption"), str)
        for it in found
    )
    if not good:
        raise DataError(
            f'{path}: expected a list of {{"image_id": ..., "caption": "..."}}: results as COCO '
            'has them, or annotations below the key "annotations"'
        )
    return found
