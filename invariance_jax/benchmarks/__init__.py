"""Benchmarks of the hot paths: `python -m invariance_jax.benchmarks NAME`.

README.md in this folder lists them, with the command and the numbers of each.
"""
