"""Image files: read, brought to size, drawn on; anomaly maps as files."""
