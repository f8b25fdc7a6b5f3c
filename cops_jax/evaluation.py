"""Zero-shot evaluation: scores and maps of whole data sets."""

from __future__ import annotations

import base64
import dataclasses
import math
import pathlib
import resource
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cops_jax import input_pipeline, map_files, metrics, scoring, sharding
from cops_jax.configuration import EVALUATION_KEY, open_features, random_key
from cops_jax.errors import InputError
from cops_jax.feature_files import FeatureCache
from cops_jax.images import decode_image
from cops_jax.models.cops import CoPS, encode_batch, join_params
from cops_jax.models.vae import example_noise
from cops_jax.pictures import picture_strip
from cops_jax.progress import Progress
from cops_jax.results import (
  CategoryResult,
  DatasetResult,
  ImageResult,
  Picture,
)
from cops_jax.weights import PretrainedCLIP

# Fields of a batch that a predicting step reads.
_STEP_FIELDS = ("image", "image_features", "patch_features", "example_id")


def make_predict_step(
  model: CoPS,
  mesh: Mesh,
  *,
  seed: int,
  num_samples: int,
  alpha: float,
  beta: float,
  distance_weighting: bool = True,
  clip_shardings: Any = None,
) -> Callable[[Any, Any, Mapping[str, Any]], dict[str, jax.Array]]:
  """Compiles the step from a batch to its scores and maps.

  Args:
    model: CoPS.
    mesh: to split batches over.
    seed: of the category codes' noise, which each example's id keys.
    num_samples: codes for an image.
    alpha, beta: see `cops_jax.scoring`.
    distance_weighting: whether patches are weighted by their distances to the
      prototypes, if there are any.
    clip_shardings: of CLIP's parameters; None if every device has a copy.

  Returns:
    `step(trainable, clip_params, batch)`, giving image_score (b,) and
    anomaly_map (b, h, w), float32 in [0, 1]. A batch has example_id and image,
    or what `encode_batch` takes instead.
  """
  key = random_key(seed, EVALUATION_KEY)
  width = model.clip_config.projection_dim
  patch_size = model.clip_config.vision_config.patch_size
  replicated = sharding.replicated_sharding(mesh)

  def predict_step(trainable, clip_params, batch):
    variables = join_params(trainable, clip_params)
    features = encode_batch(model, variables, batch)
    image_size = round(features[1].shape[2] ** 0.5) * patch_size
    noise = None
    if model.num_category_words:
      noise = example_noise(key, batch["example_id"], num_samples, width)
    outputs = model.apply(variables, *features, noise, is_training=False)
    patch_scores = scoring.weighted_patch_scores(
      outputs.patch_probability,
      outputs.distances if distance_weighting else None,
      alpha,
    )
    return {
      "image_score": scoring.image_scores(
        outputs.image_logits, patch_scores, beta
      ),
      "anomaly_map": scoring.anomaly_maps(patch_scores, image_size),
    }

  return jax.jit(
    predict_step,
    in_shardings=(
      replicated,
      replicated if clip_shardings is None else clip_shardings,
      sharding.batch_sharding(mesh),
    ),
    out_shardings=sharding.batch_sharding(mesh),
  )


def make_evaluator(
  config: Any, model: CoPS, clip: PretrainedCLIP, mesh: Mesh, shardings: Any
) -> Callable[..., DatasetResult]:
  """Makes the function that evaluates prompts as a config says.

  Args:
    config: a ConfigDict with the fields of configs/default.py.
    model: CoPS.
    clip: that it is built on.
    mesh: to split batches over.
    shardings: see `sharding.clip_shardings`.

  Returns:
    `evaluate(trainable, clip_params, examples, num_pictures=0,
    maps_folder=None)`, of trees that are on the mesh; see `evaluate_dataset`.
    In a cluster every process calls it.
  """
  settings = config.evaluation
  predict_step = make_predict_step(
    model,
    mesh,
    seed=config.seed,
    num_samples=settings.num_samples,
    alpha=settings.alpha,
    beta=settings.beta,
    distance_weighting=settings.distance_weighting,
    clip_shardings=shardings,
  )
  skip_unreadable = config.input.unreadable_files == "skip"

  def evaluate(
    trainable, clip_params, examples, num_pictures=0, maps_folder=None
  ):
    features = open_features(
      config,
      examples,
      settings.split,
      model,
      clip,
      mesh,
      batch_size=settings.batch_size,
      skipped={} if skip_unreadable else None,
    )
    return evaluate_dataset(
      examples,
      lambda batch: predict_step(trainable, clip_params, batch),
      name=examples.name,
      mesh=mesh,
      image_size=config.model.image_size_pixels,
      patch_size=model.clip_config.vision_config.patch_size,
      batch_size=settings.batch_size,
      num_pictures=num_pictures,
      pixel_metrics=settings.pixel_metrics,
      num_workers=config.input.num_workers,
      skip_unreadable=skip_unreadable,
      features=features,
      maps_folder=maps_folder,
    )

  return evaluate


