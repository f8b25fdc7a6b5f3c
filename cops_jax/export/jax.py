"""A whole detector as one .cops file, exported with jax.export.

A .cops file is a zip archive. `function-cpu`, `function-cuda` and
`function-tpu` are functions that jax.export wrote, from any number of images of
one size to their scores and maps. `weights.safetensors` contains the weights,
and `metadata.json` describes the file.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.traverse_util
import jax
import jaxlib
import numpy as np
import safetensors.numpy
from jax import export as jax_export

from cops_jax import __version__
from cops_jax.errors import InputError, UsageError, shorten
from cops_jax.files import fetch, to_json, whole_file
from cops_jax.paths import AnyPath, is_address, to_path
from cops_jax.runtime.mesh import make_mesh
from cops_jax.typing import Array, Float

if TYPE_CHECKING:  # Reading a file needs none of the model's code.
  from cops_jax.detector import AnomalyDetector

PLATFORMS = ("cpu", "cuda", "tpu")
_FORMAT = 3
# JAX counts the months from the day that jaxlib was built, which no installed
# file states.
_READABLE_BY = "jaxlib up to six months newer than {}"
_WEIGHTS, _METADATA = "weights.safetensors", "metadata.json"


def require_file_name(out: str | os.PathLike) -> AnyPath:
  """Returns the path of a file to export to, after checking its name.

  Raises:
    InputError: if the path is a folder or ends in neither .cops nor .onnx, or
      if the packages for ONNX are missing.
  """
  path = to_path(out)
  is_folder = not is_address(path) and path.is_dir()
  if is_folder or os.fspath(out).endswith("/"):
    raise UsageError(f"{out} is a folder: name a file, such as model.cops")
  if path.suffix not in (".cops", ".onnx"):
    raise UsageError(
      f"{out} ends in {path.suffix!r}: use .cops for JAX or .onnx for ONNX"
      " runtimes. `cops weights save` writes prompts as .pth or .safetensors."
    )
  if path.suffix == ".onnx":
    from cops_jax.export.onnx import import_packages

    import_packages()
  return path


def export(detector: AnomalyDetector, out: str | os.PathLike) -> dict[str, Any]:
  """Writes a detector as one file.

  Args:
    detector: detector to write, with its reference images if it has any.
    out: file that ends in .cops or .onnx.

  Returns:
    The metadata in the file: versions, hashes, image size and thresholds.

  Raises:
    InputError: if the name has another ending, or the file cannot be written.

  Example:
    ```python
    detector = AnomalyDetector.from_workdir("runs/visa")
    export.export(detector, "visa.cops")
    ```
  """
  out = require_file_name(out)
  # The exported function scores whole images, without tiles.
  config, thresholds = detector.config, detector.thresholds_for("")
  metadata = {
    "cops_jax": __version__,
    "method": config.method,
    "jax": jax.__version__,
    "jaxlib": jaxlib.__version__,
    "image_size_pixels": detector.image_size,
    "bits_per_channel": detector.reading["bits_per_channel"],
    "exported_on": datetime.date.today().isoformat(),
    "backbone_sha256": detector.backbone.sha256,
    "num_normal_images": detector.num_normal_images,
    "origin": detector.origin,
    "thresholds": thresholds and dataclasses.asdict(thresholds),
  }
  if out.suffix == ".onnx":
    from cops_jax.export.onnx import write_onnx

    write_onnx(detector, out, metadata)
    return metadata
  from cops_jax.backbones.attention import choose_implementation

  metadata |= {
    "format": _FORMAT,
    "platforms": list(PLATFORMS),
    "cuda_attention": choose_implementation(
      config.backbone.attention, config.backbone.dtype, "cuda"
    ),
    "readable_by": _READABLE_BY.format(jaxlib.__version__),
  }
  contents = _trace(detector)
  contents[_METADATA] = to_json(metadata, indent=2) + "\n"
  with whole_file(out) as partial, zipfile.ZipFile(partial, "w") as archive:
    for name, content in contents.items():
      archive.writestr(name, content)
  return metadata


def _trace(detector):
  """Returns the functions and the weights, as bytes by name."""
  from cops_jax.evaluation.step import make_predict_step
  from cops_jax.weights.model import build_model

  mesh = make_mesh(jax.devices()[:1])

  def make_step(platform):
    model = build_model(detector.config, detector.backbone, platform)
    predict = make_predict_step(model, mesh)

    @jax.jit
    def step(trainable, backbone_params, images):
      return predict(trainable, backbone_params, {"image": images})

    return step

  (batch,) = jax_export.symbolic_shape("batch")
  shape = (batch, detector.image_size, detector.image_size, 3)
  params = jax.device_get((detector.trainable, detector.backbone.params))
  arguments = (
    *jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params
    ),
    jax.ShapeDtypeStruct(shape, np.uint8),
  )
  contents = {
    f"function-{platform}": bytes(
      jax_export.export(make_step(platform), platforms=[platform])(
        *arguments
      ).serialize()
    )
    for platform in PLATFORMS
  }
  trees = dict(zip(("trainable", "backbone"), params, strict=True))
  tensors = flax.traverse_util.flatten_dict(trees, sep="/")
  contents[_WEIGHTS] = safetensors.numpy.save(
    {name: np.asarray(array, order="C") for name, array in tensors.items()}
  )
  return contents


class ExportedDetector:
  """A detector from a .cops file; `load` returns one.

  Attributes:
    metadata: content of metadata.json: versions, hashes, image size and
      thresholds.
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
    """Scores images of the exported size.

    Each new number of images compiles the function again.

    Args:
      images: RGB images, uint8 (b, h, w, 3), at least one. Height and width
        are metadata["image_size_pixels"].

    Returns:
      A dict of image_score (b,) and anomaly_map (b, h, w), float32 in [0, 1].

    Raises:
      InputError: if the images have another type or shape.
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


def load(path: str | os.PathLike) -> ExportedDetector:
  """Reads a .cops file that `export` wrote.

  Args:
    path: path or address of the file.

  Returns:
    The exported detector, with its weights on the default device.

  Raises:
    InputError: if the file does not exist or is damaged, was not exported for
      this platform, or cannot be read by this version of JAX.

  Example:
    ```python
    detector = export.load("visa.cops")
    side = detector.metadata["image_size_pixels"]
    batch = images.read("photo.jpg").resize(side)[None]
    print(detector(batch)["image_score"])
    ```
  """
  path = fetch(path) if is_address(path) else pathlib.Path(path)
  backend = jax.default_backend()
  platform = "cuda" if backend == "gpu" else backend
  try:
    # Reading an entry also compares its checksum.
    with zipfile.ZipFile(path) as archive:
      if any(entry.compress_type for entry in archive.infolist()):
        raise ValueError("an entry is compressed, but exported entries are not")
      metadata = json.loads(archive.read(_METADATA))
      if metadata["format"] != _FORMAT:
        raise InputError(
          f"{path} has format {metadata['format']}, but this version reads"
          f" format {_FORMAT}: export the run again"
        )
      if platform not in metadata["platforms"]:
        raise InputError(
          f"{path} was exported for {', '.join(metadata['platforms'])}, but JAX"
          f" runs on {platform} here: set JAX_PLATFORMS to one of them"
        )
      function = archive.read(f"function-{platform}")
      tensors = safetensors.numpy.load(archive.read(_WEIGHTS))
    trees = flax.traverse_util.unflatten_dict(tensors, sep="/")
    params = trees["trainable"], trees["backbone"]
    readable_by = metadata["readable_by"]
    metadata["image_size_pixels"] + 0
  except InputError:
    raise
  except Exception as error:  # Damage causes many kinds of errors.
    raise InputError(
      f"{path} cannot be read as an exported detector ({shorten(error)}): get a"
      " new copy"
    ) from error
  try:
    exported = jax_export.deserialize(bytearray(function))
  except Exception as error:  # JAX's errors are not documented.
    raise InputError(
      f"{path} is for {readable_by}, but JAX {jax.__version__}"
      f" cannot read it ({shorten(error)}). Export the run again."
    ) from error
  return ExportedDetector(metadata, exported, params)
