"""Submission of runs to SLURM, or to several processes on this machine."""
