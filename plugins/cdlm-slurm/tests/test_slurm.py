"""The launcher keeps every law of its kind, and runs a study, on submitit's local executor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cdlm_slurm.launcher import Slurm

from cdlm.errors import CdlmError
from cdlm.testing import conformance

test_slurm = conformance("launcher", "slurm", cluster="local")

STUDY = Path(__file__).parents[1] / "recipes" / "study.toml"
CDLM = [sys.executable, "-c", "from cdlm.cli import main; main()"]
TINY = ["train.steps=4", "dataset.train=8", "dataset.held_out=4", "study.seeds=[0]"]


def test_a_machine_without_slurm_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CdlmError, match="can't be handed in"):
        Slurm().start(["true"], tmp_path / "log.txt")


def test_what_a_job_asks_for_is_in_slurms_words(tmp_path, monkeypatch):
    """sbatch is a script here that keeps what it was handed."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/handed.sh\necho Submitted batch job 12\n')
    sbatch.chmod(0o755)
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    asked = Slurm(partition="long", minutes=90, cpus=3, gpus=1, memory=16.0)
    asked.start(["true"], tmp_path / "target-s0.txt")
    handed = (tmp_path / "handed.sh").read_text()
    for line in ("partition=long", "time=90", "cpus-per-task=3", "gpus-per-node=1", "mem=16GB"):
        assert f"#SBATCH --{line}\n" in handed
    assert "job-name=cdlm-target-s0" in handed


def test_a_study_runs_on_the_executor(tmp_path):
    sets = [word for it in TINY for word in ("--set", it)]
    words = ["study", str(STUDY), "--runs", str(tmp_path / "runs"), "--jobs", "2", *sets]
    launcher = ["--launcher", '{ use = "slurm", cluster = "local" }']
    done = subprocess.run([*CDLM, *words, *launcher], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads(next((tmp_path / "runs").glob("*/table.json")).read_text())
    assert ["failed" in run for row in table["rows"] for run in row["runs"]] == [False, False]
