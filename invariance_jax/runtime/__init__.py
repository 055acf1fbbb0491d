"""The processes of a run: devices, launchers, signals, compiled programs, files."""
