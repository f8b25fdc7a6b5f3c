"""Zero-shot evaluation: scores and maps of whole data sets."""

from __future__ import annotations

import collections
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cops_jax import (
  __version__,
  input_pipeline,
  metrics,
  prompt_files,
  records,
  reporting,
  scoring,
  sharding,
)
from cops_jax.configuration import (
  EVALUATION_KEY,
  build_model,
  load_clip,
  open_features,
  random_key,
)
from cops_jax.errors import InputError
from cops_jax.feature_files import FeatureCache
from cops_jax.images import decode_image
from cops_jax.models.cops import (
  CoPS,
  encode_batch,
  init_trainable,
  join_params,
)
from cops_jax.models.vae import example_noise
from cops_jax.progress import Progress
from cops_jax.reporting import DatasetResult, ImageResult, Picture
from cops_jax.weights import PretrainedCLIP

_logger = logging.getLogger(__name__)

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
    out_shardings=replicated,
  )


def evaluate_dataset(
  examples: Sequence[Mapping[str, Any]],
  predict: Callable[[Mapping[str, Any]], Mapping[str, jax.Array]],
  *,
  name: str,
  mesh: Mesh,
  image_size: int,
  patch_size: int,
  batch_size: int,
  num_pictures: int,
  num_workers: int = 0,
  skip_unreadable: bool = False,
  features: FeatureCache | None = None,
) -> DatasetResult:
  """Scores every example once and computes the metrics.

  Args:
    examples: from `cops_jax.datasets.load`.
    predict: from a sharded batch to `make_predict_step`'s outputs.
    name: the data set's.
    mesh: that `predict` was compiled for.
    image_size, patch_size: pixels.
    batch_size: no result depends on it.
    num_pictures: anomalous images to keep of each category.
    num_workers: processes that decode images.
    skip_unreadable: whether to leave out examples that cannot be read.
    features: given to `predict` in place of the images.

  Raises:
    InputError: an image cannot be read, or gets NaN for a score.
  """
  skipped = {}
  num_steps = input_pipeline.num_batches(len(examples), batch_size)
  batches = input_pipeline.iterate_batches(
    examples,
    image_size=image_size,
    patch_size=patch_size,
    batch_size=batch_size,
    num_devices=mesh.size,
    steps=range(num_steps),
    full_masks=True,
    num_workers=num_workers,
    skipped=skipped if skip_unreadable else None,
    features=features,
  )
  images = []
  histograms = collections.defaultdict(metrics.PixelHistogram)
  pictures = collections.defaultdict(list)
  progress = Progress(len(examples), "images")

  def run(batch):
    fields = {name: batch[name] for name in _STEP_FIELDS if name in batch}
    return predict(sharding.shard_global_batch(fields, mesh))

  for batch, outputs in sharding.run_ahead(batches, run):
    for row in np.flatnonzero(batch["padding_mask"]):
      category, path = (
        str(batch[field][row]) for field in ("category", "path")
      )
      score, anomaly_map = (
        outputs[field][row] for field in ("image_score", "anomaly_map")
      )
      if not np.isfinite(score) or not np.isfinite(anomaly_map).all():
        raise InputError(
          f"the score of {path} in data set {name!r} is not a number: the"
          " checkpoint or the CLIP weights are damaged"
        )
      label = int(batch["label"][row])
      images.append(ImageResult(name, category, path, label, float(score)))
      if batch["has_mask"][row]:
        mask = batch["mask"][row].astype(bool)
        histograms[category].add(anomaly_map, mask)
      if label == scoring.ANOMALY:
        # Chosen by id, so neither order nor batches change the sheet.
        shown = pictures[category]
        shown.append(
          {
            "index": int(batch["index"][row]),
            "category": category,
            "image_score": float(score),
            "sort_key": int(batch["example_id"][row]),
            "mask": batch["mask"][row],
            "anomaly_map": anomaly_map,
          }
        )
        shown.sort(key=lambda picture: picture["sort_key"])
        del shown[num_pictures:]
    progress.update(len(images) + len(skipped), f"evaluating {name}")
  if len(images) + len(skipped) != len(examples):
    raise AssertionError(
      f"{len(images)} images of {name} evaluated and {len(skipped)} left out,"
      f" of {len(examples)}"
    )
  if not images:
    raise InputError(f"no image of {name!r} can be read")

  images.sort(key=lambda image: (image.category, image.path))
  categories = {}
  for category in sorted({image.category for image in images}):
    rows = [image for image in images if image.category == category]
    categories[category] = (
      metrics.image_metrics(
        np.array([row.image_score for row in rows]),
        np.array([row.label == scoring.ANOMALY for row in rows]),
      )
      | histograms[category].compute()
    )
  return DatasetResult(
    categories,
    images,
    [
      _with_image(picture, examples, image_size)
      for category in sorted(pictures)
      for picture in pictures[category]
    ],
    skipped,
  )


