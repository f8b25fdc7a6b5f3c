"""A whole detector as one file, by jax.export.

A .cops file is a zip archive: `function-cpu`, `function-cuda` and
`function-tpu`, what jax.export makes for each of the way from images to scores
and maps, for any number of images of one size; `weights.safetensors`;
`metadata.json`. `load` runs it.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.traverse_util
import jax
import jaxlib
import numpy as np
import safetensors.numpy
from jax import export as jax_export

from cops_jax import __version__
from cops_jax.errors import InputError, shorten
from cops_jax.files import fetch, whole_file
from cops_jax.paths import is_address, to_path
from cops_jax.runtime.mesh import make_mesh
from cops_jax.typing import Array, Float

if TYPE_CHECKING:  # Reading a file needs none of the model's code.
  from cops_jax.detector import AnomalyDetector

PLATFORMS = ("cpu", "cuda", "tpu")
_FORMAT = 2
# What JAX promises; it counts from when jaxlib was built, which no installed
# file says, so there is no date to write down.
_READABLE_BY = "jaxlib up to six months newer than {}"
_FUNCTION, _WEIGHTS, _METADATA = (
  "function",
  "weights.safetensors",
  "metadata.json",
)


def export(
  detector: AnomalyDetector,
  out: str | os.PathLike,
  *,
  today: datetime.date | None = None,
) -> dict[str, Any]:
  """Writes a detector as one file.

  Args:
    detector: what to write.
    out: the file; one named .onnx is as `onnx.write_onnx` says.
    today: the date to stamp it with, for tests.

  Returns:
    The metadata that the file holds.

  Raises:
    InputError: it cannot be written.
  """
  out = to_path(out)
  if not is_address(out) and out.is_dir():
    raise InputError(f"{out} is a folder: name a file, such as model.cops")
  today = today or datetime.date.today()
  # The file's function sees whole images.
  config, thresholds = detector.config, detector.thresholds_for("")
  metadata = {
    "cops_jax": __version__,
    "method": config.method,
    "jax": jax.__version__,
    "jaxlib": jaxlib.__version__,
    "image_size_pixels": detector.image_size,
    "exported_on": today.isoformat(),
    "clip_sha256": detector.clip.sha256,
    "thresholds": thresholds and dataclasses.asdict(thresholds),
  }
  if out.suffix.lower() == ".onnx":
    from cops_jax.export.onnx import write_onnx

    write_onnx(detector, out, metadata)
    return metadata
  from cops_jax.clip.attention import cuda_implementation

  functions, weights = _trace(detector)
  metadata |= {
    "format": _FORMAT,
    "platforms": list(PLATFORMS),
    "cuda_attention": cuda_implementation(
      config.clip.attention, config.clip.dtype
    ),
    "readable_by": _READABLE_BY.format(jaxlib.__version__),
    **{
      f"{name}_sha256": hashlib.sha256(function).hexdigest()
      for name, function in functions.items()
    },
    "weights_sha256": hashlib.sha256(weights).hexdigest(),
  }
  with whole_file(out) as partial, zipfile.ZipFile(partial, "w") as archive:
    archive.writestr(_METADATA, json.dumps(metadata, indent=2) + "\n")
    for name, function in functions.items():
      archive.writestr(name, function)
    archive.writestr(_WEIGHTS, weights)
  return metadata


def _trace(detector):
  """The functions by their names, and the weights, as bytes."""
  from cops_jax.evaluation.step import make_predict_step
  from cops_jax.weights import build_model

  config, clip = detector.config, detector.clip
  mesh = make_mesh(jax.devices()[:1])
  predict = make_predict_step(build_model(config, clip), mesh)

  @jax.jit
  def step(trainable, clip_params, images):
    return predict(trainable, clip_params, {"image": images})

  (batch,) = jax_export.symbolic_shape("batch")
  side = detector.image_size
  params = jax.device_get((detector.trainable, clip.params))
  arguments = (
    *jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params
    ),
    jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8),
  )
  # Each on its own: the TPU's kernels cannot be lowered beside others'.
  functions = {
    _function_name(platform): bytes(
      jax_export.export(step, platforms=[platform])(*arguments).serialize()
    )
    for platform in PLATFORMS
  }
  trees = dict(zip(("trainable", "clip"), params, strict=True))
  weights = safetensors.numpy.save(
    {
      name: np.asarray(array, order="C")
      for name, array in flax.traverse_util.flatten_dict(trees, sep="/").items()
    }
  )
  return functions, weights


def _function_name(platform):
  return f"{_FUNCTION}-{platform}"


class ExportedDetector:
  """A detector from a file: from images to scores and maps.

  Attributes:
    metadata: the file's: versions, hashes, image size, thresholds.
  """

  def __init__(
    self,
    metadata: Mapping[str, Any],
    exported: jax_export.Exported,
    params: Any,
  ):
    self.metadata = metadata
    self._params = jax.device_put(params)
    self._call = jax.jit(exported.call)

  def __call__(self, images: np.ndarray) -> dict[str, Float[Array, "..."]]:
    """Scores images of the side that the metadata say.

    Args:
      images: uint8 RGB (b, h, w, 3); compiled again for each number of them.

    Returns:
      image_score (b,) and anomaly_map (b, h, w), float32 in [0, 1].

    Raises:
      InputError: they have another type or size.
    """
    images = np.asarray(images)
    side = self.metadata["image_size_pixels"]
    if (
      images.dtype != np.uint8
      or images.shape[1:] != (side, side, 3)
      or not len(images)
    ):
      raise InputError(
        f"images are {images.dtype} {images.shape}; expected uint8 (batch,"
        f" {side}, {side}, 3), at least one"
      )
    return self._call(*self._params, images)


def _platform(path, metadata):
  """What JAX computes on here, in the file's words."""
  backend = jax.default_backend()
  platform = "cuda" if backend == "gpu" else backend
  if platform not in metadata["platforms"]:
    raise InputError(
      f"{path} was made for {', '.join(metadata['platforms'])}, and JAX"
      f" computes on {platform} here"
    )
  return platform


