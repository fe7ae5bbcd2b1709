"""The plugin: its component and its command. Nothing is imported until it is used."""

import cdlm


@cdlm.hookimpl
def cdlm_register(registry):
    registry.add("encoder", "litert", "cdlm_litert.encoder:LiteRt")


@cdlm.hookimpl
def cdlm_commands(app):
    from cdlm_litert.command import fit_projection

    app.command()(fit_projection)