def evaluate_dataset(
  examples: Sequence[Mapping[str, Any]],
  predict: Callable[[Mapping[str, Any]], Mapping[str, jax.Array]],
  *,
  name: str,
  mesh: Mesh,
  image_size: int,
  patch_size: int,
  batch_size: int,
  num_pictures: int = 0,
  pixel_metrics: str = "binned",
  num_workers: int = 0,
  skip_unreadable: bool = False,
  features: FeatureCache | None = None,
  maps_folder: pathlib.Path | None = None,
) -> DatasetResult:
  """Scores every example once and computes the metrics.

  The processes of a cluster share the images, and all get the whole result.

  Args:
    examples: from `cops_jax.datasets.load`.
    predict: from a sharded batch to `make_predict_step`'s outputs.
    name: the data set's.
    mesh: that `predict` was compiled for.
    image_size, patch_size: pixels.
    batch_size: no result depends on it.
    num_pictures: of each kind, see `results.Picture`.
    pixel_metrics: see `metrics.make_pixel_metrics`.
    num_workers: processes that decode images.
    skip_unreadable: whether to leave out examples that cannot be read.
    features: given to `predict` in place of the images.
    maps_folder: receives the anomaly maps, see `map_files.MapWriter`.

  Raises:
    InputError: an image cannot be read, or gets NaN for a score.
  """
  began = time.monotonic()
  skipped = {}

  def run(examples, message="", features=None):
    """Yields the rows of this process, with their outputs."""
    progress = Progress(len(examples), "images")
    batches = input_pipeline.iterate_batches(
      examples,
      image_size=image_size,
      patch_size=patch_size,
      batch_size=batch_size,
      num_devices=mesh.size,
      steps=range(input_pipeline.num_batches(len(examples), batch_size)),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      full_masks=True,
      num_workers=num_workers,
      skipped=skipped if skip_unreadable else None,
      features=features,
    )

    def start(batch):
      fields = {name: batch[name] for name in _STEP_FIELDS if name in batch}
      return sharding.local_rows(
        predict(sharding.shard_batch(fields, mesh)), mesh
      )

    for step, (batch, outputs) in enumerate(
      sharding.run_ahead(batches, start), start=1
    ):
      for row in np.flatnonzero(batch["padding_mask"]):
        yield {field: rows[row] for field, rows in (batch | outputs).items()}
      if message:
        progress.update(min(step * batch_size, len(examples)), message)

  found = _Findings(pixel_metrics)
  with map_files.MapWriter(maps_folder) as maps:
    for row in run(examples, f"evaluating {name}", features):
      image = found.add(row, name)
      maps.write(image.category, image.path, row["anomaly_map"])
  found.skipped = skipped
  found = found.gather()
  num_images = len(found.images)
  if num_images + len(found.skipped) != len(examples):
    raise AssertionError(
      f"{num_images} images of {name} evaluated and {len(found.skipped)} left"
      f" out, of {len(examples)}"
    )
  if not num_images:
    raise InputError(f"no image of {name!r} can be read")

  images = sorted(found.images, key=lambda image: (image.category, image.path))
  categories = {
    category: _category_result(
      [image for image in images if image.category == category],
      found.pixels.get(category, metrics.PixelMetrics()),
    )
    for category in dict.fromkeys(image.category for image in images)
  }
  chosen = _choose_pictures(found, categories, num_pictures)
  pictures = []
  if chosen:
    subset = input_pipeline.Subset(examples, [index for _, index in chosen])
    # Computed again, as no maps are kept; and decoded here, as features have no
    # images.
    for row in run(subset, features=features):
      place = int(row["index"])
      kind, _ = chosen[place]
      image = _image_result(row, name)
      low, high = found.ranges[image.category]
      strip = picture_strip(
        decode_image(subset[place]["image"], image_size),
        row["mask"] if row["has_mask"] else None,
        row["anomaly_map"],
        low=low,
        high=high,
      )
      pictures.append((place, Picture(kind, image, strip)))
    pictures = [picture for _, picture in _gather_pictures(pictures)]
  return DatasetResult(
    categories,
    images,
    pictures,
    found.skipped,
    identity=getattr(examples, "identity", ""),
    seconds=time.monotonic() - began,
    peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  )


