"""One data set: every example scored once, and the metrics."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from cops_jax.config import max_pixels
from cops_jax.errors import InputError
from cops_jax.evaluation.accumulate import (
  Findings,
  gather_pictures,
  image_result,
)
from cops_jax.evaluation.results import DatasetResult, Picture
from cops_jax.evaluation.step import STEP_FIELDS, make_predict_step
from cops_jax.images.decoding import decode_image
from cops_jax.images.drawing import picture_tiles
from cops_jax.images.maps import MapWriter
from cops_jax.images.tiles import parse_grid
from cops_jax.inputs import pipeline
from cops_jax.inputs.feature_cache import FeatureCache
from cops_jax.inputs.features import open_features
from cops_jax.paths import AnyPath
from cops_jax.progress import Progress
from cops_jax.runtime.mesh import (
  default_batch_size,
  local_rows,
  run_ahead,
  shard_batch,
)
from cops_jax.runtime.processes import (
  agree,
  peak_memory_bytes,
)
from cops_jax.weights import PretrainedCLIP


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
  """How data sets are evaluated.

  Attributes:
    batches: how examples become batches; no result depends on their size. Masks
      are to be full.
    pixel_metrics: one of `metrics.PIXEL_METRICS_MODES`.
    skip_unreadable: whether to leave out examples that cannot be read.
    num_pictures: of each kind, see `results.Picture`.
  """

  batches: pipeline.BatchOptions
  pixel_metrics: str = "binned"
  skip_unreadable: bool = False
  num_pictures: int = 0


class DatasetEvaluator:
  """Evaluates prompts on data sets as a config says, with one compiled step.

  In a cluster every process has one and calls it in the same way.
  """

  def __init__(
    self,
    config: Any,
    model: nn.Module,
    clip: PretrainedCLIP,
    mesh: Mesh,
    shardings: Sharding | Mapping[str, Any],
  ):
    """Makes the step, which is compiled when it is used.

    Args:
      config: a ConfigDict with the fields of `cops_jax.config`.
      model: of the config's method.
      clip: that it is built on.
      mesh: to split batches over.
      shardings: see `mesh.clip_shardings`.

    Raises:
      InputError: the config does not work in a cluster.
    """
    settings = config.evaluation
    if settings.pixel_metrics == "exact" and jax.process_count() > 1:
      raise InputError(
        "config.evaluation.pixel_metrics is 'exact', which works in one"
        " process only: set it to binned in a cluster"
      )
    self._config, self._model, self._clip = config, model, clip
    self._mesh = mesh
    self._step = make_predict_step(model, mesh, shardings)
    self._options = EvaluationOptions(
      pipeline.BatchOptions(
        image_size=config.model.image_size_pixels,
        patch_size=model.clip.config.vision_config.patch_size,
        batch_size=settings.batch_size or default_batch_size(mesh),
        num_devices=mesh.size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.input.num_workers,
        max_pixels=max_pixels(config),
        full_masks=True,
        tile_grid=parse_grid(settings.tiles),
      ),
      pixel_metrics=settings.pixel_metrics,
      skip_unreadable=config.input.unreadable_files == "skip",
    )

  def run(
    self,
    trainable: Mapping[str, Any],
    clip_params: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    num_pictures: int = 0,
    maps_folder: AnyPath | None = None,
  ) -> DatasetResult:
    """Evaluates prompts on a data set.

    Args:
      trainable, clip_params: the model's two parameter trees, on the mesh.
      examples: from `cops_jax.datasets.load`.
      num_pictures, maps_folder: see `evaluate_dataset`.

    Raises:
      InputError: see `evaluate_dataset` and `features.open_features`.
    """
    settings = self._config.evaluation
    features = open_features(
      self._config,
      examples,
      settings.split,
      self._model,
      self._clip,
      self._mesh,
      batch_size=self._options.batches.batch_size,
      skipped={} if self._options.skip_unreadable else None,
    )
    text_features = None
    if self._config.model.use_category_names:
      categories = sorted({example["category"] for example in examples})
      text_features = self._model.category_text_features(self._clip, categories)
    return evaluate_dataset(
      examples,
      lambda batch: self._step(trainable, clip_params, batch),
      self._mesh,
      dataclasses.replace(self._options, num_pictures=num_pictures),
      name=examples.name,
      features=features,
      maps_folder=maps_folder,
      text_features=text_features,
    )


def evaluate_dataset(
  examples: Sequence[Mapping[str, Any]],
  predict: Callable[[Mapping[str, Any]], Mapping[str, Any]],
  mesh: Mesh,
  options: EvaluationOptions,
  *,
  name: str,
  features: FeatureCache | None = None,
  maps_folder: AnyPath | None = None,
  text_features: Mapping[str, Any] | None = None,
) -> DatasetResult:
  """Scores every example once and computes the metrics.

  The processes of a cluster share the images, and all get the whole result.

  Args:
    examples: from `cops_jax.datasets.load`.
    predict: from a sharded batch to `make_predict_step`'s outputs.
    mesh: that `predict` was compiled for.
    options: how to do it.
    name: the data set's.
    features: given to `predict` in place of the images.
    maps_folder: receives the anomaly maps, see `maps.MapWriter`.
    text_features: by category, for `predict`; None if it needs none.

  Raises:
    InputError: an image cannot be read, or gets NaN for a score.
  """
  began = time.monotonic()
  rows = _Rows(predict, mesh, options, features, text_features)
  found = Findings(options.pixel_metrics)
  rows.note_errors(_find, rows, examples, found, name, maps_folder)
  agree(rows.errors)
  found.skipped = rows.skipped
  found = found.gather()
  num_images = len(found.images)
  if num_images + len(found.skipped) != len(examples):
    raise AssertionError(
      f"{num_images} images of {name} evaluated and {len(found.skipped)} left"
      f" out, of {len(examples)}"
    )
  if not num_images:
    raise InputError(f"no image of {name!r} can be read")
  categories = found.categories()
  chosen = found.choose_pictures(categories, options.num_pictures)
  return DatasetResult(
    categories,
    sorted(found.images, key=lambda image: (image.category, image.path)),
    _draw_pictures(rows, examples, name, chosen, found.ranges, categories),
    found.skipped,
    seconds=time.monotonic() - began,
    peak_memory_bytes=peak_memory_bytes(),
  )


@dataclasses.dataclass
class _Rows:
  """Scores examples, row by row.

  Attributes:
    predict, mesh, options, features, text_features: as in `evaluate_dataset`.
    skipped: paths and reasons of this process's examples, as they are met.
    errors: of this process, of which the others do not know yet.
  """

  predict: Callable[[Mapping[str, Any]], Mapping[str, Any]]
  mesh: Mesh
  options: EvaluationOptions
  features: FeatureCache | None
  text_features: Mapping[str, Any] | None = None
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)
  errors: list[Exception] = dataclasses.field(default_factory=list)

  def note_errors(self, function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function; in a cluster its error is noted instead of raised."""
    try:
      return function(*args)
    except Exception as error:  # The others wait, whatever it is.
      if jax.process_count() == 1:
        raise
      self.errors.append(error)

  def _find_texts(self, categories):
    default = next(iter(self.text_features.values()))
    rows = [self.text_features.get(str(name), default) for name in categories]
    return np.stack(rows)

  def score(
    self, examples: Sequence[Mapping[str, Any]], message: str = ""
  ) -> Iterator[dict[str, Any]]:
    """Yields the rows of this process, with their outputs."""
    options = self.options.batches
    progress = Progress(len(examples), "images")
    steps = options.one_pass(len(examples))
    batches = pipeline.keep_pace(
      pipeline.iterate_batches(
        examples,
        options,
        steps,
        skipped=self.skipped if self.options.skip_unreadable else None,
        features=self.features,
      ),
      len(steps),
      lambda: pipeline.padding_batch(options, self.features),
      self.errors,
    )

    def start(batch):
      if self.text_features:
        # What pads has no category, and any will do.
        batch = {**batch, "text_features": self._find_texts(batch["category"])}
      outputs = self.predict(shard_batch(batch, self.mesh, STEP_FIELDS))
      return local_rows(outputs, self.mesh)

    for step, (batch, outputs) in enumerate(run_ahead(batches, start), start=1):
      for row in np.flatnonzero(batch["padding_mask"]):
        yield {field: rows[row] for field, rows in (batch | outputs).items()}
      if message:
        done = min(step * options.batch_size, len(examples))
        progress.update(done, message)


