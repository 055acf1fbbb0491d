"""Benchmarks of the hot paths: `python -m invariance_jax.benchmarks NAME`."""
