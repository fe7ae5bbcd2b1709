"""Checkpoints that are there whole or not at all, and are verified before use.

    checkpoints/step-00000500/
        weights.safetensors, ...    one file per group of tensors
        state.json                  everything else that a resumed run needs
        manifest.json               size and sha256 of each file; written last

A checkpoint is written into a hidden folder, brought through to the disk file by file, and renamed;
only then are old ones deleted. safetensors loads a flipped bit without a word, so `load` trusts
nothing that its manifest does not vouch for. No file holds code.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cdlm.errors import RunError
from cdlm.rundir import sweep, sync, temporary, write_synced

MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = ".safetensors"
FORMAT = 1  # of the folder; another number is refused
REPLACED = ".replaced"  # the ending of a checkpoint whose step is being saved again

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What was saved at a step, verified. Tensors lie on the CPU, by group and name."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    path: Path


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write step-<step> into `folder`, then delete all but the newest `keep` up to this step.

    When it returns, the checkpoint outlives a kill and a power cut. Equal contents give equal
    bytes. `state` is JSON; its tuples come back as lists. Raises RunError if it can't be written:
    what was there before is then intact.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    place = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        _write(place, step, tensors, state)
    except OSError as error:
        raise RunError(_unsaved(place, error)) from error
    try:
        _prune(folder, step, keep)
    except OSError as error:  # the new one is safe: no reason to stop a training
        log.warning("%s: can't delete old checkpoints: %s", folder, error)
    return place


def newest(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint; damaged ones are skipped with a warning in the log.

    None also where all are damaged. Raises RunError if the folder can't be read.
    """
    try:
        saved = _saved(folder)
    except OSError as error:
        raise RunError(f"{folder}: can't look for checkpoints: {error.strerror}") from error
    for _, path in saved:
        try:
            return load(path)
        except RunError as error:
            log.warning("a damaged checkpoint is skipped: %s", error)
    return None


def find(folder: Path, step: int | None = None) -> Checkpoint:
    """The checkpoint of this step, or the newest sound one.

    Raises RunError where there is none, naming the steps that there are.
    """
    if step is None:
        found = newest(folder)
        if found is None:
            raise RunError(f"{folder.parent}: there is no sound checkpoint yet; train it first")
        return found
    there = dict(reversed(_saved(folder)))
    if step not in there:
        names = ", ".join(map(str, there)) or "none"
        raise RunError(
            f"{folder}: no checkpoint of step {step}\n    there are: {names} (train.keep says how "
            "many stay)"
        )
    return load(there[step])


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints that are there, sound or not, in their order."""
    return sorted({step for step, _ in _saved(folder)})


def load(path: Path) -> Checkpoint:
    """The checkpoint in this folder. Raises RunError naming the file that differs, and how."""
    try:
        step, files = _verified(path)
        state = json.loads(files[STATE])
        tensors = {
            name.removesuffix(TENSORS): safetensors.torch.load(data)
            for name, data in files.items()
            if name.endswith(TENSORS)
        }
    except OSError as error:
        raise RunError(f"{path}: can't read the checkpoint: {error.strerror}") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not a checkpoint of cdlm: {error}") from error
    return Checkpoint(step=step, tensors=tensors, state=state, path=path)


def last_state(folder: Path) -> dict[str, Any]:
    """The state of the newest checkpoint as it stands there, not verified; {} without any."""
    for _, path in _saved(folder):
        with suppress(OSError, ValueError):
            return dict(json.loads((path / STATE).read_bytes()))
    return {}


def adopt(path: Path, folder: Path) -> Path:
    """Put a checkpoint of another run into `folder`, whole or not at all. Raises OSError.

    Its files are shared where the file system can do that: they are never written to again.
    """
    place = folder / path.name
    hidden = temporary(place)
    shutil.rmtree(hidden, ignore_errors=True)
    shutil.copytree(path, hidden, copy_function=_linked)
    _put(hidden, place)
    return place


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


# ------------------------------------------------------------------------------------ writing


def _write(
    place: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    """Build the checkpoint beside its place, then move it there. Raises OSError."""
    hidden = temporary(place)
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir()
        files = {}
        for name, data in _files(tensors, state):
            write_synced(hidden / name, data)
            files[name] = _vouched(data)
        write_synced(hidden / MANIFEST, _json({"format": FORMAT, "step": step, "files": files}))
        sync(hidden)
        _put(hidden, place)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def _files(
    tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    for group, named in tensors.items():
        # Cloned, since safetensors refuses tensors that share memory (tied weights, views).
        own = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in named.items()
        }
        yield group + TENSORS, safetensors.torch.save(own)
    yield STATE, _json(state)


def _vouched(data: bytes) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"size": len(data), "sha256": sha256(data).hexdigest()}


def _json(value: Mapping[str, Any]) -> bytes:
    """Bytes that depend on the contents alone. nan and inf are kept: only cdlm reads them."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _put(hidden: Path, place: Path) -> None:
    """Rename into place; an earlier checkpoint of that step stays loadable until then."""
    aside = place.with_name(place.name + REPLACED)
    if place.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(place, aside)
    os.rename(hidden, place)
    sync(place.parent)


