"""What of this machine and this installation works, and how to mend what does not."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from cdlm.places import cache_dir
from cdlm.rundir import versions

PYTHON = (3, 11)  # the oldest that cdlm supports
TORCH = (2, 8)  # the oldest that pyproject.toml allows
REQUIRED = (
    "torch",
    "torchvision",
    "transformers",
    "open_clip_torch",
    "safetensors",
    "tokenizers",
    "pycocoevalcap",
    "numpy",
    "matplotlib",
    "pillow",
    "pluggy",
    "typer",
    "rich",
)
LOW_DISK, FULL_DISK = 2 * 2**30, 200 * 2**20  # bytes: a few runs; the checkpoints of one small run
PROBE_SECONDS = 180.0  # the first import of torch from a cold network disk takes a minute

ORDINARY = "pip install --force-reinstall torch torchvision"
CPU_ONLY = f"{ORDINARY} --index-url https://download.pytorch.org/whl/cpu"
MEND_PAIR = (
    f"install both anew, from one place: {ORDINARY}\n"
    f"(it works without a GPU too; the smaller CPU-only pair: {CPU_ONLY})"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `mend` says what to do about a warn or a bad."""

    name: str
    status: Literal["ok", "warn", "bad"]
    text: str
    mend: str = ""


def examine(failed_plugins: Mapping[str, str] | None = None) -> list[Finding]:
    """Look at everything; takes some seconds. failed_plugins: name -> what went wrong."""
    probe = _probe()
    return [
        _python(),
        *_packages(),
        _pair(probe),
        *_devices(probe),
        _triton(probe),
        _java(),
        _disk("disk here", Path.cwd()),
        _disk("disk of the feature cache", cache_dir()),
        _cache(cache_dir()),
        *(_plugin(name, reason) for name, reason in (failed_plugins or {}).items()),
    ]


# --------------------------------------------------------------- errors that other commands meet

_BROKEN_PAIR = (
    "torch and torchvision do not fit together: one is built for CUDA and the other for the CPU "
    "only, or their versions do not belong to each other"
)
_KNOWN: tuple[tuple[str, str, str], ...] = (  # (pattern of the message, what it means, mend)
    (r"operator torchvision::\w+ does not exist", _BROKEN_PAIR, MEND_PAIR),
    (r"[Nn]o such operator torchvision::", _BROKEN_PAIR, MEND_PAIR),
    (r"Couldn't load custom C\+\+ ops", _BROKEN_PAIR, MEND_PAIR),
    (r"compiled with different CUDA", _BROKEN_PAIR, MEND_PAIR),
    (r"partially initialized module 'torchvision'", _BROKEN_PAIR, MEND_PAIR),
    (r"torchvision.*undefined symbol|undefined symbol.*torchvision", _BROKEN_PAIR, MEND_PAIR),
    (
        r"undefined symbol: \w*(nccl|Nccl|cu[A-Z]|cublas|cudnn|nvJitLink)",
        "torch finds CUDA libraries of another version than its own",
        f"look for a second copy in LD_LIBRARY_PATH or `pip list | grep nvidia`, then: {ORDINARY}",
    ),
    (
        r"lib(cu\w+|nccl|nvrtc|nvJitLink|torch\w*|c10\w*)\.so[.\d]*: cannot open shared object",
        "torch, or a package that builds on it, misses one of its libraries",
        MEND_PAIR,
    ),
    (
        r"compiled using NumPy 1\.x|multiarray failed to import|numpy\.dtype size changed",
        "a package was built for another version of numpy than the one installed",
        "pip install --upgrade --force-reinstall numpy torch torchvision",
    ),
)
_MISSING = {"open_clip": "open_clip_torch", "PIL": "pillow"}  # module -> package, where they differ


