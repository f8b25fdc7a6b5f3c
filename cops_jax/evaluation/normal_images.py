"""A few normal images of each category, and the memory of their patches."""

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
from cops_jax.typing import Integer

SPLIT = "train"


@dataclasses.dataclass(frozen=True)
class NormalImages:
  """Normal images of each category of a data set.

  Attributes:
    categories: of the examples that are to be evaluated, in their order.
    paths: by category, sorted.
    pixels: by category, uint8 (k, h, w, 3); after each image its tiles.
  """

  categories: Sequence[str]
  paths: Mapping[str, Sequence[str]]
  pixels: Mapping[str, Integer[np.ndarray, "k h w 3"]]

  @property
  def sha256(self) -> str:
    """SHA-256 of the categories and their pixels, in hexadecimal."""
    rows = sorted((name, hash_images(self.pixels[name])) for name in self.paths)
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def hash_images(images: Iterable[Integer[np.ndarray, "h w 3"]]) -> str:
  """Returns one SHA-256 of images, in any order, in hexadecimal."""
  digests = sorted(
    hashlib.sha256(np.ascontiguousarray(image)).digest() for image in images
  )
  return hashlib.sha256(b"".join(digests)).hexdigest()


def draw(
  config: Any, name: str, examples: Sequence[Mapping[str, Any]]
) -> NormalImages | None:
  """Draws normal images of the training split for each category.

  An image is drawn by the hash of the seed and its id, so the choice does not
  depend on order, batches or processes, all of which call this.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    name: the data set's, see `datasets.load`.
    examples: that are to be evaluated.

  Returns:
    None if the config wants none.

  Raises:
    InputError: there is no training split, a category has too few normal
      images in it, or an image cannot be read.
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
      f"config.evaluation.num_normal_images is {number}, and normal images are"
      f" drawn from the split {SPLIT!r}: {error}"
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
        f"config.evaluation.num_normal_images is {number}, and the split"
        f" {SPLIT!r} of data set {name!r} has {len(places)} normal images of"
        f" {category!r}"
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
  """Returns the step from normal images to the memory of their patches.

  Args:
    model: a method's.
    mesh: to split batches over.
    backbone_shardings: None if every device has a copy.

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
  # Each process puts its own rows on its devices.
  process, processes = 0, 1
  if mesh.is_multi_process:
    process, processes = jax.process_index(), jax.process_count()

  def step(backbone_params, images):
    # A batch is no larger than necessary.
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
