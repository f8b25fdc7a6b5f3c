"""The evaluator, which scores each example once and computes the metrics."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh, Sharding

from cops_jax.errors import InputError
from cops_jax.evaluation.findings import Findings
from cops_jax.evaluation.normal_images import NormalImages, make_memory_step
from cops_jax.evaluation.results import DatasetResult, Picture
from cops_jax.evaluation.step import STEP_FIELDS, make_predict_step
from cops_jax.images import read, tiles
from cops_jax.images.drawing import picture_tiles
from cops_jax.images.maps import MapWriter
from cops_jax.inputs import pipeline
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
  collect,
  gather_objects,
  peak_memory_bytes,
)
from cops_jax.tables import count_notes
from cops_jax.weights.backbone import PretrainedBackbone


class Evaluator:
  """Evaluates prompts on data sets with one compiled step.

  In a cluster every process creates an evaluator and makes the same calls. The
  processes divide the images among themselves. Each returns the whole result.
  """

  def __init__(
    self,
    config: Any,
    model: nn.Module,
    backbone: PretrainedBackbone,
    mesh: Mesh,
    shardings: Sharding | Mapping[str, Any],
  ):
    """Creates the step, which is compiled when it is first called.

    Args:
      config: a ConfigDict with the fields of `cops_jax.config`.
      model: model of the config's method.
      backbone: the model's backbone.
      mesh: devices that batches are split over.
      shardings: result of `mesh.backbone_shardings`.
    """
    settings = config.evaluation
    self._config, self._model = config, model
    self._backbone, self._mesh = backbone, mesh
    self._step = make_predict_step(model, mesh, shardings)
    self._make_memory = make_memory_step(model, mesh, shardings)
    self._options = pipeline.make_options(
      *(config, backbone, mesh),
      settings.batch_size or default_batch_size(mesh),
      full_masks=True,
      tile_grid=tiles.parse_grid(settings.tiles),
    )

  def run(
    self,
    trainable: Mapping[str, Any],
    backbone_params: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    num_pictures: int = 0,
    maps_folder: AnyPath | None = None,
    normal: NormalImages | None = None,
  ) -> DatasetResult:
    """Scores every example of a data set once and computes the metrics.

    Args:
      trainable, backbone_params: the model's two parameter trees, on the mesh.
      examples: a data set from `cops_jax.datasets.load`.
      num_pictures: number of pictures of each kind; see `results.Picture`.
      maps_folder: folder for the anomaly maps; None writes none.
      normal: reference images from `normal_images.draw`, or None.

    Raises:
      InputError: if an image cannot be read, its score is not finite, or the
        feature cache cannot be used; see `features.open_features`.
    """
    began = time.monotonic()
    found, errors = Findings(self._config.evaluation.pixel_metrics), []
    score = functools.partial(
      self._score,
      functools.partial(self._params, trainable, backbone_params, normal),
      self._open_features(examples, found.skipped),
      self._find_texts(examples),
      *(found.skipped, errors, examples),
    )
    order = functools.partial(self._order, normal)
    everything = order(range(len(examples)))
    with collect(errors), MapWriter(maps_folder) as maps:
      for row in score(everything, f"evaluating {examples.name}"):
        with collect(errors):
          image = found.add(row, examples.name)
          maps.write(image.category, image.path, row["anomaly_map"])
      if errors:
        raise errors[0]  # Makes MapWriter discard the incomplete maps.
    agree(errors)
    found = found.gather()
    num_images = len(found.images)
    if num_images + len(found.skipped) != len(examples):
      raise AssertionError(
        f"{num_images} images of {examples.name} evaluated and"
        f" {len(found.skipped)} skipped, of {len(examples)}"
      )
    if not num_images:
      path, reason = min(found.skipped.items())
      raise InputError(
        f"no image of {examples.name!r} can be read. The first is {path}:"
        f" {reason}"
      )
    categories = found.categories()
    chosen = found.choose(categories, num_pictures)
    ranges, drawn = found.ranges(), {}
    if chosen:
      rows = score(order({row.index: None for _, row in chosen}))
      drawn = self._draw(rows, examples, ranges, categories, errors)
    return DatasetResult(
      categories,
      sorted(
        (scored.image for scored in found.images),
        key=lambda image: (image.category, image.path),
      ),
      [
        Picture(kind, row.image, drawn[row.index], *ranges[row.image.category])
        for kind, row in chosen
        if row.index in drawn
      ],
      found.skipped,
      notes=count_notes(found.notes),
      normal_images=normal.paths if normal else {},
      seconds=time.monotonic() - began,
      peak_memory_bytes=peak_memory_bytes(),
    )

  def _open_features(self, examples, skipped):
    may_skip = self._config.input.unreadable_files == "skip"
    return open_features(
      self._config,
      examples,
      self._config.evaluation.split,
      self._model,
      self._backbone,
      self._mesh,
      batch_size=self._options.batch_size,
      skipped=skipped if may_skip else None,
    )

  def _find_texts(self, examples):
    """Returns text features by category, or None if the model uses none."""
    if not self._config.model.use_category_names:
      return None
    categories = sorted({example["category"] for example in examples})
    return self._model.category_text_features(self._backbone, categories)

  def _order(self, normal, indices):
    """Returns the indices, grouped by category if there are reference images.

    Each group is padded with None, so that no batch has two categories.
    """
    groups = {}
    for index in indices:
      category = normal.categories[index] if normal else ""
      groups.setdefault(category, []).append(index)
    size = self._options.batch_size if normal else 1
    return [
      index
      for _, group in sorted(groups.items())
      for index in (*group, *[None] * (-len(group) % size))
    ]

  def _params(self, trainable, backbone_params, normal, indices):
    """Yields the parameters of each step: those of a batch and of its tiles.

    With reference images, they include the memory of the batch's category.
    """
    category = None
    for index in indices[:: self._options.batch_size]:
      if normal and normal.categories[index] != category:
        category = normal.categories[index]
        images = normal.pixels[category]
        memory = self._make_memory(backbone_params, images)
        trainable = {**trainable, **memory}
      for _ in range(1 + self._options.num_tiles):
        yield trainable, backbone_params

  def _score(
    self,
    make_params,
    features,
    texts,
    skipped,
    errors,
    examples,
    indices,
    message="",
  ):
    """Yields this process's rows with their scores and anomaly maps."""
    options, params = self._options, make_params(indices)
    may_skip = self._config.input.unreadable_files == "skip"
    progress = Progress(len(examples), "images")
    steps = options.one_pass(len(indices))
    batches = pipeline.keep_pace(
      pipeline.iterate_batches(
        pipeline.Subset(examples, indices),
        options,
        steps,
        skipped=skipped if may_skip else None,
        features=features,
      ),
      *(len(steps), options, features, errors),
    )

    def start(batch):
      if texts:
        default = next(iter(texts.values()))  # Padding has no category.
        rows = [texts.get(str(name), default) for name in batch["category"]]
        batch = {**batch, "text_features": np.stack(rows)}
      batch = shard_batch(batch, self._mesh, STEP_FIELDS)
      return local_rows(self._step(*next(params), batch), self._mesh)

    found = run_ahead(_with_tiles(batches, options.num_tiles), start)
    for step, (batch, whole) in enumerate(found, start=1):
      parts = [part for _, part in itertools.islice(found, options.num_tiles)]
      for place in np.flatnonzero(batch["padding_mask"]):
        row = {field: values[place] for field, values in batch.items()}
        row["index"] = indices[row["index"]]
        yield row | _join([whole, *parts], place, options.tile_grid)
      if message:
        done = min(step * options.batch_size, len(examples))
        progress.update(done, message)

  def _draw(self, rows, examples, ranges, categories, errors):
    """Returns pictures by index; `rows` are scored again for their maps."""
    drawn = {}
    with collect(errors):
      for row in rows:
        with collect(errors):
          index, category = row["index"], str(row["category"])
          low, high = ranges[category]
          # With cached features, the batch has no images.
          shown = read(examples[index]["image"], **self._options.reading)
          drawn[index] = picture_tiles(
            shown.resize(self._options.image_size),
            row["mask"] if row["has_mask"] else None,
            row["anomaly_map"],
            low=low,
            high=high,
            threshold=categories[category].pixel_threshold,
          )
    agree(errors)
    return {
      index: tiles
      for part in gather_objects(drawn)
      for index, tiles in part.items()
    }


def _with_tiles(batches, num_tiles):
  """Yields each batch, then for each tile a copy with the tile as its image."""
  for batch in batches:
    yield batch
    for tile in range(num_tiles):
      yield {**batch, "image": batch["tiles"][:, tile]}


def _join(outputs, place, grid):
  """Merges the outputs for a whole image and for its tiles."""
  found = [
    (output["image_score"][place], output["anomaly_map"][place])
    for output in outputs
  ]
  height, width = found[0][1].shape
  score, anomaly_map = tiles.join(found, grid, (width, height))
  return {"image_score": score, "anomaly_map": anomaly_map}
