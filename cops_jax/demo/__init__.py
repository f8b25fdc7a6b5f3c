"""A web page that finds anomalies in uploaded images."""

from __future__ import annotations

import pathlib

from cops_jax.detector import AnomalyDetector

_PROMPTS = pathlib.Path(__file__).parent / "prompts"


def load_detector() -> AnomalyDetector:
  """Returns the detector with the embedded prompts and the toy CLIP."""
  return AnomalyDetector.from_pretrained(_PROMPTS)
