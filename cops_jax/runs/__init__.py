"""The files of a run: record, checkpoints and metrics."""
