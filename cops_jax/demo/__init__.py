"""A web page that finds anomalies in the images dropped on it."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from cops_jax import thresholds
from cops_jax.detector import AnomalyDetector
from cops_jax.weights.clip import DEMO_CLIP

if TYPE_CHECKING:  # The extra's.
  import uvicorn
  from starlette.types import ASGIApp

_PROMPTS = pathlib.Path(__file__).parent / "prompts"


def load_detector() -> AnomalyDetector:
  """The embedded default's detector."""
  return AnomalyDetector.from_files(
    DEMO_CLIP,
    _PROMPTS / "prompts.safetensors",
    thresholds=thresholds.read_thresholds(_PROMPTS),
  )


def make_server(app: ASGIApp) -> uvicorn.Server:
  """A server of an ASGI app, for its `run`."""
  import uvicorn

  config = uvicorn.Config(
    app,
    lifespan="off",
    log_level="warning",
    timeout_graceful_shutdown=5,
    ws="none",
  )
  return uvicorn.Server(config)
