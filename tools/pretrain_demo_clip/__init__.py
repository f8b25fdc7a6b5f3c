"""Pretraining of the toy CLIP on generated images and captions."""