def _prune(folder: Path, step: int, keep: int) -> None:
    """Delete old checkpoints; a damaged one does not count as kept.

    Later steps are left alone: they are of an earlier try, and replaced as this one gets there.
    """
    kept: set[int] = set()
    for of, path in _saved(folder):
        if of > step:
            continue
        if len(kept) >= keep or of in kept:
            _delete(path)
        elif _plausible(path):
            kept.add(of)


def _delete(path: Path) -> None:
    """Delete a checkpoint; a kill halfway leaves none that looks damaged. Raises OSError."""
    hidden = temporary(path)
    os.rename(path, hidden)
    shutil.rmtree(hidden)


def _unsaved(place: Path, error: OSError) -> str:
    """What is said of a failed save; the disk that failed may also fail to list the others."""
    others: list[tuple[int, Path]] = []
    with suppress(OSError):
        others = [(of, path) for of, path in _saved(place.parent) if path != place]
    sound = next((of for of, path in others if _plausible(path)), None)
    before = "there is none before it"
    if sound is not None:
        before = f"the previous checkpoint step-{sound:08d} is intact"
    return (
        f"{place}: can't save this checkpoint: {error.strerror or error}\n"
        f"    {before}; make room or mend the disk, then go on with --resume"
    )


# ------------------------------------------------------------------------------------ reading


def _saved(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints by name, newest first; one that is being replaced after its successor."""
    pattern = re.compile(rf"step-(\d{{8,}})({re.escape(REPLACED)})?")
    paths = folder.iterdir() if os.path.isdir(folder) else ()
    found = [(match, path) for path in paths if (match := pattern.fullmatch(path.name))]
    found.sort(key=lambda pair: (int(pair[0][1]), not pair[0][2]), reverse=True)
    return [(int(match[1]), path) for match, path in found]


def _verified(path: Path) -> tuple[int, dict[str, bytes]]:
    """The step and the files of a checkpoint. Raises RunError, and what `load` catches."""
    step, listed = _manifest(path)
    files = {}
    for name, wanted in listed.items():
        if not (path / name).is_file():
            raise RunError(_damaged(path / name, "the manifest lists this file, but it is gone"))
        data = (path / name).read_bytes()
        for what, value in _vouched(data).items():
            if value != wanted[what]:
                said = f"its {what} is {value}, the manifest says {wanted[what]}"
                raise RunError(_damaged(path / name, said))
        files[name] = data
    return step, files


def _manifest(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """The step and the listed files. Raises RunError, and what `load` catches."""
    place = path / MANIFEST
    if not place.is_file():
        raise RunError(_damaged(place, "there is no manifest: no checkpoint, or never finished"))
    text = place.read_bytes()
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise RunError(_damaged(place, f"not JSON: {error}")) from error
    # Only the very bytes that `save` writes count: nothing else vouches for the manifest itself.
    if not isinstance(manifest, dict) or _json(manifest) != text:
        raise RunError(_damaged(place, "not as cdlm writes it"))
    if manifest.get("format") != FORMAT:
        raise RunError(f"{place}: format {manifest.get('format')}; this cdlm reads {FORMAT}")
    step, files = manifest["step"], manifest["files"]
    if path.name.removesuffix(REPLACED) != f"step-{step:08d}":
        raise RunError(_damaged(place, f"it is of step {step}, the folder's name is another"))
    if not isinstance(files, dict) or any(Path(name).name != name for name in files):
        raise RunError(_damaged(place, "it does not list the files of its folder"))
    return step, files


def _damaged(place: Path, what: str) -> str:
    return f"{place}: damaged: {what}"


def _plausible(path: Path) -> bool:
    """Whether all files have their sizes. To hash gigabytes at every save would cost too much."""
    try:
        _, files = _manifest(path)
        return all((path / name).stat().st_size == f["size"] for name, f in files.items())
    except (RunError, OSError, ValueError, KeyError, TypeError):
        return False