def _with_image(picture, examples, image_size):
  """Decoded now: a batch of features has no images."""
  index = picture.pop("index")
  image = decode_image(examples[index]["image"], image_size)
  return Picture(image=image, **picture)


def make_evaluator(
  config: Any, model: CoPS, clip: PretrainedCLIP, mesh: Mesh, shardings: Any
) -> Callable[[Any, Any], dict[str, DatasetResult]]:
  """Makes the function that evaluates prompts as config.evaluation says.

  Args:
    config: a ConfigDict with the fields of configs/default.py.
    model: CoPS.
    clip: that it is built on.
    mesh: to split batches over.
    shardings: see `sharding.clip_shardings`.

  Returns:
    `evaluate(trainable, clip_params)`, giving a result for each data set, of
    trees that are on the mesh. In a cluster every process calls it and reads
    all images.
  """
  from cops_jax import datasets

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

  def evaluate_datasets(trainable, clip_params):
    results = {}
    for name in settings.datasets:
      examples = datasets.load(
        name,
        settings.split,
        config.data_dir or None,
        config.manual_dir or None,
      )
      if examples.name in results:
        raise InputError(
          f"two of config.evaluation.datasets are called {examples.name!r};"
          " give their folders different names"
        )
      skip_unreadable = config.input.unreadable_files == "skip"
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
      results[examples.name] = evaluate_dataset(
        examples,
        lambda batch: predict_step(trainable, clip_params, batch),
        name=examples.name,
        mesh=mesh,
        image_size=config.model.image_size_pixels,
        patch_size=model.clip_config.vision_config.patch_size,
        batch_size=settings.batch_size,
        num_pictures=settings.num_pictures,
        num_workers=config.input.num_workers,
        skip_unreadable=skip_unreadable,
        features=features,
      )
    return results

  return evaluate_datasets


def evaluate(
  config: Any,
  workdir: str | os.PathLike,
  *,
  checkpoint: str | os.PathLike | None = None,
  allow_other_clip: bool = False,
) -> tuple[dict[str, DatasetResult], list[pathlib.Path]]:
  """Evaluates trained prompts and writes the results.

  Args:
    config: a ConfigDict with the fields of configs/default.py.
    workdir: receives results.json, results.csv, scores.csv and pictures/. If it
      cannot be written there is a warning.
    checkpoint: trained prompts, see `prompt_files.load_prompts`; by default
      the work directory's own.
    allow_other_clip: whether other CLIP weights will do than those that the
      prompts were trained with.

  Returns:
    A result for each of config.evaluation.datasets, and the paths of the
    picture sheets.

  Raises:
    InputError: see the message.
  """
  checkpoint = checkpoint or workdir
  record = prompt_files.find_record(checkpoint)
  if record is None:
    _logger.warning("%s does not say which CLIP it was trained on", checkpoint)
  else:
    records.check_config(
      record, config.to_dict(), ("clip", "model"), str(checkpoint)
    )
  clip = load_clip(config)
  if record is not None:
    records.check_clip(record, clip.sha256, str(checkpoint), allow_other_clip)
  model = build_model(config, clip)
  mesh = sharding.make_mesh()
  template = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding.replicated_sharding(mesh)
    ),
    jax.eval_shape(lambda: init_trainable(model, jax.random.key(0))),
  )
  trainable, source = prompt_files.load_prompts(checkpoint, template)
  _logger.info(
    "evaluating %s on %d %s device(s)",
    source,
    mesh.size,
    jax.default_backend(),
  )
  shardings = sharding.clip_shardings(
    clip.params, mesh, config.clip.split_over_devices
  )
  results = make_evaluator(config, model, clip, mesh, shardings)(
    sharding.replicate(trainable, mesh), jax.device_put(clip.params, shardings)
  )
  provenance = {
    "checkpoint": source,
    "clip_sha256": clip.sha256,
    "version": __version__,
  }
  if jax.process_index() > 0:
    return results, []
  try:
    sheets = reporting.write_results(pathlib.Path(workdir), results, provenance)
  except OSError as error:  # What was computed for hours is still returned.
    _logger.warning(
      "the results are not written: %s: %s. Use another --workdir with"
      " --checkpoint=%s to have the files.",
      error.filename or workdir,
      error.strerror,
      checkpoint,
    )
    sheets = []
  return results, sheets
