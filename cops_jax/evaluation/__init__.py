"""Evaluation: scores, anomaly maps and metrics of whole data sets."""
