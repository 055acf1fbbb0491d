"""Submission of runs to SLURM, or to processes of this machine."""
