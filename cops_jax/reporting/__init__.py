"""Results as tables, files, reports and a model card."""
