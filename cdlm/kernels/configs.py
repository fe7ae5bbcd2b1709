"""Tiles for each width, number of rows and device: a table to start from, and what timing found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch

from cdlm.places import cache_dir

FEW, SOME = 4096, 32768  # rows: what is best differs between few, some and many


@dataclass(frozen=True)
class Config:
    """How the scan is cut up: a tile's rows and words, its block of the width, the pipeline.

    `across` is how many warps stand side by side over a tile's words, in the layout that Triton
    gives to a product of this size on this architecture.
    """

    block_m: int = 128
    block_n: int = 128
    block_e: int = 64
    warps: int = 8
    stages: int = 3
    across: int = 1


def config_for(width: int, rows: int, device: torch.device) -> Config:
    """The tiles for a padded width: those that `tune` found on this device, else the default."""
    return _tuned(device).get(_key(width, rows), default(width, architecture(device)))


def default(width: int, arch: int) -> Config:
    """The tiles with the fewest instructions per score that spill no register (compiled, counted).

    Registers hold a tile's scores, shared memory so many stages of its words.
    """
    stages = 2 if width == 128 else 3
    block_e = width if width <= 128 else 64
    if arch < 90:
        return Config(256 if width == 128 else 128, 128, block_e, stages=stages, across=4)
    return Config(128, 256 if arch < 100 else 128, block_e, stages=stages)


def choices(width: int, arch: int) -> Iterator[Config]:
    """The tiles that are worth timing for a padded width."""
    blocks = {width, 64} if 64 < width <= 256 else {min(width, 64)}
    sizes = ((64, 128, 4), (128, 64, 4), (128, 128, 4), (128, 128, 8), (128, 256, 8), (256, 128, 8))
    for block_e, (block_m, block_n, warps), stages in product(sorted(blocks), sizes, (2, 3, 4)):
        across = warps // 2 if arch < 90 else 1
        yield Config(block_m, block_n, block_e, warps, stages, across)


def tune(width: int, rows: int, device: torch.device, seconds: Callable[[Config], float]) -> Config:
    """The quickest of the choices by `seconds`, remembered on disk for this kind of device.

    A choice that the device has no room for raises, and is passed over.
    """
    timed = {}
    for config in choices(width, architecture(device)):
        try:
            timed[config] = seconds(config)
        except (RuntimeError, torch.OutOfMemoryError):  # triton's errors of resources among them
            continue
    best = min(timed, key=timed.__getitem__)
    found = _tuned(device) | {_key(width, rows): best}
    path = _file(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: asdict(it) for key, it in found.items()}, indent=1) + "\n")
    _tuned.cache_clear()
    return best


def architecture(device: torch.device) -> int:
    """Such as 90 for a compute capability of 9.0; that of an H100 where there is no GPU."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def processors(device: torch.device) -> int:
    """Of the device; a CPU, where kernels only run to be tested, passes for one of four."""
    if device.type != "cuda":
        return 4
    return _processors(device.index or 0)


@cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


@cache
def _tuned(device: torch.device) -> dict[str, Config]:
    path = _file(device)
    if not path.exists():
        return {}
    return {key: Config(**it) for key, it in json.loads(path.read_text()).items()}


def _file(device: torch.device) -> Path:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return cache_dir() / "kernels" / f"{name.replace(' ', '-')}.json"


def _key(width: int, rows: int) -> str:
    return f"{width}/{'few' if rows <= FEW else 'some' if rows <= SOME else 'many'}"
