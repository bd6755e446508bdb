"""Programs that break runs on purpose and count what comes of it; the suite runs a few of each, `make test-long` all.

A kind is a module with `INJECTED`, a sentence of what is done to a run, `COUNT`, how many `make test-long` does, and
`run(count, seed, folder) -> Tally`. The same seed breaks the same things.
"""
