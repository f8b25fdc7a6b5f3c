"""Anomaly detection on your own images.

detector = AnomalyDetector.from_workdir("runs/visa")
detection = detector("photo.jpg")
print(detection.image_score, detection.anomaly_map.shape)
for detection in detector(["a.png", "b.png"]):
  print(detection.is_anomaly)
detection = detector("large.jpg", tiles="auto")  # Finds small defects.
detection.picture("large.jpg").save("found.jpg")
"""

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
from cops_jax.images.tiles import DecodedImage
from cops_jax.runtime.compilation import keep_compiled_programs
from cops_jax.runtime.mesh import make_mesh, replicate, shard_batch
from cops_jax.thresholds import Thresholds

# The model's modules are imported where they are used: transformers is slow.
if TYPE_CHECKING:
  from cops_jax.weights.backbone import PretrainedBackbone

_logger = logging.getLogger(__name__)

# Images on a device at once; batches are padded to powers of two up to it.
_MAX_DEVICE_IMAGES = 8


class AnomalyDetector:
  """Scores images with trained prompts; threads may share one.

  It compiles one step for each power of two of images on each device. An
  image's result depends on its pixels alone, not on its name or batch.

  Attributes:
    thresholds: for verdicts, each for its tiles and normal images; none for no
      verdicts.
    origin: who trained the prompts, if no run of this project did.
    num_normal_images: number of the images given to `with_normal_images`.
    normal_images_sha256: SHA-256 of their pixels, in any order, as the model
      sees them; "" without any.
  """

  def __init__(self, config: Any, trainable: Any, backbone: PretrainedBackbone):
    """Puts the model on all devices of this process.

    Args:
      config: a ConfigDict with the fields of `cops_jax.config`.
      trainable: trained prompts.
      backbone: from `load_backbone`.

    Raises:
      InputError: the config does not fit the backbone.
    """
    from cops_jax.config import reading
    from cops_jax.evaluation.normal_images import make_memory_step
    from cops_jax.evaluation.step import make_predict_step
    from cops_jax.weights.model import build_model, place_backbone, settle_dtype

    config = settle_dtype(config, None)
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
    """Loads the newest prompts of a training run, and their thresholds.

    Args:
      workdir: run directory.
      allow_other_backbone: whether to accept another backbone's weights than
        those that the prompts were trained on.

    Raises:
      InputError: there is no run, or its backbone is not available.
    """
    from cops_jax.runs.record import read_record

    record = read_record(workdir)
    config = record.to_config(str(workdir))
    loaded = cls._load(config, workdir, record, allow_other_backbone)
    return loaded._use_thresholds(workdir)

  @classmethod
  def from_pretrained(
    cls,
    name: str | os.PathLike,
    *,
    backbone: str | os.PathLike | None = None,
    allow_other_backbone: bool = False,
  ) -> AnomalyDetector:
    """Loads pretrained prompts, and their thresholds.

    Args:
      name: such as "cops-visa" or a folder; see `pretrained.find`.
      backbone: location of the backbone, see config.backbone.weights in
        `cops_jax.config`; by default the one in the prompts' record.
      allow_other_backbone: see `from_workdir`.

    Raises:
      InputError: there are no such prompts, they are damaged or of a later
        version, or their backbone is not available.
    """
    from cops_jax.weights import pretrained, prompts

    path = pretrained.find(name)
    record = prompts.find_record(path)
    config = record.to_config(str(name))
    if backbone is not None:
      config.backbone.weights, config.backbone.revision = str(backbone), ""
    loaded = cls._load(config, path, record, allow_other_backbone)
    return loaded._use_thresholds(path.parent)

  @classmethod
  def from_files(
    cls,
    backbone: str | os.PathLike,
    prompts: str | os.PathLike,
    *,
    config: Any = None,
    allow_other_backbone: bool = False,
  ) -> AnomalyDetector:
    """Loads a CLIP and trained prompts.

    Args:
      backbone: see config.backbone.weights in `cops_jax.config`.
      prompts: see `prompts.load_prompts`.
      config: a ConfigDict with the fields of `cops_jax.config`; by default the
        one in the prompts' record.
      allow_other_backbone: see `from_workdir`.

    Raises:
      InputError: a file cannot be used, or there is no config.
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
    """Loads a CLIP and compares images with hand-written texts, untrained.

    Args:
      backbone: see config.backbone.weights in `cops_jax.config`.
      normal: texts for normal images, such as "a clean weld"; by default the
        normal states of the recipe prompt_ensemble's texts.
      anomalous: texts for anomalous images, likewise.

    Raises:
      InputError: CLIP or the texts cannot be used.
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
    from cops_jax.weights.model import build_model, load_trainable, settle_dtype

    config = settle_dtype(config, record)
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

  def _use_thresholds(self, folder):
    """Takes the folder's thresholds if they were chosen for these prompts."""
    found = thresholds.read_thresholds(folder)
    fits = ("", self.prompts_sha256) if found else ()
    self.thresholds = [row for row in found if row.prompts_sha256 in fits]
    if found and not self.thresholds:
      _logger.warning(
        "no verdicts: the thresholds of %s were chosen for other prompts than"
        " those that it has now; choose again: cops calibrate",
        folder,
      )
    return self

  def with_normal_images(
    self, images: AnyImage | Sequence[AnyImage], tiles: str = ""
  ) -> AnomalyDetector:
    """Returns a detector that also compares images with normal ones.

    It shares the backbone with this one.

    Args:
      images: normal images of one product, see `images.read`; they replace
        those that this detector has.
      tiles: parts of them to compare with too, those of the later calls.

    Raises:
      InputError: there are no images, one cannot be read, or tiles are invalid.
    """
    from cops_jax.evaluation.normal_images import hash_images

    images = images if isinstance(images, (list, tuple)) else [images]
    if not images:
      raise InputError("no normal images are given to compare images with")
    decoded = [
      self.decode(image, f"normal image {number} of {len(images)}", tiles)
      for number, image in enumerate(images, start=1)
    ]
    pixels = np.stack(
      [part for image in decoded for part in (image.pixels, *image.parts)]
    )
    found = copy.copy(self)
    found._warned = set()
    found.num_normal_images = len(images)
    found.normal_images_sha256 = hash_images(pixels)
    memory = self._remember(self._params[1], pixels)
    found.trainable = {**self.trainable, **memory}
    found._params = replicate(found.trainable, self._mesh), self._params[1]
    return found

  @property
  def max_batch_size(self) -> int:
    """Images that are computed at once; larger batches are split."""
    return _MAX_DEVICE_IMAGES * self._mesh.size

  @property
  def prompts(self) -> dict[str, Any]:
    """The trained prompts, without the memory of normal images."""
    from cops_jax.evaluation.step import MEMORY

    trainable = self.trainable.items()
    return {name: tree for name, tree in trainable if name != MEMORY}

  @property
  def prompts_sha256(self) -> str:
    """SHA-256 of the prompts, in hexadecimal."""
    from cops_jax.weights.prompts import hash_prompts

    return hash_prompts(self.prompts)

  def thresholds_for(self, tiles: str) -> Thresholds | None:
    """Returns the thresholds that were chosen with these tiles, if any were.

    Scores and maps with and without tiles, or normal images, differ. If only
    other thresholds were chosen, there is one warning.

    Args:
      tiles: from `tiles.normalize`.
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
    """Scores an image, or each of several.

    Args:
      images: one or several, see `images.read`. Sizes may differ.
      tiles: parts of large images to score too, for small defects: rows x
        columns such as "2x3", or "auto" for a number by the image's size, see
        `tiles.choose_grid`. An image with t tiles costs as much as 1 + t.

    Raises:
      InputError: an image cannot be read; names its path or place. Or the tiles
        are invalid.
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
  ) -> DecodedImage:
    """Decodes an image for `detect`.

    Args:
      image: see `images.read`.
      name: for errors, if the image is not a path.
      tiles: see `tiles.normalize`.

    Raises:
      InputError: the image cannot be read, or the tiles are invalid.
    """
    is_path = isinstance(image, (str, os.PathLike))
    image = read(image, name="" if is_path else name, **self.reading)
    return tiling.decode(image, self.image_size, tiles)

  def detect(
    self, images: Iterable[DecodedImage | InputError]
  ) -> Iterator[Detection | InputError]:
    """Yields the detections of decoded images, and errors as they come.

    It takes up to `max_batch_size` images at a time.

    Raises:
      InputError: the model's parameters give no finite scores.
    """
    images = iter(images)
    while batch := list(itertools.islice(images, self.max_batch_size)):
      decoded = [one for one in batch if not isinstance(one, InputError)]
      found = self._run(
        [pixels for image in decoded for pixels in (image.pixels, *image.parts)]
      )
      for image in batch:
        if isinstance(image, InputError):
          yield image
          continue
        rows = list(itertools.islice(found, 1 + len(image.parts)))
        score, anomaly_map = tiling.join(rows, image.grid, image.size)
        fitting = self.thresholds_for(image.tiles)
        yield Detection(
          float(score), anomaly_map, fitting, image.grid, image.notes
        )

  def _run(self, images):
    """Yields scores and maps of any number of images of the model's size."""
    for start in range(0, len(images), self.max_batch_size):
      batch = images[start : start + self.max_batch_size]
      size = self._mesh.size
      while size < len(batch):
        size *= 2
      pixels = np.zeros((size, *batch[0].shape), np.uint8)
      pixels[: len(batch)] = batch
      on_devices = shard_batch({"image": pixels}, self._mesh)
      with self._lock:  # Threads that call at once compile once.
        outputs = self._step(*self._params, on_devices)
      outputs = jax.device_get(outputs)
      if not np.isfinite(outputs["image_score"]).all():
        raise InputError(
          "scores are not finite: the prompts, or the backbone, hold NaN or"
          " infinity"
        )
      rows = zip(outputs["image_score"], outputs["anomaly_map"], strict=True)
      yield from itertools.islice(rows, len(batch))
