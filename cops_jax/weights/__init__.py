"""Reading and writing of backbones and trained prompts."""
