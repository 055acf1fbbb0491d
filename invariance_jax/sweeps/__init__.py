"""Sweeps: runs that differ in a few keys, planned, made and collected."""
