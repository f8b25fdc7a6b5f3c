"""A web page that finds anomalies in the images dropped on it."""

from __future__ import annotations

import pathlib

from cops_jax import thresholds
from cops_jax.detector import AnomalyDetector
from cops_jax.weights.clip import DEMO_CLIP

_PROMPTS = pathlib.Path(__file__).parent / "prompts"


def load_detector() -> AnomalyDetector:
  """Returns the detector of the embedded prompts, on the toy CLIP."""
  return AnomalyDetector.from_files(
    DEMO_CLIP,
    _PROMPTS / "prompts.safetensors",
    thresholds=thresholds.read_thresholds(_PROMPTS),
  )
