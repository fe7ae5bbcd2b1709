"""The contract that every component keeps, as checks that a plugin's author can run too.

    from cdlm.testing import conformance

    test_film = conformance("conditioning", "film")
    test_film_deep = conformance("conditioning", "film", layers=3)

Each line is a pytest test for every law of the kind, on the component as the registry gives it,
built small. A law is a function `check_KIND_LAW(component)` that raises AssertionError; call it
on a component of your own making where the registry's is not what you want to check:

    data      dataset, encoder, views, tokenizer, length, metric
    flow      process, objective
    process   embedding, schedule, noise, timesteps, target, variance, loss
    network   conditioning, denoiser, self_conditioning, guidance
    sampling  rounding, grid, sampler, constraint, selection
    studies   launcher
    whole     a tiny captioner around any component: it trains and it samples

`examples` holds the small inputs that they use (`DIMS` is what a component gets as `dims`);
`oracles` holds ideal denoisers in closed form.
`check_recipe` and `check_study` are for the files that come with a component.
A law that a component breaks by design is waived, with the reason:

    test_late = conformance("timesteps", "late", waive={"weigh_fairly": "it favours noise"})

Needs pytest.
"""

from __future__ import annotations

from cdlm.testing.conform import Law, build, check_recipe, check_study, conformance, laws

__all__ = ["Law", "build", "check_recipe", "check_study", "conformance", "laws"]