def explain_import_error(error: BaseException) -> str | None:
    """What an import that failed means and how to mend it; None if it is not recognised.

    Looks through the chain of causes: transformers and open_clip wrap what torchvision said.
    """
    for link in _chain(error):
        if explained := _explain(str(link)):
            return explained
        if isinstance(link, ModuleNotFoundError) and link.name:
            module = link.name.partition(".")[0]
            package = _MISSING.get(module, module)
            if package in REQUIRED:
                return f"{package} is not installed\n    pip install {package}"
    return None


def _explain(message: str) -> str | None:
    for pattern, meaning, mend in _KNOWN:
        if found := re.search(pattern, message):
            return f"{meaning} ({found[0]!r})\n    " + mend.replace("\n", "\n    ")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


# ------------------------------------------------------------------- torch, in a process of its own

# Prints a line of JSON after each stage, so that what a crash interrupts is known by what is there.
_PROBE = """
import json
def tell(**facts): print(json.dumps(facts), flush=True)
try:
    import torch
    tell(torch=torch.__version__, cuda=torch.version.cuda, threads=torch.get_num_threads())
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(i) for i in range(count)]
    tell(gpus=[[gpu.name, gpu.total_memory] for gpu in gpus])
    import torchvision.ops
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    tell(pair=True)
except BaseException as error:
    tell(error=f"{type(error).__name__}: {error}")
"""


def _probe() -> dict[str, Any]:
    """What torch says of itself: torch, cuda, threads, gpus, pair; error where it stopped."""
    # -P: like the cdlm command, do not import what lies in the current folder.
    command = [sys.executable, "-P", "-c", _PROBE]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    facts: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith(b"{"):
            facts |= json.loads(line)
    if "pair" not in facts and "error" not in facts:
        facts["error"] = f"the process ended with {done.returncode} ({_last_line(done.stderr)})"
    return facts


def _last_line(text: bytes) -> str:
    return text.decode(errors="replace").strip().rpartition("\n")[2] or "no message"


def _pair(probe: Mapping[str, Any]) -> Finding:
    name = "torch + torchvision"
    torch, vision = _built("torch"), _built("torchvision")
    said = f"torch {torch}, torchvision {vision}"
    if not torch or not vision:
        return Finding(name, "bad", "not both are installed", f"pip install {_absent(torch)}")
    if "error" in probe:
        known = _explain(probe["error"])
        cause = known.partition("\n")[0] if known else probe["error"]
        return Finding(name, "bad", f"{said}: {cause}", _mend(known))
    if _cpu_only(torch) != _cpu_only(vision):
        return Finding(name, "warn", f"{said}: one is for the CPU only", MEND_PAIR)
    if _numbers(torch) < TORCH:
        oldest = ".".join(map(str, TORCH))
        upgrade = "pip install --upgrade torch torchvision"
        return Finding(name, "warn", f"{said}: cdlm is tested with torch >= {oldest}", upgrade)
    return Finding(name, "ok", f"{said}: they work together")