def _find(rows, examples, found, name, maps_folder):
  """Scores the examples and counts what is found."""
  with MapWriter(maps_folder) as maps:
    for row in rows.score(examples, f"evaluating {name}"):
      image = rows.note_errors(found.add, row, name)
      if image and not rows.errors:
        rows.note_errors(
          maps.write, image.category, image.path, row["anomaly_map"]
        )


def _draw_pictures(rows, examples, name, chosen, ranges, categories):
  """Pictures of the chosen kinds and indices, from all processes."""
  if not chosen:
    return []
  subset = pipeline.Subset(examples, [index for _, index in chosen])
  pictures = []
  drawn = _draw(rows, subset, name, chosen, ranges, categories)
  rows.note_errors(pictures.extend, drawn)
  agree(rows.errors)
  return gather_pictures(pictures)


def _draw(rows, subset, name, chosen, ranges, categories):
  # Computed again, as no maps are kept; and decoded here, as features have no
  # images.
  for row in rows.score(subset):
    place = int(row["index"])
    kind, _ = chosen[place]
    image = image_result(row, name)
    low, high = ranges[image.category]
    tiles = picture_tiles(
      decode_image(subset[place]["image"], rows.options.batches.image_size),
      row["mask"] if row["has_mask"] else None,
      row["anomaly_map"],
      low=low,
      high=high,
      threshold=categories[image.category].pixel_threshold,
    )
    yield place, Picture(kind, image, tiles, low, high)
