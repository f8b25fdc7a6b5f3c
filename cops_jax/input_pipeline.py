"""From files' bytes to batches, with Grain.

A batch is a function of the data set, the seed and the step alone: nothing of
the iterator needs saving, and any number of hosts sees the same global order.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cops_jax.errors import InputError
from cops_jax.typing import Integer

_NUM_THREADS = 4
_PREFETCH_BATCHES = 2


def decode_image(data: bytes, size: int) -> Integer[np.ndarray, "h w 3"]:
  """An image file as uint8 RGB of side `size`.

  Resized with PIL's bicubic filter in the mode that the file has, its aspect
  ratio not kept, then converted to RGB.
  """
  from PIL import Image

  with Image.open(io.BytesIO(data)) as image:
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGB"))


def decode_mask(data: bytes, size: int) -> Integer[np.ndarray, "h w"]:
  """A mask file as 0 and 1, uint8, of side `size`.

  Grey values above 0 become 255; resized with PIL's bilinear filter, a pixel
  belongs to the mask from one half.
  """
  from PIL import Image

  with Image.open(io.BytesIO(data)) as mask:
    binary = np.asarray(mask.convert("L")) > 0
  resized = Image.fromarray(binary.astype(np.uint8) * 255).resize(
    (size, size), Image.Resampling.BILINEAR
  )
  return (np.asarray(resized) / 255 > 0.5).astype(np.uint8)


def count_mask_pixels(
  mask: Integer[np.ndarray, "h w"], patch_size: int
) -> Integer[np.ndarray, "n"]:
  """Mask pixels in each patch, int32, in row-major order."""
  side = mask.shape[0] // patch_size
  blocks = mask.reshape(side, patch_size, side, patch_size)
  return blocks.sum(axis=(1, 3), dtype=np.int32).reshape(-1)


def hash_example_id(dataset: str, example_id: str) -> np.uint32:
  """The number that keys an example's noise."""
  digest = hashlib.sha256(f"{dataset}/{example_id}".encode()).digest()
  return np.uint32(int.from_bytes(digest[:4], "little"))


def load_example(
  example: Mapping[str, Any], image_size: int, patch_size: int
) -> dict[str, np.ndarray]:
  """Decodes one example of a data set into a batch's fields.

  Raises:
    InputError: the image or the mask cannot be decoded; names the file.
  """

  def decode(decoder, field):
    try:
      return decoder(example[field], image_size)
    except Exception as error:  # PIL raises what its many decoders raise.
      raise InputError(
        f"cannot read the {field} of {example['path']} in data set"
        f" {example['dataset']!r}: {error}. Replace the file and delete"
        " the prepared copy in the data directory; it is then made anew."
      ) from error

  mask = decode(decode_mask, "mask")
  return {
    "image": decode(decode_image, "image"),
    "mask": mask,
    "mask_counts": count_mask_pixels(mask, patch_size),
    "has_mask": np.bool_(example["has_mask"]),
    "label": np.int32(example["label"]),
    "category": np.str_(example["category"]),
    "path": np.str_(example["path"]),
    "example_id": hash_example_id(example["dataset"], example["id"]),
    "padding_mask": np.bool_(True),
  }


def num_batches(num_examples: int, batch_size: int) -> int:
  """Batches in one pass over the examples, the short last one included."""
  return -(-num_examples // batch_size)


def iterate_batches(
  examples: Sequence[Mapping[str, Any]],
  *,
  image_size: int,
  patch_size: int,
  batch_size: int,
  num_devices: int = 1,
  steps: range,
  shuffle_seed: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this process's part of each global batch.

  Args:
    examples: a data set, see `cops_jax.datasets`.
    image_size: pixels, a multiple of `patch_size`.
    patch_size: pixels.
    batch_size: examples in a global batch. An epoch's last batch may hold less.
    num_devices: batches are padded to a multiple of it.
    steps: which batches; step numbers run on from epoch to epoch.
    shuffle_seed: every epoch is shuffled anew with it; None keeps the order.
    process_index, process_count: which contiguous part of each batch to yield.

  Yields:
    image uint8 (b, h, w, 3), mask uint8 (b, h, w), mask_counts int32 (b, n);
    has_mask bool, label int32, category and path str, example_id uint32 and
    padding_mask bool, all (b,). Padding has padding_mask False and zeros.

  Raises:
    InputError: an example cannot be decoded.
  """
  import grain

  padded_size = num_batches(batch_size, num_devices) * num_devices
  local_size = padded_size // process_count
  epoch_steps = num_batches(len(examples), batch_size)

  @functools.lru_cache(maxsize=2)
  def epoch_order(epoch):
    if shuffle_seed is None:
      return np.arange(len(examples))
    return np.random.default_rng((shuffle_seed, epoch)).permutation(
      len(examples)
    )

  def load(position):
    step, slot = divmod(position, local_size)
    slot += process_index * local_size
    epoch, epoch_step = divmod(steps[step], epoch_steps)
    place = epoch_step * batch_size + slot
    if slot >= batch_size or place >= len(examples):
      return _padding(image_size, patch_size)
    example = examples[int(epoch_order(epoch)[place])]
    return load_example(example, image_size, patch_size)

  dataset = grain.MapDataset.range(len(steps) * local_size).map(load)
  yield from dataset.to_iter_dataset(
    grain.ReadOptions(
      num_threads=_NUM_THREADS,
      prefetch_buffer_size=_PREFETCH_BATCHES * local_size,
    )
  ).batch(local_size)


def _padding(image_size, patch_size):
  num_patches = (image_size // patch_size) ** 2
  return {
    "image": np.zeros((image_size, image_size, 3), np.uint8),
    "mask": np.zeros((image_size, image_size), np.uint8),
    "mask_counts": np.zeros(num_patches, np.int32),
    "has_mask": np.bool_(False),
    "label": np.int32(0),
    "category": np.str_(""),
    "path": np.str_(""),
    "example_id": np.uint32(0),
    "padding_mask": np.bool_(False),
  }
