"""Sweeps: sets of runs that differ in a few keys, their plan and their results."""
