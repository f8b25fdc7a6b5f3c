"""Results as tables, files, a page and a model card."""
