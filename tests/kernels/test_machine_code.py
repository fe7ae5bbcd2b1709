"""The machine code of the scan, for GPUs that need not be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "machine_code.py"


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """In a process of its own: Triton interprets or compiles, and decides when it is imported."""
    pytest.importorskip("triton", reason="Triton is for Linux on x86-64 and ARM")
    environment = {name: it for name, it in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-W", "ignore", SCRIPT, "16", "64", "128", "768"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_loop_is_lean_for_a100_h100_and_b200(costs: list[dict[str, float]]) -> None:
    """At most 5 instructions per score; on an A100 the product of 128 numbers alone takes 2.5."""
    assert {(it["arch"], it["width"]) for it in costs} >= {(80, 16), (90, 64), (100, 128)}
    for it in costs:
        if it["width"] <= 128:
            whole = it["instructions"] + it["product"]
            allowed = 5.5 if (it["arch"], it["width"]) == (80, 128) else 5
            assert whole <= allowed, it
            assert it["instructions"] <= 3.5, it


def test_nothing_spills(costs: list[dict[str, float]]) -> None:
    assert [it for it in costs if it["spills"]] == []


def test_the_tiles_fit_into_shared_memory(costs: list[dict[str, float]]) -> None:
    room = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
    assert [it for it in costs if it["shared"] > room[int(it["arch"])]] == []
