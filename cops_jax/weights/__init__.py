"""CLIP weights and trained prompts, in and out."""
