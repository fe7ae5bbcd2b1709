"""A run's folder: what is in it, how it is named, and how its files survive a kill.

    runs/<recipe>/<options>-s<seed>-<hash8>/
        recipe.toml       resolved, and itself runnable
        provenance.json   what is needed to repeat the run
        tokenizer.json    the vocabulary, never learnt twice
        metrics.jsonl     one record per logged value
        samples.jsonl     one record per sampled caption
        eval/             what `cdlm eval` found later, as summary.json and samples.jsonl
        draws.safetensors its scores on resampled images; see `cdlm.compare`
        log.txt
        checkpoints/      step-00000500/, ...; see `cdlm.checkpoint`
        summary.json      its presence means that the run has finished

A file is replaced whole or not at all (`draft`); a JSONL file only grows, and a torn last line is
dropped. The functions before `RunDir` serve checkpoints and the feature cache as well.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import platform
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from os.path import isdir, isfile  # unlike Path's, False where a folder may not be entered
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from cdlm.errors import RunError
from cdlm.places import RUNS

RECIPE = "recipe.toml"
PROVENANCE = "provenance.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
SUMMARY = "summary.json"
DRAWS = "draws.safetensors"
MEMBERS = "members"  # of an ensemble: the runs that say captions together with the folder's own

SLUG_CHARS = 60  # of the options in a folder's name; the hash tells longer ones apart
DIFF_BYTES = 200_000  # of uncommitted changes that provenance keeps
GIT_SECONDS = 10.0  # a huge repository on a slow disk must not hold up a run
PACKAGES = ("cdlm", "torch", "transformers", "open_clip_torch", "triton", "numpy")

log = logging.getLogger(__name__)


# ----------------------------------------------------------------- files that survive a kill


def temporary(path: Path) -> Path:
    """A hidden sibling of `path` that names its writer, so that `sweep` can tell it is dead."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{threading.get_native_id()}")


