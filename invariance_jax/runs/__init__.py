"""Files of a run: its work directory, checkpoints, metrics and results."""
