"""Zero-shot evaluation: scores and maps of whole data sets."""
