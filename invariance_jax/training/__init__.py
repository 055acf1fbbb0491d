"""Training: the parts of a run, its draws, its pure step, and the map over devices."""
