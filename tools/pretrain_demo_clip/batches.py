"""Batches of generated images with and without defects, and their captions."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cops_jax.datasets import generated
from cops_jax.typing import Bool, Float, Integer
from tools.pretrain_demo_clip import captions
from tools.pretrain_demo_clip.categories import CATEGORIES
from tools.pretrain_demo_clip.model import IMAGE_SIZE, PATCH_SIZE

Tokenize = Callable[[Sequence[str]], Integer[np.ndarray, "b l"]]


def augment(
  rng: np.random.Generator,
  images: Sequence[Integer[np.ndarray, "h w 3"]],
  mask: Bool[np.ndarray, "h w"],
) -> tuple[list[Integer[np.ndarray, "h w 3"]], Bool[np.ndarray, "h w"]]:
  """Flips, turns and recolours both images of a pair and their mask equally."""
  turns, flip = rng.integers(4), rng.random() < 0.5
  channels, invert = rng.permutation(3), rng.random() < 0.25

  def turn(array):
    array = np.rot90(array, turns)
    return array[:, ::-1] if flip else array

  images = [turn(image)[..., channels] for image in images]
  if invert:
    images = [255 - image for image in images]
  return images, turn(mask)


def draw_pair(
  rng: np.random.Generator, category: str, kind: int, size: int
) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, "h w"]]:
  """Draws the same image with and without a defect, and crops both equally.

  `kind` is the index of the defect in `captions.KINDS`.

  Returns:
    The normal and the defective image, uint8 (size, size, 3), and the mask of
    the defect, bool (size, size). The defect can be outside the crop.
  """
  defective, normal, mask = generated.generate_pair(
    CATEGORIES[category], captions.KINDS[kind], rng, IMAGE_SIZE
  )
  (defective, normal), mask = augment(rng, (defective, normal), mask)
  top, left = rng.integers(0, IMAGE_SIZE - size + 1, 2)
  crop = np.s_[top : top + size, left : left + size]
  return normal[crop], defective[crop], mask[crop]


def patch_shares(mask: Bool[np.ndarray, "b h w"]) -> Float[np.ndarray, "b n"]:
  """Returns the share of mask pixels in each patch, in [0, 1]."""
  number, size, _ = mask.shape
  grid = size // PATCH_SIZE
  blocks = mask.reshape(number, grid, PATCH_SIZE, grid, PATCH_SIZE)
  return blocks.mean(axis=(2, 4)).reshape(number, -1)


def draw_batch(
  rng: np.random.Generator, tokenize: Tokenize, num_pairs: int, size: int
) -> dict[str, np.ndarray]:
  """Draws a batch of pairs: all normal images, then all defective images.

  Each pair is of a different category. The batch size b is 2 * num_pairs. The
  size of images is a multiple of the patch size.

  Returns:
    Arrays by name:
      image: uint8 (b, size, size, 3).
      share: share of defect pixels in each patch, (b, n).
      kind: index of the defect of the image's pair, (b,).
      is_defective: bool (b,).
      same_text: True where two images have captions of equal meaning, bool
        (b, b).
      caption: token ids, (b, l).
      state_text, attribute_text: token ids, (texts, l), see `captions`.
  """
  names = rng.permutation(list(CATEGORIES))[:num_pairs]
  rows = []
  for name in names:
    kind = int(rng.integers(len(captions.KINDS)))
    rows.append((*draw_pair(rng, name, kind, size), kind))
  normal, defective, mask, kind = zip(*rows, strict=True)
  mask, kind = np.stack(mask), np.array(kind)
  share = patch_shares(mask)
  is_defective = mask.any(axis=(1, 2))

  texts = [captions.draw_caption(rng, name, False, 0) for name in names]
  texts += [
    captions.draw_caption(rng, name, bad, k)
    for name, bad, k in zip(names, is_defective, kind, strict=True)
  ]
  state_texts = captions.draw_state_texts(rng)
  # Texts of the same state and category are not negatives of each other.
  meanings = np.array(
    [f"{name} good" for name in names]
    + [
      f"{name} {'bad' if bad else 'good'}"
      for name, bad in zip(names, is_defective, strict=True)
    ]
  )
  return dict(
    image=np.stack(normal + defective),
    share=np.concatenate([np.zeros_like(share), share]),
    kind=np.tile(kind, 2),
    is_defective=np.concatenate([np.zeros(num_pairs, bool), is_defective]),
    same_text=meanings[:, None] == meanings[None],
    caption=tokenize(texts),
    state_text=tokenize(state_texts),
    attribute_text=tokenize(captions.attribute_texts()),
  )


def prefetched_batches(
  seed: int, tokenize: Tokenize, num_pairs: int, sizes: Sequence[int]
) -> Iterator[dict[str, np.ndarray]]:
  """Yields a batch for each of `sizes`, drawn by a thread while XLA computes.

  A batch depends on the seed and on its number.
  """
  batches = queue.Queue(maxsize=4)

  def work():
    for step, size in enumerate(sizes):
      rng = np.random.default_rng((seed, step))
      batches.put(draw_batch(rng, tokenize, num_pairs, size))

  threading.Thread(target=work, daemon=True).start()
  return (batches.get() for _ in sizes)
