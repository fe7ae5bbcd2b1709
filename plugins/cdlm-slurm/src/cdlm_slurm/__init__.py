"""Runs the points of a study on a Slurm cluster."""

import cdlm


@cdlm.hookimpl
def cdlm_register(registry):
    registry.add("launcher", "slurm", "cdlm_slurm.launcher:Slurm")
