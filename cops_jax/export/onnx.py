"""A whole detector as one ONNX file, exported with jax2onnx."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from cops_jax.backbones.features import join_params
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError, needs_extra, shorten
from cops_jax.evaluation.step import detect_anomalies
from cops_jax.files import to_json, write_file
from cops_jax.paths import AnyPath
from cops_jax.weights.model import build_model

_OUTPUTS = ("image_score", "anomaly_map")
_PACKAGES = ("jax2onnx", "onnx_ir", "onnxruntime")
_TOLERANCE = 1e-3
# A protocol buffer has at most 2 GiB, and the graph needs a part of them.
_MAX_BYTES = 2**31 - 2**20


def write_onnx(
  detector: AnomalyDetector, path: AnyPath, metadata: Mapping[str, Any]
) -> None:
  """Writes a detector as one ONNX file.

  The input is images, uint8 (batch, h, w, 3). Outputs are image_score (batch,)
  and anomaly_map (batch, h, w), float32 in [0, 1]. The backbone computes in
  float32 for any config.backbone.dtype, because few runtimes support bfloat16.

  Values of the metadata are written as JSON.

  Raises:
    InputError: if jax2onnx is missing, the weights are too large for one file,
      the results of ONNX Runtime differ from JAX's, or the file cannot be
      written.
  """
  config = detector.config.copy_and_resolve_references()
  config.backbone.dtype, config.backbone.attention = "float32", "xla"
  model = build_model(config, detector.backbone)
  params = jax.device_get((detector.trainable, detector.backbone.params))
  variables = join_params(*jax.tree.map(jnp.asarray, params))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
  if size > _MAX_BYTES:
    raise InputError(
      f"the weights have {size / 1e9:.1f} GB, but an ONNX file holds at most"
      f" {_MAX_BYTES / 1e9:.1f} GB: export a .cops file instead"
    )

  def detect(images):
    outputs = detect_anomalies(model, variables, {"image": images})
    return tuple(outputs[name] for name in _OUTPUTS)

  content = _convert(detect, detector.image_size, metadata)
  _check(content, detect, detector.image_size)
  write_file(path, content)


def import_packages() -> None:
  """Raises InputError if a package of the extra [onnx] is missing."""
  # ONNX Runtime would send usage data and leave a file in the temporary folder.
  os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
  with needs_extra("an ONNX file", "onnx", *_PACKAGES):
    for name in _PACKAGES:
      importlib.import_module(name)


def _convert(function, side, metadata):
  import_packages()
  import onnx_ir
  from jax2onnx import to_onnx
  from onnx_ir.passes.common import RemoveUnusedNodesPass

  # onnx_ir warns about types of the graph's inner values, which nothing needs.
  logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)
  (batch,) = jax.export.symbolic_shape("batch")
  with warnings.catch_warnings():
    # jax2onnx requests float64 and gets float32, with a warning.
    warnings.simplefilter("ignore")
    graph = to_onnx(
      function,
      [jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8)],
      model_name="cops",
      return_mode="ir",
      input_names=["images"],
      output_names=list(_OUTPUTS),
    )
  RemoveUnusedNodesPass()(graph)
  graph.metadata_props.update(
    {name: to_json(value) for name, value in metadata.items()}
  )
  return onnx_ir.to_proto(graph).SerializeToString()


def _check(content, function, side):
  """Raises InputError unless ONNX Runtime computes the same results as JAX.

  jax2onnx translates each operation separately, and some translations are
  wrong.
  """
  import onnxruntime

  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, side, side, 3), np.uint8)
  with jax.default_matmul_precision("highest"):
    want = jax.device_get(jax.jit(function)(images))
  try:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # It also raises the errors that it logs.
    session = onnxruntime.InferenceSession(content, options)
    got = session.run(_OUTPUTS, {"images": images})
  except Exception as error:  # ONNX Runtime's errors are not documented.
    raise InputError(
      "jax2onnx cannot write a valid ONNX file for this run's config"
      f" ({shorten(error)}): export a .cops file instead"
    ) from error
  for name, array, expected in zip(_OUTPUTS, got, want, strict=True):
    difference = np.abs(array - expected).max()
    if not difference <= _TOLERANCE:
      raise InputError(
        "jax2onnx writes a wrong ONNX file for this run's config: its"
        f" {name} is off by {difference:.2g}. Export a .cops file instead."
      )
