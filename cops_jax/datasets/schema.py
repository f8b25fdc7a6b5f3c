"""The fields of an example, which are the same for every data set."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from cops_jax.datasets.layouts import ListedImage
from cops_jax.images.decoding import open_image, read
from cops_jax.images.drawing import to_file
from cops_jax.paths import readable


class ImageFile(tfds.features.Image):
  """The bytes of an image file in any format and mode that PIL reads.

  Decoding returns RGB uint8 (h, w, 3) or, if `shape` is (None, None, 1), grey
  uint8 (h, w, 1).
  """

  def decode_example_np(self, example: bytes) -> np.ndarray:
    if self.shape[-1] == 3:
      return read(example).pixels
    with open_image(example) as mask:
      return np.asarray(mask.convert("L"))[..., None]


class DatasetInfo(tfds.core.DatasetInfo):
  """TFDS's description of a data set that only this package defines."""

  def initialize_from_bucket(self) -> None:
    """Does nothing, because TFDS's bucket has no description of the data set.

    TFDS's own method leaves an empty temporary folder at each call.
    """


def example_features() -> tfds.features.FeaturesDict:
  """Returns the TFDS features; images and masks are stored as file bytes."""
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
  """The undecoded examples of a split, returned by `cops_jax.datasets.load`."""

  def categories_and_labels(self) -> list[tuple[str, int]]:
    """Returns the category and label of each example without decoding images.

    Reads a prepared split once; the 400 MB of VisA take 0.4 s from memory.
    """
    return [(example["category"], int(example["label"])) for example in self]


def file_example(
  record: ListedImage, root: pathlib.Path, dataset: str
) -> dict[str, Any]:
  """Returns the example of an original file.

  The image and the mask are paths. Several masks are a list of paths; a missing
  mask is a PNG of one black pixel, as bytes.
  """
  # pathlib's relative_to takes ten times as long.
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


EMPTY_MASK = to_file(Image.new("L", (1, 1)), "PNG")
