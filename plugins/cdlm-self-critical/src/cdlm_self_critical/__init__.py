"""The plugin: which component there is, and where. Nothing is imported until it is used."""

import cdlm


@cdlm.hookimpl
def cdlm_register(registry):
    registry.add("objective", "self_critical", "cdlm_self_critical.objective:SelfCritical")
