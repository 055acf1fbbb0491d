"""What a run keeps: its work directory, checkpoints, metrics, results."""
