"""The command line, as a process or within this one, and two tiny runs to look at."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # for tests/kernels: Triton reads it when first imported

from cdlm import cli as command_line
from cdlm.captioner import Captioner
from cdlm.job import Job
from cdlm.recipe import load
from cdlm.run import begin, evaluate_run, train_run, write_down

CDLM = [sys.executable, "-c", "from cdlm.cli import main; main()"]
RECIPE = """
about        = "As small as it can be: features at random"
dataset      = {{ use = "shapes", train = 60, held_out = 12 }}
encoder      = {{ use = "features", path = "{features}" }}
tokenizer    = {{ use = "words" }}
length       = {{ use = "histogram" }}
embedding    = {{ use = "learned" }}
schedule     = {{ use = "cosine" }}
noise        = {{ use = "independent" }}
timesteps    = {{ use = "uniform" }}
target       = {{ use = "x0" }}
conditioning = [{{ use = "time_add" }}, {{ use = "extra_token" }}]
denoiser     = {{ use = "transformer", layers = 1, heads = 2, dropout = 0.1 }}
guidance     = {{ use = "scale", scale = 1.5, drop = 0.1 }}
self_conditioning = {{ use = "none" }}
variance     = {{ use = "fixed" }}
loss         = [{{ use = "mse" }}, {{ use = "rounding" }}]
rounding     = {{ use = "none" }}
grid         = {{ use = "uniform" }}
sampler      = {{ use = "ddpm", steps = 2 }}
constraint   = []
selection    = {{ use = "first" }}
metric       = [{{ use = "exact_match" }}, {{ use = "bleu" }}]

[model]
width = 8
hidden = 16
length = 20

[train]
steps = 160
batch = 8
warmup = 3
accumulate = 2
log_every = 2
checkpoint_every = 20
"""


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Finished:
    """A run that was trained and evaluated by `cdlm run`, and what that printed."""

    path: Path
    said: Said


Command = Callable[..., Said]


def environment(folder: Path) -> dict[str, str]:
    """One thread, and a cache of its own."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CDLM_CACHE": str(folder / "cache")}


def run_process(folder: Path, *argv: object) -> Said:
    done = subprocess.run(
        [*CDLM, *map(str, argv)],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """`cdlm ARGUMENTS` as a process of its own, in the test's folder."""
    return lambda *argv: run_process(tmp_path, *argv)


@pytest.fixture
def cdlm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """`cdlm ARGUMENTS` within this process: torch is here already."""
    monkeypatch.setenv("CDLM_CACHE", str(tmp_path / "cache"))
    root, threads = logging.getLogger(), torch.get_num_threads()
    before = root.handlers[:]

    def run(*argv: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["cdlm", *map(str, argv)])
        root.handlers[:] = before
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            command_line.main()
        assert isinstance(end.value.code, int)
        return Said(end.value.code, *capsys.readouterr())

    yield run
    root.handlers[:] = before
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that trains in a second, on ready features drawn at random."""
    folder = tmp_path_factory.mktemp("recipe")
    sizes = {"train": 60, "val": 12, "test": 12}
    ids = [f"{split}-{i:06d}" for split, size in sizes.items() for i in range(size)]
    features = torch.randn(len(ids), 8, generator=torch.Generator().manual_seed(0))
    place = folder / "features.safetensors"
    save_file({"features": features}, place, metadata={"image_ids": json.dumps(ids)})
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE.format(features=place))
    return recipe


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> Finished:
    """The tiny recipe's run, never disturbed. Not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    said = run_process(folder, "run", tiny_recipe, "--runs", folder / "runs", "--threads", 1)
    assert said.code == 0, said.err
    return Finished(next((folder / "runs").glob("*/*")), said)


@pytest.fixture(scope="session")
def seeing_run(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> Path:
    """A run whose encoder, the one that ships with cdlm, sees pictures. Not to be changed."""
    encoder = 'encoder={ use = "open_clip", model = "cdlm:shapes_clip" }'
    small = ["train.steps=2", "dataset.train=8", "dataset.held_out=4"]
    folder = tmp_path_factory.mktemp("seeing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDLM_CACHE", str(folder / "cache"))
        path = begin(load(tiny_recipe, [encoder, *small]), folder / "runs", False, [])
        job = Job.open(path, "cpu")
        train_run(job)
        write_down(job, evaluate_run(job))
    return path.path


@pytest.fixture(scope="session")
def captioner(seeing_run: Path) -> Captioner:
    return Captioner.load(seeing_run, "cpu")
