"""Zero-shot evaluation: scores and maps of whole data sets."""

from __future__ import annotations

import pathlib
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cops_jax import input_pipeline, map_files, scoring, sharding
from cops_jax.configuration import EVALUATION_KEY, open_features, random_key
from cops_jax.errors import InputError
from cops_jax.feature_files import FeatureCache
from cops_jax.findings import Findings, gather_pictures, image_result
from cops_jax.images import decode_image
from cops_jax.models.cops import CoPS, encode_batch, join_params
from cops_jax.models.vae import example_noise
from cops_jax.pictures import picture_strip
from cops_jax.progress import Progress
from cops_jax.results import DatasetResult, Picture
from cops_jax.typing import Array, Float
from cops_jax.weights import PretrainedCLIP

# Fields of a batch that a predicting step reads.
_STEP_FIELDS = ("image", "image_features", "patch_features", "example_id")


def detect_anomalies(
  model: CoPS,
  variables: Mapping[str, Any],
  batch: Mapping[str, jax.Array],
  noise: Float[Array, "b z d"] | None,
  *,
  alpha: float,
  beta: float,
  distance_weighting: bool,
) -> dict[str, jax.Array]:
  """Scores and maps of a batch.

  Args:
    model, variables: CoPS.
    batch: what `encode_batch` takes.
    noise: the category codes; None without category words.
    alpha, beta: see `cops_jax.scoring`.
    distance_weighting: whether patches are weighted by their distances to the
      prototypes, if there are any.

  Returns:
    image_score (b,) and anomaly_map (b, h, w), float32 in [0, 1].
  """
  features = encode_batch(model, variables, batch)
  patch_size = model.clip_config.vision_config.patch_size
  image_size = round(features[1].shape[2] ** 0.5) * patch_size
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
    alpha, beta, distance_weighting: see `detect_anomalies`.
    clip_shardings: of CLIP's parameters; None if every device has a copy.

  Returns:
    `step(trainable, clip_params, batch)`, giving image_score (b,) and
    anomaly_map (b, h, w), float32 in [0, 1]. A batch has example_id and image,
    or what `encode_batch` takes instead.
  """
  key = random_key(seed, EVALUATION_KEY)
  width = model.clip_config.projection_dim
  replicated = sharding.replicated_sharding(mesh)

  def predict_step(trainable, clip_params, batch):
    noise = None
    if model.num_category_words:
      noise = example_noise(key, batch["example_id"], num_samples, width)
    return detect_anomalies(
      model,
      join_params(trainable, clip_params),
      batch,
      noise,
      alpha=alpha,
      beta=beta,
      distance_weighting=distance_weighting,
    )

  return jax.jit(
    predict_step,
    in_shardings=(
      replicated,
      replicated if clip_shardings is None else clip_shardings,
      sharding.batch_sharding(mesh),
    ),
    out_shardings=sharding.batch_sharding(mesh),
  )


def make_configured_step(
  config: Any, model: CoPS, mesh: Mesh, clip_shardings: Any = None
) -> Callable[[Any, Any, Mapping[str, Any]], dict[str, jax.Array]]:
  """`make_predict_step`, with the values of a config."""
  settings = config.evaluation
  return make_predict_step(
    model,
    mesh,
    seed=config.seed,
    num_samples=settings.num_samples,
    alpha=settings.alpha,
    beta=settings.beta,
    distance_weighting=settings.distance_weighting,
    clip_shardings=clip_shardings,
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

  found = Findings(pixel_metrics)
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
  categories = found.categories()
  chosen = found.choose_pictures(categories, num_pictures)
  pictures = []
  if chosen:
    subset = input_pipeline.Subset(examples, [index for _, index in chosen])
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
