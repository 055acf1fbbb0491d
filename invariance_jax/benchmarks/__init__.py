"""Benchmarks of the hot paths: `python -m invariance_jax.benchmarks NAME`.

`render` times the Spirograph renderer against one that broadcasts over
`[points, B, S, S]`, and its derivative against itself; `augment` times the views of
images against Pillow in worker processes; `penalty` times a training step with the
invariance penalty against one without; `restart` times the restart of a stopped run
with and without its compiled programs, and the wait for a checkpoint; `all` does
everything.
"""
