"""Pretraining of the demo's tiny CLIP on generated images and captions."""
