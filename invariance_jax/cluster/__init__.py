"""Runs on clusters: start-up of many processes, submission, sweeps."""
