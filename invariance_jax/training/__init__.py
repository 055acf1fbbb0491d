"""Training: settings, draws, the pure step, and what runs and records it."""