def write_synced(path: Path, data: bytes) -> None:
    """Write a file through to the disk; a kill halfway leaves half a file. Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        rest = memoryview(data)
        while rest:  # a system call writes at most 2 GiB, and may write less than asked
            written = os.write(file, rest)
            if written == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            rest = rest[written:]
        os.fsync(file)
    finally:
        os.close(file)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, through to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems can't sync a folder; they have nothing to sync there either.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A temporary path; the file written there takes the place of `path`, whole or not at all.

    Holds through a kill, a failed call and a power cut. Raises OSError, and then cleans up.
    """
    place = temporary(path)
    try:
        yield place
        sync(place)
        os.rename(place, path)
    except BaseException:
        with suppress(OSError):
            place.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path`, whole or not at all.

    Raises OSError, FileExistsError where `path` is there already, and then cleans up.
    """
    place = temporary(path)
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "it is there already", str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(place)
        place.mkdir()
        yield place
        sync(place)
        os.rename(place, path)
    except BaseException:
        _remove(place)
        raise
    sync(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file, whole or not at all. Raises OSError."""
    with draft(path) as place:
        write_synced(place, data)


def write_text(path: Path, text: str) -> None:
    """Replace a text file, whole or not at all. Raises OSError."""
    write_bytes(path, text.encode())


def line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of a JSONL file; nan and inf become null."""
    return _json(record) + b"\n"


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file, whole or not at all; nan and inf become null. Raises OSError."""
    write_bytes(path, _json(value, indent=2) + b"\n")


def sweep(folder: Path, name: str = "") -> None:
    """Delete the temporary files and folders of `name` (or of all) whose writers are dead."""
    pattern = re.compile(rf"\.{re.escape(name) or '.+'}\.tmp-(\d{{1,9}})-\d+")
    with suppress(OSError):  # it is no reason to stop, and what is wrong shows soon enough
        for path in folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match and not _alive(int(match[1])):
                _remove(path)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _json(value: Any, indent: int | None = None) -> bytes:
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    # A lone surrogate (a file name that is not UTF-8) has no bytes; its escape is valid JSON.
    return text.encode("utf-8", "backslashreplace")


def _finite(value: Any) -> Any:
    """The value with nan and inf as None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@contextmanager
def _reported(place: Path, deed: str, hint: str = "") -> Iterator[None]:
    """Turn what the system complains about into an error for people."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"{place}: can't {deed}: {reason}{_line(hint)}") from error


def _line(hint: str) -> str:
    return f"\n    {hint}" if hint else ""


# -------------------------------------------------------------------------------------- names


def slug(text: str, limit: int = SLUG_CHARS) -> str:
    """The text as one harmless part of a file name: [A-Za-z0-9.+=_-], no dot in front."""
    return re.sub(r"[^A-Za-z0-9.+=_]+", "-", text)[:limit].strip("-._=")


def options_slug(options: Sequence[str]) -> str:
    """["train.steps=100", "seed=3"] -> "steps=100"; the seed has its own place in the name."""
    values = {key.strip(): value for key, _, value in (o.partition("=") for o in options)}
    values.pop("seed", None)
    short = [key.rpartition(".")[2] for key in values]
    parts = [
        f"{slug(last if short.count(last) == 1 else key)}={_short(value)}"
        for (key, value), last in zip(values.items(), short, strict=True)
    ]
    return slug("_".join(sorted(parts))) or "default"


def _short(value: str) -> str:
    """A value in a few letters: of tables the components, of a path its end."""
    if uses := re.findall(r"""\buse\s*=\s*["']?(\w+)""", value):
        return slug("+".join(uses), 24)
    return slug(value.rstrip("/").rpartition("/")[2].replace("=", "-"), 16)


def run_path(root: Path, recipe_name: str, options: Sequence[str], seed: int, digest: str) -> Path:
    """root/<recipe>/<options>-s<seed>-<hash8>, always inside `root`."""
    name = f"{options_slug(options)}-s{seed}-{slug(digest, 8)}"
    return root / (slug(recipe_name) or "recipe") / name


def runs(root: Path) -> list[Path]:
    """The runs at, or up to two folders below, `root`; the newest first."""
    found = [p.parent for depth in ("", "*/", "*/*/") for p in root.glob(f"{depth}{RECIPE}")]
    alone = [p for p in found if ".tmp-" not in p.name and p.parent.name != MEMBERS]
    whole = [p for p in alone if (p / PROVENANCE).is_file()]
    return sorted(whole, key=lambda p: (p / RECIPE).stat().st_mtime, reverse=True)


def find(root: Path, digest: str, among: Sequence[Path] | None = None) -> Path | None:
    """The run of the recipe with this hash, whatever it is called; a finished one, if there is.

    among: the runs below `root`, where they have been listed already.
    """
    there = runs(root) if among is None else among
    found = [path for path in there if path.name.endswith(f"-{digest[:8]}")]
    same = [path for path in found if known(path).get("hash") == digest]
    return min(same, key=lambda path: not RunDir(path).finished, default=None)


def known(run: Path) -> dict[str, Any]:
    """What its provenance says; nothing, where that can't be read."""
    try:
        return RunDir(run).provenance()
    except RunError:
        return {}


# -------------------------------------------------------------------------------------- the run


class RunDir:
    """The folder of one run, which exists; `create` or `open` it."""

    def __init__(self, path: Path):
        self.path = path
        self.recipe = path / RECIPE
        self.tokenizer = path / "tokenizer.json"
        self.log = path / "log.txt"
        self.checkpoints = path / "checkpoints"

    @classmethod
    def create(
        cls,
        root: Path,
        recipe_name: str,
        options: Sequence[str],
        seed: int,
        digest: str,
        recipe_text: str,
        provenance: Mapping[str, Any],
    ) -> RunDir:
        """A new run's folder, whole or not at all. Raises RunError; overwrites nothing."""
        path = run_path(root, recipe_name, options, seed, digest)
        place = temporary(path)
        if os.path.lexists(path):
            raise RunError(_taken(path))
        with _reported(_in_the_way(path), "make the run's folder there", ELSEWHERE):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent, path.name)
            try:
                _furnish(place, recipe_text, provenance)
                _claim(place, path)
            except BaseException:
                _remove(place)
                raise
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """The run that is there. Raises RunError, naming runs nearby."""
        if not (isfile(path / RECIPE) and isfile(path / PROVENANCE)):
            raise RunError(f"{path}: there is no run here{_line(_nearby(path))}")
        return cls(path)

    @property
    def finished(self) -> bool:
        return isfile(self.path / SUMMARY)

    @property
    def last_step(self) -> int | None:
        """The step of the newest checkpoint, by its name; whether it is sound is not looked at."""
        names = (path.name for path in self.checkpoints.glob("step-*"))
        return max((int(n[5:]) for n in names if n[5:].isdecimal()), default=None)

    @property
    def members(self) -> list[RunDir]:
        """The runs that say captions together with this one; none, but in an ensemble.

        Raises RunError for a folder among them that is no run.
        """
        return [RunDir.open(path) for path in sorted((self.path / MEMBERS).glob("[!.]*"))]

    def recipe_text(self) -> str:
        """The resolved recipe. Raises RunError."""
        with _reported(self.recipe, "read the recipe"):
            return self.recipe.read_text(encoding="utf-8", errors="replace")

    def provenance(self) -> dict[str, Any]:
        """What was recorded when the run began. Raises RunError."""
        place = self.path / PROVENANCE
        with _reported(place, "read the provenance"):
            return _parse(place.read_bytes(), place)

    def append(self, file: str, record: Mapping[str, Any]) -> None:
        """Add a line to a JSONL file; it outlives a kill, not a power cut. Raises RunError."""
        place = self.path / file
        with _reported(place, "add a record"), place.open("ab+") as out:
            _drop_torn_line(out)
            out.write(line(record))

    def records(self, file: str) -> list[dict[str, Any]]:
        """The records of a JSONL file, less a torn last line. Raises RunError."""
        return [record for _, record in self._lines(file)]

    def rewind(self, step: int) -> None:
        """Forget the records after `step`, where the run goes on again. Raises RunError."""
        for file in (METRICS, SAMPLES):
            lines = self._lines(file)
            kept = [line for line, record in lines if record.get("step", 0) <= step]
            if len(kept) < len(lines):
                with _reported(self.path / file, "drop the records of lost steps"):
                    write_bytes(self.path / file, b"".join(line + b"\n" for line in kept))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, by which the run counts as finished. Raises RunError."""
        with _reported(self.path / SUMMARY, "write the summary"):
            write_json(self.path / SUMMARY, summary)

    def summary(self) -> dict[str, Any]:
        """What `finish` wrote (nan as None). Raises RunError."""
        place = self.path / SUMMARY
        with _reported(place, "read the summary"):
            return _parse(place.read_bytes(), place)

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Keep other processes out while this one works here. Raises RunError.

        wait: until another one that works here has ended, rather than raise.
        """
        place = self.path / ".lock"
        with _reported(place, "lock the run"):
            file = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take_lock(file, self.path, wait)
            sweep(self.path)
            yield
        finally:
            os.close(file)  # and with it the lock, as a kill does too

    def _lines(self, file: str) -> list[tuple[bytes, dict[str, Any]]]:
        place = self.path / file
        with _reported(place, "read the records"):
            text = place.read_bytes() if place.exists() else b""
        whole = text.split(b"\n")[:-1]  # what follows the last line's end is a torn line, or ""
        return [(s, _parse(s, place, f"line {n}")) for n, s in enumerate(whole, start=1)]


ELSEWHERE = "choose another folder with --runs DIR"


def _furnish(place: Path, recipe_text: str, provenance: Mapping[str, Any]) -> None:
    _remove(place)  # of a killed process that had this one's number: containers repeat them
    (place / "checkpoints").mkdir(parents=True)
    write_text(place / RECIPE, recipe_text)
    write_json(place / PROVENANCE, provenance)


def _claim(place: Path, path: Path) -> None:
    try:
        os.rename(place, path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise RunError(_taken(path)) from error  # another process was a moment earlier
        raise
    sync(path.parent)


def _taken(path: Path) -> str:
    """What is where a new run should go, and what can be done about it."""
    run = RunDir(path)
    if not isfile(run.recipe):
        return f"{path}: something that is no run is in the way{_line(f'move it, or {ELSEWHERE}')}"
    again = "run it again with another seed (--set seed=N) or in another folder (--runs DIR)"
    if run.finished:
        return f"{path}: this run has finished, and is not overwritten{_line(again)}"
    step = run.last_step
    reached = "without a checkpoint" if step is None else f"its last checkpoint is of step {step}"
    choice = f"go on with --resume, or {again}"
    return f"{path}: this run is there, unfinished, {reached}{_line(choice)}"


def _in_the_way(path: Path) -> Path:
    """The nearest thing that exists, if it is no folder, else the path itself."""
    there = next((p for p in (path, *path.parents) if os.path.lexists(p)), path)
    return there if os.path.lexists(there) and not isdir(there) else path


def _nearby(path: Path) -> str:
    """Which runs the writer of a wrong path may have meant."""
    if inside := next((p for p in path.parents if isfile(p / PROVENANCE)), None):
        return f"it is inside the run {inside}; give that"
    folder = next((p for p in (path, *path.parents) if isdir(p)), Path())
    found = dict.fromkeys([*runs(folder), *runs(folder / RUNS)])
    there = [str(run.relative_to(folder)) for run in found]
    if not there:
        return f"nor any in {folder}; a run prints its path when it starts and when it ends"
    return f"runs in {folder}: {', '.join(get_close_matches(path.name, there, n=6, cutoff=0.0))}"


def _drop_torn_line(file: BinaryIO) -> None:
    """Cut off what a killed process wrote of its last line."""
    size = file.seek(0, os.SEEK_END)
    tail, at = b"", size
    while at and b"\n" not in tail:
        at = max(0, at - 4096)
        file.seek(at)
        tail = file.read(size - at)
    end = at + tail.rfind(b"\n") + 1
    if end < size:
        file.truncate(end)


def _parse(text: bytes, place: Path, where: str = "") -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        record = error
    if not isinstance(record, dict):
        raise RunError(f"{place}{where and ', '}{where}: not a record in JSON: {text[:60]!r}")
    return record


def _take_lock(file: int, path: Path, wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        owner = os.pread(file, 20, 0).decode(errors="replace").strip()
        raise RunError(
            f"{path}: process {owner or 'unknown'} works in this run\n    wait for it, or stop it"
        ) from error
    except OSError as error:  # some cluster file systems have no locks: better to run than not
        log.warning("%s: can't lock the run: %s; start it only once", path, error.strerror)
    with _reported(path, "lock the run"):
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)


# --------------------------------------------------------------------------------- provenance


def provenance(
    argv: Sequence[str],
    seed: int,
    threads: int | None = None,
    plugins: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What is needed to repeat a run; the state of git is that of the current folder.

    threads: of the tensor library, since their number changes the last digits of a sum.
    plugins: name -> version.
    """
    return {
        "argv": list(argv),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": os.getcwd(),
        "git": git_state(),
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
        "plugins": dict(plugins or {}),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": threads,
    }


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """The version of each package, None where it is not installed; imports nothing."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state() -> dict[str, Any]:
    """The commit and what differs from it, or why there is none."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain")
        diff = _git("diff", "HEAD", "--no-ext-diff", "--no-textconv")
    except (OSError, subprocess.SubprocessError) as error:
        return {"commit": None, "reason": str(error)}
    return {"commit": commit.strip(), "changed": changed.splitlines(), "diff": diff}


def _git(*words: str) -> str:
    """The first DIFF_BYTES of what git prints. Raises OSError, SubprocessError."""
    # A repository may name programs for git to start (fsmonitor); a record should start none.
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *words]
    with TemporaryFile() as out:  # not memory: a diff may be larger
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=GIT_SECONDS)
        if done.returncode:
            complaint = done.stderr.decode(errors="replace").strip().partition("\n")[0]
            raise subprocess.SubprocessError(complaint or f"git {words[0]} failed")
        size = out.seek(0, os.SEEK_END)
        out.seek(0)
        text = out.read(DIFF_BYTES).decode(errors="replace")
    return text + (f"\n[cut: {size:,} bytes in all]\n" if size > DIFF_BYTES else "")
