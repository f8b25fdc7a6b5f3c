"""One data set: every example scored once, and the metrics."""

from __future__ import annotations

import pathlib
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cops_jax.config import open_features
from cops_jax.errors import InputError
from cops_jax.evaluation.accumulate import (
  Findings,
  gather_pictures,
  image_result,
)
from cops_jax.evaluation.results import DatasetResult, Picture
from cops_jax.evaluation.step import STEP_FIELDS, make_configured_step
from cops_jax.images.decoding import decode_image
from cops_jax.images.drawing import picture_strip
from cops_jax.images.maps import MapWriter
from cops_jax.inputs import pipeline
from cops_jax.inputs.feature_files import FeatureCache
from cops_jax.models.cops import CoPS
from cops_jax.progress import Progress
from cops_jax.runtime.mesh import (
  local_rows,
  run_ahead,
  shard_batch,
)
from cops_jax.weights import PretrainedCLIP


def make_evaluator(
  config: Any, model: CoPS, clip: PretrainedCLIP, mesh: Mesh, shardings: Any
) -> Callable[..., DatasetResult]:
  """Makes the function that evaluates prompts as a config says.

  Args:
    config: a ConfigDict with the fields of configs/default.py.
    model: CoPS.
    clip: that it is built on.
    mesh: to split batches over.
    shardings: see `mesh.clip_shardings`.

  Returns:
    `evaluate(trainable, clip_params, examples, num_pictures=0,
    maps_folder=None)`, of trees that are on the mesh; see `evaluate_dataset`.
    In a cluster every process calls it.

  Raises:
    InputError: the config cannot be followed in a cluster.
  """
  settings = config.evaluation
  if settings.pixel_metrics == "exact" and jax.process_count() > 1:
    raise InputError(
      "config.evaluation.pixel_metrics is 'exact', which one process alone can"
      " be: set it to binned in a cluster"
    )
  predict_step = make_configured_step(config, model, mesh, shardings)
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
    maps_folder: receives the anomaly maps, see `maps.MapWriter`.

  Raises:
    InputError: an image cannot be read, or gets NaN for a score.
  """
  began = time.monotonic()
  skipped = {}

  def run(examples, message="", features=None):
    """Yields the rows of this process, with their outputs."""
    progress = Progress(len(examples), "images")
    batches = pipeline.iterate_batches(
      examples,
      image_size=image_size,
      patch_size=patch_size,
      batch_size=batch_size,
      num_devices=mesh.size,
      steps=range(pipeline.num_batches(len(examples), batch_size)),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      full_masks=True,
      num_workers=num_workers,
      skipped=skipped if skip_unreadable else None,
      features=features,
    )

    def start(batch):
      return local_rows(predict(shard_batch(batch, mesh, STEP_FIELDS)), mesh)

    for step, (batch, outputs) in enumerate(run_ahead(batches, start), start=1):
      for row in np.flatnonzero(batch["padding_mask"]):
        yield {field: rows[row] for field, rows in (batch | outputs).items()}
      if message:
        progress.update(min(step * batch_size, len(examples)), message)

  found = Findings(pixel_metrics)
  with MapWriter(maps_folder) as maps:
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
  categories = found.categories()
  chosen = found.choose_pictures(categories, num_pictures)
  pictures = []
  if chosen:
    subset = pipeline.Subset(examples, [index for _, index in chosen])
    # Computed again, as no maps are kept; and decoded here, as features have no
    # images.
    for row in run(subset, features=features):
      place = int(row["index"])
      kind, _ = chosen[place]
      image = image_result(row, name)
      low, high = found.ranges[image.category]
      strip = picture_strip(
        decode_image(subset[place]["image"], image_size),
        row["mask"] if row["has_mask"] else None,
        row["anomaly_map"],
        low=low,
        high=high,
      )
      pictures.append((place, Picture(kind, image, strip)))
    pictures = gather_pictures(pictures)
  return DatasetResult(
    categories,
    images,
    pictures,
    found.skipped,
    seconds=time.monotonic() - began,
    peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  )
