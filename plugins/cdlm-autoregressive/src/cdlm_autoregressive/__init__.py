"""The plugin: which components there are, and where. Nothing is imported until it is used."""

import cdlm


@cdlm.hookimpl
def cdlm_register(registry):
    registry.add("process", "autoregressive", "cdlm_autoregressive.process:Autoregressive")
    registry.add("denoiser", "causal", "cdlm_autoregressive.causal:Causal")
