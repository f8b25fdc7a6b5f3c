"""Reference images of each category, and the memory of their patches."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from cops_jax import scoring
from cops_jax.backbones.features import encode_batch
from cops_jax.config import reading
from cops_jax.errors import InputError
from cops_jax.evaluation.step import MEMORY
from cops_jax.images import read, tiles
from cops_jax.inputs import load_examples
from cops_jax.inputs.pipeline import num_batches
from cops_jax.runtime.mesh import (
  default_batch_size,
  jit_step,
  replicated_sharding,
  shard_batch,
)
from cops_jax.runtime.processes import in_all_processes, require_same
from cops_jax.tables import count_of
from cops_jax.typing import Integer

SPLIT = "train"


@dataclasses.dataclass(frozen=True)
class NormalImages:
  """Reference images of each category of a data set.

  Attributes:
    categories: categories of the evaluated examples, in their order.
    paths: sorted paths of the reference images by category.
    pixels: images by category, uint8 (k, h, w, 3); each is followed by its
      tiles.
  """

  categories: Sequence[str]
  paths: Mapping[str, Sequence[str]]
  pixels: Mapping[str, Integer[np.ndarray, "k h w 3"]]

  @property
  def sha256(self) -> str:
    """Hexadecimal SHA-256 of the categories and their pixels."""
    rows = sorted((name, hash_images(self.pixels[name])) for name in self.paths)
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def hash_images(images: Iterable[Integer[np.ndarray, "h w 3"]]) -> str:
  """Returns the hexadecimal SHA-256 of images; their order does not matter."""
  digests = sorted(
    hashlib.sha256(np.ascontiguousarray(image)).digest() for image in images
  )
  return hashlib.sha256(b"".join(digests)).hexdigest()


def draw(
  config: Any, name: str, examples: Sequence[Mapping[str, Any]]
) -> NormalImages | None:
  """Draws reference images for each category from the training split.

  An image is drawn by the hash of the seed and its id, so the choice does not
  depend on order, batches or processes. All processes call this function.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    name: name of the data set, see `datasets.load`.
    examples: examples to evaluate.

  Returns:
    The reference images, or None if config.evaluation.num_normal_images is 0.

  Raises:
    InputError: if an image cannot be read, or the training split is missing or
      has too few normal images of a category.
  """
  if not config.evaluation.num_normal_images:
    return None
  found = in_all_processes(_draw, config, name, examples)
  require_same({f"SHA-256 of the normal images of {name!r}": found.sha256})
  return found


def _draw(config, name, examples):
  number = config.evaluation.num_normal_images
  try:
    normal = load_examples(config, name, SPLIT)
  except InputError as error:
    raise InputError(
      f"config.evaluation.num_normal_images is {number}, but the split"
      f" {SPLIT!r}, from which reference images are drawn, cannot be read:"
      f" {error}"
    ) from error
  categories = [row[0] for row in examples.categories_and_labels()]
  ranked = {category: [] for category in sorted(set(categories))}
  for place, row in enumerate(normal):
    if row["category"] in ranked and row["label"] == scoring.NORMAL:
      rank = hashlib.sha256(f"{config.seed}/{row['id']}".encode()).digest()
      ranked[row["category"]].append((rank, place))
  grid = tiles.parse_grid(config.evaluation.tiles)
  size, options = config.model.image_size_pixels, reading(config)
  paths, pixels = {}, {}
  for category, places in ranked.items():
    if len(places) < number:
      raise InputError(
        f"config.evaluation.num_normal_images is {number}, but the split"
        f" {SPLIT!r} of data set {name!r} has"
        f" {count_of(len(places), 'normal image')} of {category!r}. Choose a"
        " smaller number."
      )
    rows = [normal[place] for _, place in sorted(places)[:number]]
    paths[category], images = sorted(row["path"] for row in rows), []
    for row in rows:
      image = read(row["image"], name=row["path"], **options)
      images.append(image.resize(size))
      if grid != tiles.WHOLE:
        images += list(tiles.cut(image, grid, size))
    pixels[category] = np.stack(images)
  return NormalImages(categories, paths, pixels)


def make_memory_step(
  model: nn.Module,
  mesh: Mesh,
  backbone_shardings: Sharding | Mapping[str, Any] | None = None,
) -> Callable[..., dict[str, Any]]:
  """Returns the step from reference images to the memory of their patches.

  Args:
    model, mesh, backbone_shardings: see `step.make_predict_step`.

  Returns:
    `step(backbone_params, images)`, which all processes call with the same
    images, uint8 (k, h, w, 3). It returns a subtree for the trainable tree,
    {"memory": {"patches": (f, k * n, d)}}, float32, on every device.
  """

  def encode(backbone_params, batch):
    return encode_batch(model, backbone_params, batch)[1]

  encode = jit_step(encode, mesh, backbone_shardings, num_replicated=0)
  join = jax.jit(
    lambda parts, number: scoring.make_memory(
      jax.numpy.concatenate(parts)[:number]
    ),
    static_argnums=1,
    out_shardings=replicated_sharding(mesh),
  )
  # Each process places its part of a batch on its own devices.
  process, processes = 0, 1
  if mesh.is_multi_process:
    process, processes = jax.process_index(), jax.process_count()

  def step(backbone_params, images):
    # The smallest batch that holds the images, up to the default size.
    number = num_batches(len(images), mesh.size) * mesh.size
    size, parts = min(number, default_batch_size(mesh)), []
    local_size = size // processes
    first = process * local_size
    for start in range(first, first + len(images), size):
      rows = np.zeros((local_size, *images.shape[1:]), np.uint8)
      own = images[start : start + local_size]
      rows[: len(own)] = own
      batch = shard_batch({"image": rows}, mesh)
      parts.append(encode(backbone_params, batch))
    return {MEMORY: {"patches": join(parts, len(images))}}

  return step
