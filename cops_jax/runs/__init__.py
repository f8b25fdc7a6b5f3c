"""The files of a run: its record, checkpoints and metrics."""
