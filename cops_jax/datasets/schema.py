"""The fields of an example, the same for every data set."""

from __future__ import annotations

import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from cops_jax.datasets.layouts import ListedImage
from cops_jax.images.decoding import open_image, read
from cops_jax.paths import readable


class ImageFile(tfds.features.Image):
  """An image file's bytes, in any format and mode that PIL reads.

  Decoded to uint8 (h, w, 3) or, with `shape` (None, None, 1), grey (h, w, 1).
  """

  def decode_example_np(self, example: bytes) -> np.ndarray:
    if self.shape[-1] == 3:
      return read(example).pixels
    with open_image(example) as mask:
      return np.asarray(mask.convert("L"))[..., None]


class DatasetInfo(tfds.core.DatasetInfo):
  """TFDS's description of a data set that only this package has."""

  def initialize_from_bucket(self) -> None:
    """Does nothing: TFDS's own bucket has no description of it.

    TFDS's method would leave an empty temporary folder at each call.
    """


def example_features() -> tfds.features.FeaturesDict:
  """TFDS features; images and masks keep their files' bytes and format."""
  features = tfds.features
  return features.FeaturesDict(
    {
      "image": ImageFile(shape=(None, None, 3)),
      "mask": ImageFile(shape=(None, None, 1)),
      "has_mask": np.bool_,
      "label": features.ClassLabel(names=["normal", "anomaly"]),
      "category": features.Text(),
      "anomaly_kind": features.Text(),
      "dataset": features.Text(),
      "path": features.Text(),
      "id": features.Text(),
    }
  )


class Examples(Sequence):
  """The undecoded examples of a split, see `cops_jax.datasets.load`."""

  def categories_and_labels(self) -> list[tuple[str, int]]:
    """Returns each example's category and label, without decoding an image.

    Reads a prepared split once: 400 MB, as of VisA, in 0.4 s from memory.
    """
    return [(example["category"], int(example["label"])) for example in self]


def file_example(
  record: ListedImage, root: pathlib.Path, dataset: str
) -> dict[str, Any]:
  """The example of one original file.

  Image and mask are paths; several masks are a list of them, and without one it
  is the bytes of a black pixel's PNG.
  """
  # As pathlib's relative_to, in a tenth of its time.
  path = os.fspath(record.image).removeprefix(os.fspath(root)).lstrip("/")
  path = readable(path)
  masks = list(record.masks)
  return {
    "image": record.image,
    "mask": masks if masks[1:] else masks[0] if masks else EMPTY_MASK,
    "has_mask": record.has_mask,
    "label": int(record.is_anomaly),
    "category": record.category,
    "anomaly_kind": record.anomaly_kind,
    "dataset": dataset,
    "path": path,
    "id": path,
  }


_file = io.BytesIO()
Image.new("L", (1, 1)).save(_file, "PNG")
EMPTY_MASK = _file.getvalue()
