"""The process of a run: devices, launchers, signals, compiled programs, files."""
