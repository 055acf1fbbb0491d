"""Benchmarks of the hot paths: `python -m invariance_jax.benchmarks NAME`.

`render` times the Spirograph renderer against one that broadcasts over
`[points, B, S, S]`, and its derivative; `augment` the views of images against Pillow in
worker processes; `step` training steps against PyTorch's; `penalty` a step with the
invariance penalty, in its forms, against one without; `loss` NT-Xent at once, in blocks
and in PyTorch; `evaluate` probes and averaged features against their usual forms;
`scaling` the devices of one machine, with a projection to many; `restart` the restart
of a stopped run with and without its compiled programs, and the wait for a checkpoint;
`gpu` steps on a GPU. `all` is everything but `gpu`.
"""