@dataclasses.dataclass
class _Findings:
  """What a process has found so far.

  Attributes:
    mode: of the pixel metrics.
    images: scored.
    indices, example_ids: of these images.
    pixels: pixel metrics by category.
    ranges: lowest and highest value of the maps by category.
    skipped: paths and reasons.
  """

  mode: str
  images: list[ImageResult] = dataclasses.field(default_factory=list)
  indices: list[int] = dataclasses.field(default_factory=list)
  example_ids: list[int] = dataclasses.field(default_factory=list)
  pixels: dict[str, Any] = dataclasses.field(default_factory=dict)
  ranges: dict[str, Any] = dataclasses.field(default_factory=dict)
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)

  def add(self, row: Mapping[str, Any], dataset: str) -> ImageResult:
    """Counts an image.

    Raises:
      InputError: its score is NaN.
    """
    image, anomaly_map = _image_result(row, dataset), row["anomaly_map"]
    self.images.append(image)
    self.indices.append(int(row["index"]))
    self.example_ids.append(int(row["example_id"]))
    self._widen(
      image.category, float(anomaly_map.min()), float(anomaly_map.max())
    )
    if row["has_mask"]:
      if image.category not in self.pixels:
        self.pixels[image.category] = metrics.make_pixel_metrics(self.mode)
      self.pixels[image.category].add(anomaly_map, row["mask"].astype(bool))
    return image

  def _widen(self, category, low, high):
    old_low, old_high = self.ranges.get(category, (low, high))
    self.ranges[category] = min(low, old_low), max(high, old_high)

  def gather(self) -> _Findings:
    """What all processes have found, the same in each of them."""
    if jax.process_count() == 1:
      return self
    parts = sharding.gather_objects(
      {
        "images": [dataclasses.astuple(image) for image in self.images],
        "indices": self.indices,
        "example_ids": self.example_ids,
        "pixels": {
          category: {
            name: _to_text(array) for name, array in state.arrays().items()
          }
          for category, state in self.pixels.items()
        },
        "ranges": self.ranges,
        "skipped": self.skipped,
      }
    )
    whole = _Findings(self.mode)
    for part in parts:
      whole.images += [ImageResult(*image) for image in part["images"]]
      whole.indices += part["indices"]
      whole.example_ids += part["example_ids"]
      for category, texts in part["pixels"].items():
        state = metrics.PixelMetrics.from_arrays(
          {name: _from_text(*text) for name, text in texts.items()}
        )
        if category in whole.pixels:
          state = whole.pixels[category].merge(state)
        whole.pixels[category] = state
      for category, (low, high) in part["ranges"].items():
        whole._widen(category, low, high)
      whole.skipped |= part["skipped"]
    return whole


def _to_text(array):
  """Counts and their shape as text; most of them are zero."""
  return array.shape, base64.b64encode(zlib.compress(array.tobytes())).decode()


def _from_text(shape, text):
  data = zlib.decompress(base64.b64decode(text))
  return np.frombuffer(data, np.int64).reshape(shape)


def _gather_pictures(pictures):
  if jax.process_count() == 1:
    return pictures
  rows = [
    (
      index,
      picture.kind,
      dataclasses.astuple(picture.image),
      base64.b64encode(picture.strip).decode(),
    )
    for index, picture in pictures
  ]
  return [
    (index, Picture(kind, ImageResult(*image), base64.b64decode(strip)))
    for index, kind, image, strip in sorted(
      row for part in sharding.gather_objects(rows) for row in part
    )
  ]


def _image_result(row, dataset):
  path = str(row["path"])
  if not (
    np.isfinite(row["image_score"]) and np.isfinite(row["anomaly_map"]).all()
  ):
    raise InputError(
      f"the score of {path} in data set {dataset!r} is not a number: the"
      " checkpoint or the CLIP weights are damaged"
    )
  return ImageResult(
    dataset,
    str(row["category"]),
    path,
    int(row["label"]),
    float(row["image_score"]),
  )


def _category_result(images, pixels):
  scores = np.array([image.image_score for image in images])
  labels = np.array([image.label == scoring.ANOMALY for image in images])
  values = metrics.image_metrics(scores, labels) | pixels.compute()
  curves = {
    f"{level}_{name}": curve
    for level, found in (
      ("image", metrics.image_curves(scores, labels)),
      ("pixel", pixels.curves()),
    )
    for name, curve in found.items()
    if len(curve[0])
  }
  return CategoryResult(
    values,
    undefined=metrics.undefined_reasons(values, labels, pixels),
    image_threshold=metrics.best_image_threshold(scores, labels),
    pixel_threshold=pixels.best_threshold(),
    curves={
      name: tuple(np.round(axis, 5).tolist() for axis in curve)
      for name, curve in curves.items()
    },
  )


def _choose_pictures(found, categories, number):
  """Kinds and indices of the images to show.

  The best and the worst by how far a score is on the right side of its
  category's threshold; the random ones by id. Neither order nor batches change
  them.
  """

  def margin(image):
    threshold = categories[image.category].image_threshold
    threshold = 0.5 if math.isnan(threshold) else threshold
    side = 1 if image.label == scoring.ANOMALY else -1
    return side * (image.image_score - threshold)

  rows = [
    (margin(image), example_id, index)
    for image, example_id, index in zip(
      found.images, found.example_ids, found.indices, strict=True
    )
  ]
  rows.sort(key=lambda row: (-row[0], row[1]))
  kinds = {
    "best": rows[:number],
    "worst": rows[::-1][:number],
    "random": sorted(rows, key=lambda row: row[1])[:number],
  }
  return [(kind, index) for kind in kinds for _, _, index in kinds[kind]]
