"""What a run keeps: its record, checkpoints and metrics."""
