"""Anomaly detection on your own images.

detector = AnomalyDetector.from_workdir("runs/visa")
detection = detector("photo.jpg")
print(detection.image_score, detection.anomaly_map.shape)
for detection in detector(["a.png", "b.png"]):
  print(detection.is_anomaly)
detection = detector("large.jpg", tiles="auto")  # Finds what is small.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from cops_jax import thresholds
from cops_jax.errors import InputError, shorten
from cops_jax.images import tiles as tiling
from cops_jax.images.decoding import (
  as_seen,
  is_transparent,
  open_image,
  resize_image,
  resize_map,
)
from cops_jax.runtime.compilation import keep_compiled_programs
from cops_jax.runtime.mesh import make_mesh, replicate, shard_batch
from cops_jax.runtime.randomness import content_ids
from cops_jax.thresholds import Thresholds
from cops_jax.typing import Float, Integer

# The model's modules are imported where they are used: transformers takes long.
if TYPE_CHECKING:
  import flax.linen as nn

  from cops_jax.weights.clip import PretrainedCLIP

_logger = logging.getLogger(__name__)

# Images on a device at once; a bucket is a power of two up to it.
_MAX_DEVICE_IMAGES = 8

# A file's path or bytes, a PIL image, or an array (h, w), (h, w, 3) or
# (h, w, 4) of uint8.
AnyImage = Any


@dataclasses.dataclass(frozen=True)
class Detection:
  """What was found in an image.

  Attributes:
    image_score: of anomaly, in [0, 1].
    anomaly_map: of anomaly by pixel, in [0, 1], at the size that the image has
      upright.
    thresholds: used for verdicts; None without any.
    is_transparent: whether parts of the image are, which were laid on white.
    grid: rows and columns of the tiles that were looked at; (1, 1) for the
      whole alone.
  """

  image_score: float
  anomaly_map: Float[np.ndarray, "h w"]
  thresholds: Thresholds | None = None
  is_transparent: bool = False
  grid: tuple[int, int] = tiling.WHOLE

  @property
  def is_anomaly(self) -> bool | None:
    """Whether the score reaches the threshold; None without a threshold."""
    if self.thresholds is None:
      return None
    return self.image_score >= self.thresholds.image

  @property
  def boxes(self) -> list[tuple[int, int, int, int]] | None:
    """Regions at or above the pixel threshold, largest first.

    Each is (left, top, right, bottom) in pixels, the last two exclusive; None
    without a threshold.
    """
    if self.thresholds is None:
      return None
    return thresholds.find_boxes(self.anomaly_map, self.thresholds.pixel)


def make_detect_step(
  model: nn.Module,
  mesh: jax.sharding.Mesh,
  clip_shardings: Any = None,
) -> Callable[[Any, Any, jax.Array], dict[str, jax.Array]]:
  """Compiles the step from images alone to their scores and maps.

  Args:
    model: a method's.
    mesh: to split batches over.
    clip_shardings: see `make_predict_step`.

  Returns:
    `step(trainable, clip_params, images)`, of uint8 (b, h, w, 3); gives what
    `make_predict_step`'s does.
  """
  from cops_jax.evaluation.step import make_predict_step

  predict = make_predict_step(model, mesh, clip_shardings)

  @jax.jit
  def detect(trainable, clip_params, images):
    batch = {"image": images, "example_id": content_ids(images)}
    return predict(trainable, clip_params, batch)

  return detect


class AnomalyDetector:
  """Scores images with trained prompts; threads may share one.

  It has one compiled step for each bucket of batch sizes: powers of two for
  each device. An image's result depends on its pixels alone, not on its name
  or the images beside it.
  """

  def __init__(
    self,
    config: Any,
    trainable: Any,
    clip: PretrainedCLIP,
    thresholds: Thresholds | None = None,
  ):
    """Puts the model on all devices of this process.

    Args:
      config: a ConfigDict with the fields of `cops_jax.config`.
      trainable: trained prompts.
      clip: from `weights.clip_of`.
      thresholds: for verdicts.

    Raises:
      InputError: the config does not fit CLIP.
    """
    from cops_jax.config import max_pixels
    from cops_jax.weights import build_model, place_clip, settle_dtype

    config = settle_dtype(config, None)
    model = build_model(config, clip)
    self.config, self.clip, self.trainable = config, clip, trainable
    self.image_size = config.model.image_size_pixels
    self.max_pixels = max_pixels(config)
    self.thresholds = thresholds
    self._mesh = make_mesh(jax.local_devices())
    clip_params, shardings = place_clip(
      clip, model, self._mesh, config.clip.split_over_devices
    )
    self._params = (replicate(trainable, self._mesh), clip_params)
    self._step = make_detect_step(model, self._mesh, shardings)
    self._compiled = {}
    self._lock = threading.Lock()
    self._warned = set()

  @classmethod
  def from_workdir(
    cls, workdir: str | os.PathLike, *, allow_other_clip: bool = False
  ) -> AnomalyDetector:
    """The newest prompts of a training run, with thresholds chosen for them.

    Raises:
      InputError: there is no run, or its CLIP is not available.
    """
    from cops_jax.runs.record import read_record

    record = read_record(workdir)
    config = record.to_config(str(workdir))
    return cls._load_folder(workdir, workdir, config, record, allow_other_clip)

  @classmethod
  def from_pretrained(
    cls,
    name: str | os.PathLike,
    *,
    clip: str | os.PathLike | None = None,
    allow_other_clip: bool = False,
  ) -> AnomalyDetector:
    """Published prompts, with thresholds chosen for them.

    Args:
      name: OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face hub, or a
        folder in that layout; see `weights.pretrained`.
      clip: where its CLIP is; by default where the prompts' record says. See
        config.clip.weights in `cops_jax.config`.
      allow_other_clip: whether to accept other CLIP weights than those that the
        prompts were trained with.

    Raises:
      InputError: there is no such repository or folder, it is damaged or of a
        later version, or its CLIP is not available.
    """
    from cops_jax.weights import pretrained
    from cops_jax.weights.prompts import find_record

    folder = pretrained.find(name)
    prompts = folder / pretrained.PROMPTS
    record = find_record(prompts)
    config = record.to_config(str(name))
    if clip is not None:
      config.clip.weights, config.clip.revision = str(clip), ""
    return cls._load_folder(folder, prompts, config, record, allow_other_clip)

  @classmethod
  def from_files(
    cls,
    clip: str | os.PathLike,
    prompts: str | os.PathLike,
    *,
    config: Any = None,
    thresholds: Thresholds | None = None,
    allow_other_clip: bool = False,
  ) -> AnomalyDetector:
    """A detector from a CLIP and trained prompts.

    Args:
      clip: see config.clip.weights in `cops_jax.config`.
      prompts: see `prompts.load_prompts`.
      config: a ConfigDict with the fields of `cops_jax.config`; by default the
        one that the prompts were trained with, which the authors' files do not
        record.
      thresholds: for verdicts.
      allow_other_clip: whether to accept other CLIP weights than those that the
        prompts were trained with.

    Raises:
      InputError: a file cannot be used, or there is no config.
    """
    from cops_jax.weights.prompts import find_record

    record = find_record(prompts)
    if config is None:
      if record is None:
        raise InputError(
          f"{prompts} does not say with which config it was trained; give a"
          ' config, such as cops_jax.config.recipe("visa")'
        )
      config = record.to_config(str(prompts))
    config = config.copy_and_resolve_references()
    config.clip.weights = str(clip)
    config.clip.revision = config.clip.sha256 = ""
    return cls._load(prompts, config, record, allow_other_clip, thresholds)

  @classmethod
  def from_clip(
    cls,
    clip: str | os.PathLike = "openai/clip-vit-large-patch14-336",
    *,
    normal: Sequence[str] = (),
    anomalous: Sequence[str] = (),
    config: Any = None,
    thresholds: Thresholds | None = None,
  ) -> AnomalyDetector:
    """A detector from a CLIP alone, which nobody trained: a prompt ensemble.

    Args:
      clip: see config.clip.weights in `cops_jax.config`.
      normal: what is normal, such as "a clean weld"; by default the normal
        states of the config's texts.
      anomalous: what is not, likewise.
      config: a ConfigDict with the fields of `cops_jax.config`; by default the
        recipe prompt_ensemble, its sizes those that fit the CLIP.
      thresholds: for verdicts.

    Raises:
      InputError: CLIP or the texts cannot be used.
    """
    from cops_jax.config import ensemble_of
    from cops_jax.weights import load_clip

    loaded = load_clip(str(clip))
    if config is None:
      config = ensemble_of(str(clip), loaded.config)
    config = config.copy_and_resolve_references()
    config.clip.weights = str(clip)
    config.model.normal_texts = tuple(normal) or config.model.normal_texts
    config.model.anomalous_texts = (
      tuple(anomalous) or config.model.anomalous_texts
    )
    return cls._build(config, loaded, "", thresholds)

  @classmethod
  def _load_folder(cls, folder, prompts, config, record, allow_other_clip):
    """Prompts with the folder's thresholds, if these were chosen for them."""
    found = thresholds.read_thresholds(folder)
    detector = cls._load(prompts, config, record, allow_other_clip, found)
    if found and found.prompts_sha256 not in ("", detector.prompts_sha256):
      _logger.warning(
        "no verdicts: the thresholds of %s were chosen for other prompts than"
        " those that it has now; choose again: cops calibrate",
        folder,
      )
      detector.thresholds = None
    return detector

  @classmethod
  def _load(cls, prompts, config, record, allow_other_clip, thresholds):
    from cops_jax.runs.record import check_clip
    from cops_jax.weights import clip_of, settle_dtype

    config = settle_dtype(config, record)
    clip = clip_of(config)
    if record is not None:
      check_clip(record, clip.sha256, str(prompts), allow_other_clip)
    return cls._build(config, clip, prompts, thresholds)

  @classmethod
  def _build(cls, config, clip, prompts, thresholds):
    from cops_jax.weights import build_model, load_trainable

    keep_compiled_programs(config)
    model = build_model(config, clip)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    trainable, _ = load_trainable(config, model, clip, prompts, device)
    return cls(config, trainable, clip, thresholds)

  @property
  def max_batch_size(self) -> int:
    """Images that are computed at once; more are split."""
    return _MAX_DEVICE_IMAGES * self._mesh.size

  @property
  def prompts_sha256(self) -> str:
    """Identifies its prompts, in hexadecimal."""
    from cops_jax.weights.prompts import hash_prompts

    return hash_prompts(self.trainable)

  def thresholds_for(self, tiles: str) -> Thresholds | None:
    """The thresholds, if they were chosen with these tiles.

    Scores and maps with and without tiles differ. Where the thresholds do not
    fit there is a warning, once.

    Args:
      tiles: what `tiles.normalize` gives.
    """
    if self.thresholds is None:
      return None
    reason = self.thresholds.why_unfit(tiles)
    if not reason:
      return self.thresholds
    if tiles not in self._warned:
      self._warned.add(tiles)
      _logger.warning("no verdicts: %s", reason)
    return None

  def __call__(
    self, images: AnyImage | Sequence[AnyImage], tiles: str = ""
  ) -> Detection | list[Detection]:
    """Scores an image, or each of several.

    Args:
      images: one or several: a file's path or bytes, a PIL image, or uint8
        (h, w), (h, w, 3) or (h, w, 4). They may be of any size, each of its
        own.
      tiles: parts of large images to look at too, for small defects: rows x
        columns such as "2x3", or "auto" for as many as an image's size takes,
        see `tiles.choose_grid`. An image with t tiles costs as much as 1 + t.

    Raises:
      InputError: an image cannot be read; gives its path or place. Or the tiles
        are none.
    """
    if not isinstance(images, (list, tuple)):
      return self([images], tiles)[0]
    detections = []
    for start in range(0, len(images), self.max_batch_size):
      batch = images[start : start + self.max_batch_size]
      detections += self.detect(
        [
          self.decode(image, f"image {number} of {len(images)}", tiles)
          for number, image in enumerate(batch, start + 1)
        ]
      )
    return detections

  def decode(
    self, image: AnyImage, name: str = "the image", tiles: str = ""
  ) -> DecodedImage:
    """Reads an image as `decoding.as_seen` says and brings it to model size.

    Args:
      image: see `__call__`.
      name: for errors, where the image is not a path.
      tiles: see `__call__`.

    Raises:
      InputError: it cannot be read; names it. Or the tiles are none.
    """
    from PIL import Image

    tiles = tiling.normalize(tiles)
    try:
      if isinstance(image, np.ndarray):
        image = _from_array(image)
      if isinstance(image, Image.Image):
        return self._resize(image, tiles)
      file = image if isinstance(image, bytes) else pathlib.Path(image)
      with open_image(file, self.max_pixels) as opened:
        return self._resize(opened, tiles)
    except Exception as error:  # PIL raises many kinds of errors.
      if isinstance(image, (str, os.PathLike)):
        name = os.fspath(image)
      raise InputError(f"{name} cannot be read: {shorten(error)}") from error

  def _resize(self, image, tiles):
    seen = as_seen(image)
    decoded = DecodedImage(
      resize_image(seen, self.image_size), seen.size, is_transparent(image)
    )
    if not tiles:
      return decoded
    grid = tiling.choose_grid(tiles, seen.size, self.image_size)
    parts = None
    if grid != tiling.WHOLE:
      parts = tiling.cut(seen, grid, self.image_size)
    return dataclasses.replace(decoded, tiles=tiles, grid=grid, parts=parts)

  def detect(self, images: Sequence[DecodedImage]) -> list[Detection]:
    """Scores decoded images, at most `max_batch_size`.

    Raises:
      InputError: the model's parameters give no finite scores.
    """
    outputs = self._run(
      [
        pixels
        for image in images
        for pixels in (
          image.pixels,
          *(() if image.parts is None else image.parts),
        )
      ]
    )
    return [self._detection(image, outputs) for image in images]

  def _detection(self, image, outputs):
    """Of an image whose outputs, and its tiles', come next."""
    score, anomaly_map = next(outputs)
    anomaly_map = resize_map(anomaly_map, image.size)
    if image.parts is not None:
      scores, maps = zip(
        *itertools.islice(outputs, len(image.parts)), strict=True
      )
      score = tiling.combine(score, max(scores))
      blended = tiling.blend(np.stack(maps), image.grid, image.size)
      anomaly_map = tiling.combine(anomaly_map, blended)
    return Detection(
      float(score),
      anomaly_map,
      self.thresholds_for(image.tiles),
      image.is_transparent,
      image.grid,
    )

  def _run(
    self, images: Sequence[Integer[np.ndarray, "h w 3"]]
  ) -> Iterator[tuple[float, Float[np.ndarray, "h w"]]]:
    """Scores and maps of any number of images of the model's size."""
    for start in range(0, len(images), self.max_batch_size):
      batch = images[start : start + self.max_batch_size]
      size = self._mesh.size
      while size < len(batch):
        size *= 2
      pixels = np.zeros((size, self.image_size, self.image_size, 3), np.uint8)
      pixels[: len(batch)] = batch
      batch_on_devices = shard_batch({"image": pixels}, self._mesh)["image"]
      step = self._compile(batch_on_devices)
      outputs = jax.device_get(step(*self._params, batch_on_devices))
      if not np.isfinite(outputs["image_score"]).all():
        raise InputError(
          "scores are not finite: the prompts, or CLIP, hold NaN or infinity"
        )
      rows = zip(outputs["image_score"], outputs["anomaly_map"], strict=True)
      yield from itertools.islice(rows, len(batch))

  def _compile(self, batch):
    size = len(batch)
    with self._lock:  # Threads that call at once compile once.
      if size not in self._compiled:
        lowered = self._step.lower(*self._params, batch)
        self._compiled[size] = lowered.compile()
      return self._compiled[size]


@dataclasses.dataclass(frozen=True)
class DecodedImage:
  """An image at the model's size.

  Attributes:
    pixels: RGB.
    size: width and height that it had upright, in pixels.
    is_transparent: whether parts of it were.
    tiles: that were asked for; "" for none.
    grid: their rows and columns.
    parts: their pixels, row by row; None where the grid is the whole.
  """

  pixels: Integer[np.ndarray, "h w 3"]
  size: tuple[int, int]
  is_transparent: bool = False
  tiles: str = ""
  grid: tuple[int, int] = tiling.WHOLE
  parts: Integer[np.ndarray, "t h w 3"] | None = None


def _from_array(array):
  from PIL import Image

  if (
    array.dtype != np.uint8
    or not array.size
    or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
  ):
    raise ValueError(
      f"expected uint8 (h, w), (h, w, 3) or (h, w, 4), not {array.dtype}"
      f" {array.shape}"
    )
  return Image.fromarray(array)