def _built(package: str) -> str | None:
    """The version that a package was built as, such as 2.15.0+cpu, read without importing it.

    The index leaves out the part after the plus, and importing is what may fail.
    """
    spec = find_spec(package)
    if not spec or not spec.origin:
        return None
    place = Path(spec.origin).with_name("version.py")
    text = place.read_text(errors="replace") if place.is_file() else ""
    found = re.search(r"^__version__\s*(?::\s*\w+\s*)?=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return found[1] if found else versions([package])[package] or "unknown"


def _absent(torch: str | None) -> str:
    return "torchvision" if torch else "torch torchvision"


def _mend(known: str | None) -> str:
    lines = known.splitlines()[1:] if known else MEND_PAIR.splitlines()
    return "\n".join(line.strip() for line in lines)


def _cpu_only(version: str) -> bool:
    return version.endswith("+cpu")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _devices(probe: Mapping[str, Any]) -> list[Finding]:
    gpus = [f"{name}, {memory / 2**30:.0f} GiB" for name, memory in probe.get("gpus", [])]
    if gpus:
        return [Finding(f"cuda:{i}", "ok", text) for i, text in enumerate(gpus)]
    threads = f"{os.cpu_count()} cores, torch uses {probe.get('threads', '?')} threads"
    if "torch" in probe and shutil.which("nvidia-smi"):
        why = "is built for the CPU only" if not probe["cuda"] else "can't use the driver"
        text = f"torch {why}, though there is an NVIDIA driver; {threads}"
        mend = ORDINARY if not probe["cuda"] else "see what nvidia-smi says; update the driver"
        return [Finding("device", "warn", text, mend)]
    return [Finding("device", "ok", f"cpu: {threads}")]


def _triton(probe: Mapping[str, Any]) -> Finding:
    found = versions(["triton"])["triton"]
    if found:
        return Finding("triton", "ok", found)
    if probe.get("gpus"):
        slow = "not installed: the kernels run as plain torch, more slowly"
        return Finding("triton", "warn", slow, "pip install triton")
    return Finding("triton", "ok", "not installed, and not needed without a GPU")


# --------------------------------------------------------------------------------------- the rest


def _python() -> Finding:
    text = f"{platform.python_version()} on {platform.platform()}"
    if sys.version_info >= PYTHON:
        return Finding("Python", "ok", text)
    oldest = ".".join(map(str, PYTHON))
    return Finding("Python", "bad", text, f"cdlm needs Python {oldest} or newer")


def _packages() -> list[Finding]:
    found = versions(["cdlm", *REQUIRED])
    return [_package(name, version) for name, version in found.items()]


def _package(name: str, version: str | None) -> Finding:
    if version:
        return Finding(name, "ok", version)
    if name == "cdlm":
        return Finding(name, "warn", "runs from its source, not installed", "pip install -e .")
    return Finding(name, "bad", "not installed", f"pip install {name}")


def _java() -> Finding:
    """Java runs coco-caption's tokenizer, METEOR and SPICE, and nothing else."""
    without = "only coco-caption's PTB tokenizer (cdlm has its own), METEOR and SPICE need it"
    try:
        done = subprocess.run(["java", "-version"], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return Finding(
            "Java", "warn", f"not found; {without}", "install a Java runtime, 8 or newer"
        )
    first = done.stderr.decode(errors="replace").strip().partition("\n")[0]
    if done.returncode:  # macOS has a java that only says where to get one
        text = f"does not start ({first}); {without}"
        return Finding("Java", "warn", text, "install a Java runtime, 8 or newer")
    return Finding("Java", "ok", first)


def _disk(name: str, place: Path) -> Finding:
    there = _existing(place)
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(name, "bad", f"{there}: {error.strerror}", "choose another folder")
    text = f"{_size(free)} free at {there}"
    if free >= LOW_DISK:
        return Finding(name, "ok", text)
    status: Literal["warn", "bad"] = "warn" if free >= FULL_DISK else "bad"
    return Finding(name, status, text, "make room, or choose another disk (--runs, CDLM_CACHE)")


def _cache(place: Path) -> Finding:
    name, elsewhere = "feature cache", "set CDLM_CACHE to a folder that can be written"
    there = _existing(place)
    if not os.path.isdir(there):
        return Finding(name, "bad", f"{place}: {there} is not a folder", elsewhere)
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(name, "bad", f"{place}: {there} can't be written", elsewhere)
    if there != place:
        return Finding(name, "ok", f"{place}: empty so far")
    return Finding(name, "ok", f"{place}: {_size(_bytes_in(place))}")


def _existing(place: Path) -> Path:
    """The place itself, or the nearest folder above it that is there."""
    return next((p for p in (place, *place.parents) if os.path.lexists(p)), place)


def _bytes_in(folder: Path) -> int:
    sizes = 0
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            sizes += os.lstat(path).st_size if os.path.lexists(path) else 0
    return sizes


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _plugin(name: str, reason: str) -> Finding:
    mend = "upgrade or uninstall it; all other components work without it (see cdlm plugins)"
    return Finding(f"plugin {name}", "warn", reason, mend)
