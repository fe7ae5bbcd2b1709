from cdlm.testing import conformance

test_film = conformance("conditioning", "film")
