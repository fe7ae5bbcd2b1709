"""Runs the points of a study on a Ray cluster."""

import cdlm


@cdlm.hookimpl
def cdlm_register(registry):
    registry.add("launcher", "ray", "cdlm_ray.launcher:Ray")
