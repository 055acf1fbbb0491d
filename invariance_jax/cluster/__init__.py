"""Clusters: submission through submitit, requeue, and sweeps."""
