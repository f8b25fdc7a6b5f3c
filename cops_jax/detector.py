"""Anomaly detection on your own images."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from cops_jax import thresholds
from cops_jax.detection import Detection
from cops_jax.errors import InputError
from cops_jax.images import AnyImage, read
from cops_jax.images import tiles as tiling
from cops_jax.runtime.compilation import keep_compiled_programs
from cops_jax.runtime.mesh import make_mesh, padded_batches, replicate
from cops_jax.thresholds import Thresholds

# Functions import the model's modules because transformers is slow to import.
if TYPE_CHECKING:
  from cops_jax.weights.backbone import PretrainedBackbone

_logger = logging.getLogger(__name__)

_MAX_DEVICE_IMAGES = 8  # Largest number of images of a batch on each device.


class AnomalyDetector:
  """Scores images with trained prompts.

  ```python
  detector = AnomalyDetector.from_workdir("runs/visa")
  detection = detector("photo.jpg")
  print(detection.image_score, detection.anomaly_map.shape)
  for detection in detector(["a.png", "b.png"]):
    print(detection.is_anomaly)
  detection = detector("large.jpg", tiles="auto")  # Finds small defects.
  detection.picture("large.jpg").save("found.jpg")
  ```

  Threads can share a detector. Batches are padded to a power of two of images
  on each device, and each size is compiled once. The result for an image
  depends only on its pixels, not on its name or batch.

  Attributes:
    thresholds: thresholds for verdicts, each chosen for certain tiles and
      reference images. If empty, detections have no verdict.
    origin: source of prompts that no run of this project trained; empty
      otherwise.
    num_normal_images: number of reference images.
    normal_images_sha256: SHA-256 of the reference images' pixels at the
      model's size, in any order; empty without reference images.
  """

  def __init__(self, config: Any, trainable: Any, backbone: PretrainedBackbone):
    """Copies the model to all devices of this process.

    Args:
      config: ConfigDict with the fields of `cops_jax.config`.
      trainable: tree of the trained prompts.
      backbone: backbone from `load_backbone`.

    Raises:
      InputError: if the config does not fit the backbone.
    """
    from cops_jax.config import reading
    from cops_jax.evaluation.normal_images import make_memory_step
    from cops_jax.evaluation.step import make_predict_step
    from cops_jax.weights.model import build_model, choose_dtype, place_backbone

    config = choose_dtype(config, None)
    model = build_model(config, backbone)
    self.config, self.backbone, self.trainable = config, backbone, trainable
    self.image_size = config.model.image_size_pixels
    self.reading = reading(config)
    self.thresholds: Sequence[Thresholds] = ()
    self.origin = ""
    self._mesh = make_mesh(jax.local_devices())
    backbone_params, shardings = place_backbone(
      backbone, model, self._mesh, config.backbone.split_over_devices
    )
    self._params = (replicate(trainable, self._mesh), backbone_params)
    self._step = make_predict_step(model, self._mesh, shardings)
    self._remember = make_memory_step(model, self._mesh, shardings)
    self.num_normal_images, self.normal_images_sha256 = 0, ""
    self._lock = threading.Lock()
    self._warned = set()

  @classmethod
  def from_workdir(
    cls, workdir: str | os.PathLike, *, allow_other_backbone: bool = False
  ) -> AnomalyDetector:
    """Loads the newest prompts of a training run and their thresholds.

    Args:
      workdir: run directory.
      allow_other_backbone: if True, accepts a backbone whose weights differ
        from those that the prompts were trained on.

    Raises:
      InputError: if there is no run, or its backbone is not available.
    """
    from cops_jax.runs.record import read_record

    record = read_record(workdir)
    config = record.to_config(str(workdir))
    loaded = cls._load(config, workdir, record, allow_other_backbone)
    digest = loaded.prompts_sha256
    loaded.thresholds = thresholds.read_fitting(workdir, digest)
    return loaded

  @classmethod
  def from_pretrained(
    cls,
    name: str | os.PathLike,
    *,
    backbone: str | os.PathLike | None = None,
    allow_other_backbone: bool = False,
  ) -> AnomalyDetector:
    """Loads pretrained prompts and their thresholds.

    Args:
      name: name such as "cops-visa", repository on the hub, or folder; see
        `pretrained.find`.
      backbone: location of the backbone, as in config.backbone.weights; the
        one recorded with the prompts by default.
      allow_other_backbone: see `from_workdir`.

    Raises:
      InputError: if the prompts do not exist, are damaged or come from a later
        version, or if their backbone is not available.
    """
    from cops_jax.weights import pretrained, prompts

    path = pretrained.find(name)
    record = prompts.find_record(path)
    config = record.to_config(str(name))
    if backbone is not None:
      config.backbone.weights, config.backbone.revision = str(backbone), ""
    loaded = cls._load(config, path, record, allow_other_backbone)
    digest = loaded.prompts_sha256
    loaded.thresholds = thresholds.read_fitting(path.parent, digest)
    return loaded

  @classmethod
  def from_files(
    cls,
    backbone: str | os.PathLike,
    prompts: str | os.PathLike,
    *,
    config: Any = None,
    allow_other_backbone: bool = False,
  ) -> AnomalyDetector:
    """Loads a backbone and trained prompts from files, without thresholds.

    Args:
      backbone: location of the backbone, as in config.backbone.weights.
      prompts: file or folder of prompts, see `prompts.load_prompts`.
      config: ConfigDict with the fields of `cops_jax.config`; the one recorded
        with the prompts by default.
      allow_other_backbone: see `from_workdir`.

    Raises:
      InputError: if a file cannot be used, or there is no config.
    """
    from cops_jax.weights.prompts import find_record, recorded_config

    config = config or recorded_config(prompts)
    config = config.copy_and_resolve_references()
    config.backbone.weights = str(backbone)
    config.backbone.revision = config.backbone.sha256 = ""
    record = find_record(prompts)
    return cls._load(config, prompts, record, allow_other_backbone)

  @classmethod
  def from_clip(
    cls,
    backbone: str | os.PathLike = "openai/clip-vit-large-patch14-336",
    *,
    normal: Sequence[str] = (),
    anomalous: Sequence[str] = (),
  ) -> AnomalyDetector:
    """Loads a CLIP to compare images with hand-written texts, without training.

    Args:
      backbone: location of the CLIP, as in config.backbone.weights.
      normal: texts for normal images, such as "a clean weld"; the normal texts
        of the recipe `prompt_ensemble` by default.
      anomalous: texts for anomalous images, with the same default.

    Raises:
      InputError: if the CLIP or the texts cannot be used.
    """
    from cops_jax.config import ensemble_of
    from cops_jax.weights.clip import load_clip

    loaded = load_clip(str(backbone))
    config = ensemble_of(str(backbone), loaded.config)
    settings = config.model
    settings.normal_texts = tuple(normal) or settings.normal_texts
    settings.anomalous_texts = tuple(anomalous) or settings.anomalous_texts
    return cls._load(config, "", backbone=loaded)

  @classmethod
  def _load(
    cls, config, prompts, record=None, allow_other_backbone=False, backbone=None
  ):
    from cops_jax.runs.record import check_backbone
    from cops_jax.weights.backbone import load_backbone
    from cops_jax.weights.model import build_model, choose_dtype, load_trainable

    config = choose_dtype(config, record)
    backbone = backbone or load_backbone(config)
    if record is not None:
      check_backbone(
        record, backbone.sha256, str(prompts), allow_other_backbone
      )
    keep_compiled_programs(config)
    model = build_model(config, backbone)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    trainable, _ = load_trainable(config, model, backbone, prompts, device)
    loaded = cls(config, trainable, backbone)
    loaded.origin = record.origin if record else ""
    return loaded

  def with_normal_images(
    self, images: AnyImage | Sequence[AnyImage], tiles: str = ""
  ) -> AnomalyDetector:
    """Returns a new detector that also compares images with reference images.

    Both detectors share one backbone.

    Args:
      images: reference images, in any form that `images.read` accepts: normal
        images of one product. They replace earlier reference images.
      tiles: tiles of the reference images, which are compared too. Pass the
        same value in later calls of the detector.

    Raises:
      InputError: if there are no images, one cannot be read, or the tiles are
        invalid.
    """
    from cops_jax.evaluation.normal_images import hash_images

    images = images if isinstance(images, (list, tuple)) else [images]
    if not images:
      raise InputError("there are no reference images; pass at least one")
    decoded = [
      self.decode(image, f"reference image {number} of {len(images)}", tiles)
      for number, image in enumerate(images, start=1)
    ]
    pixels = np.stack(
      [part for image in decoded for part in (image.pixels, *image.parts)]
    )
    clone = copy.copy(self)
    clone._warned = set()
    clone.num_normal_images = len(images)
    clone.normal_images_sha256 = hash_images(pixels)
    memory = self._remember(self._params[1], pixels)
    clone.trainable = {**self.trainable, **memory}
    clone._params = replicate(clone.trainable, self._mesh), self._params[1]
    return clone

  @property
  def max_batch_size(self) -> int:
    """Largest number of images in one batch, over all devices."""
    return _MAX_DEVICE_IMAGES * self._mesh.size

  @property
  def prompts(self) -> dict[str, Any]:
    """Tree of the trained prompts, without the reference images' features."""
    from cops_jax.evaluation.step import MEMORY

    return {k: tree for k, tree in self.trainable.items() if k != MEMORY}

  @property
  def prompts_sha256(self) -> str:
    """SHA-256 of the prompts, in hexadecimal."""
    from cops_jax.weights.prompts import hash_prompts

    return hash_prompts(self.prompts)

  def thresholds_for(self, tiles: str) -> Thresholds | None:
    """Returns the thresholds for these tiles and the reference images, or None.

    Scores depend on tiles and reference images, so thresholds apply only to
    those that they were chosen with. If all thresholds were chosen with other
    ones, a warning is logged once for each value of `tiles`, which comes from
    `tiles.normalize`.
    """
    way = tiles, self.normal_images_sha256
    for row in self.thresholds:
      if row.way == way:
        return row
    reason = thresholds.why_unfit(self.thresholds, way)
    if reason and tiles not in self._warned:
      self._warned.add(tiles)
      _logger.warning("no verdicts: %s", reason)
    return None

  def __call__(
    self, images: AnyImage | Sequence[AnyImage], tiles: str = ""
  ) -> Detection | list[Detection]:
    """Scores one image or several.

    Args:
      images: an image, or a list or tuple of images of any sizes, each in a
        form that `images.read` accepts.
      tiles: tiles to score in addition to the whole image, to find small
        defects: rows x columns such as "2x3", or "auto", which chooses them by
        the image's size (see `tiles.choose_grid`). An image with t tiles takes
        as long as 1 + t images.

    Returns:
      One detection for a single image, a list of them otherwise.

    Raises:
      InputError: if an image cannot be read or the tiles are invalid. The
        message names the image's path or position.
    """
    if not isinstance(images, (list, tuple)):
      return self([images], tiles)[0]
    decoded = (
      self.decode(image, f"image {number} of {len(images)}", tiles)
      for number, image in enumerate(images, start=1)
    )
    return list(self.detect(decoded))

  def decode(
    self, image: AnyImage, name: str = "", tiles: str = ""
  ) -> tiling.DecodedImage:
    """Decodes an image and its tiles to the model's size, for `detect`.

    Args:
      image: image in any form that `images.read` accepts.
      name: name in error messages of an image that is not a path.
      tiles: tiles to cut, see `tiles.normalize`.

    Raises:
      InputError: if the image cannot be read, or the tiles are invalid.
    """
    is_path = isinstance(image, (str, os.PathLike))
    image = read(image, name="" if is_path else name, **self.reading)
    return tiling.decode(image, self.image_size, tiles)

  def detect(
    self, images: Iterable[tiling.DecodedImage | InputError]
  ) -> Iterator[Detection | InputError]:
    """Yields a detection for each decoded image.

    Args:
      images: images from `decode`, read in batches of `max_batch_size`. An
        error in place of an image is yielded unchanged.

    Raises:
      InputError: if scores are not finite.
    """
    images = iter(images)
    while batch := list(itertools.islice(images, self.max_batch_size)):
      decoded = [one for one in batch if not isinstance(one, InputError)]
      outputs = self._run(
        [pixels for image in decoded for pixels in (image.pixels, *image.parts)]
      )
      for image in batch:
        if isinstance(image, InputError):
          yield image
          continue
        rows = list(itertools.islice(outputs, 1 + len(image.parts)))
        score, anomaly_map = tiling.join(rows, image.grid, image.size)
        fitting = self.thresholds_for(image.tiles)
        yield Detection(
          float(score), anomaly_map, fitting, image.grid, image.notes
        )

  def _run(self, images):
    """Yields the score and map of each image of the model's size."""
    batches = padded_batches(images, self._mesh, self.max_batch_size)
    for number, batch in batches:
      with self._lock:  # Two threads must not compile the same step.
        outputs = self._step(*self._params, batch)
      outputs = jax.device_get(outputs)
      if not np.isfinite(outputs["image_score"]).all():
        raise InputError(
          "scores are not finite: the prompts or the backbone contain NaN or"
          " infinity"
        )
      rows = zip(outputs["image_score"], outputs["anomaly_map"], strict=True)
      yield from itertools.islice(rows, number)
