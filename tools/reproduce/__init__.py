"""The papers' table in one command: `python -m tools.reproduce`."""
