"""What only looks answers at once: nothing heavy is imported for it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "open_clip", "torchvision", "numpy", "PIL", "tokenizers", "rich")
PROBE = f"""
import sys
from cdlm.cli import main
try:
    main()
finally:
    print("heavy:", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""


def imported(*argv: object) -> list[str]:
    """The heavy modules that `cdlm ARGUMENTS` imports. Prints the time it takes."""
    began = time.perf_counter()
    command = [sys.executable, "-c", PROBE, *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True)
    print(f"cdlm {' '.join(map(str, argv))}: {time.perf_counter() - began:.3f} s")
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1].removeprefix("heavy:").split()


@pytest.mark.parametrize(
    "argv",
    [
        ("--help",),
        ("--version",),
        ("run", "--help"),
        ("list",),
        ("list", "schedule"),
        ("show", "schedule"),
        ("show", "schedule", "cosine"),
        ("show", "denoiser", "distilbert"),
        ("plugins",),
        ("lst",),
        ("check", "nowhere.toml"),
        ("run", "nowhere.toml"),
    ],
    ids=" ".join,
)
def test_looking_imports_nothing_heavy(argv: tuple[str, ...]) -> None:
    assert imported(*argv) == []


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_recipe_is_checked_and_shown_without_anything_heavy(
    command: str, tiny_recipe: Path
) -> None:
    assert imported(command, tiny_recipe) == []


def test_a_mistake_is_found_before_anything_heavy_is_imported(tiny_recipe: Path) -> None:
    assert imported("run", tiny_recipe, "--set", "train.stepz=5") == []


def test_the_probe_sees_torch_where_it_is_imported() -> None:
    assert "torch" in imported("eval", "nowhere")