def load(path: str | os.PathLike) -> ExportedDetector:
  """Reads what `export` wrote.

  Raises:
    InputError: there is no such file, it is damaged, or this version of JAX no
      longer reads it.
  """
  path = fetch(path) if is_address(path) else pathlib.Path(path)
  try:
    with zipfile.ZipFile(path) as archive:
      metadata = json.loads(archive.read(_METADATA))
      if metadata["format"] != _FORMAT:
        raise InputError(
          f"{path} has format {metadata['format']}, and this program reads"
          f" {_FORMAT}: export the run again"
        )
      function_name = _function_name(_platform(path, metadata))
      function, weights = archive.read(function_name), archive.read(_WEIGHTS)
    for name, content in ((function_name, function), ("weights", weights)):
      if hashlib.sha256(content).hexdigest() != metadata[f"{name}_sha256"]:
        raise ValueError(f"its {name} changed after it was written")
    tensors = safetensors.numpy.load(weights)
    trees = flax.traverse_util.unflatten_dict(tensors, sep="/")
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  except (
    *(ValueError, KeyError, TypeError, RuntimeError, EOFError),
    *(zipfile.BadZipFile, zlib.error),
  ) as error:
    raise InputError(
      f"{path} is damaged, or not an exported detector: {shorten(error)}"
    ) from error
  try:
    exported = jax_export.deserialize(bytearray(function))
  except Exception as error:  # JAX's errors are not documented.
    raise InputError(
      f"{path} is for {metadata['readable_by']}, and JAX {jax.__version__}"
      f" does not read it ({shorten(error)}). Export the run again."
    ) from error
  return ExportedDetector(
    metadata, exported, (trees["trainable"], trees["clip"])
  )
