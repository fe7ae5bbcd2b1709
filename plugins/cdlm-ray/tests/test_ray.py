"""The launcher keeps every law of its kind, and runs a study, on a Ray cluster of this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from cdlm_ray.launcher import Ray

from cdlm.errors import CdlmError
from cdlm.testing import conformance

test_ray = conformance("launcher", "ray", cpus=0.5)

STUDY = Path(__file__).parents[1] / "recipes" / "study.toml"
CDLM = [sys.executable, "-c", "from cdlm.cli import main; main()"]
TINY = ["train.steps=4", "dataset.train=8", "dataset.held_out=4", "study.seeds=[0]"]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One whose processes ignore SIGINT at first, like all that a script's `&` starts."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    signal.signal(signal.SIGINT, before)
    yield
    ray.shutdown()


def test_a_cluster_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", _refused)
    with pytest.raises(CdlmError, match=r"no cluster at 10\.1\.2\.3:6379: nobody there"):
        Ray(address="10.1.2.3:6379").start(["true"], Path("log.txt"))


def _refused(**_):
    raise ConnectionError("nobody there")


def test_a_study_runs_on_the_cluster(tmp_path):
    sets = [word for it in TINY for word in ("--set", it)]
    words = ["study", str(STUDY), "--runs", str(tmp_path / "runs"), "--jobs", "2", *sets]
    done = subprocess.run([*CDLM, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads(next((tmp_path / "runs").glob("*/table.json")).read_text())
    assert ["failed" in run for row in table["rows"] for run in row["runs"]] == [False, False]
