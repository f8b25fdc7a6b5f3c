"""TFDS builders that generate the demo's data and write it as PNG files."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from cops_jax.datasets import generated
from cops_jax.datasets.schema import DatasetInfo, example_features


def _png(array: np.ndarray) -> io.BytesIO:
  file = io.BytesIO()
  Image.fromarray(array).save(file, "PNG", compress_level=1)
  file.seek(0)
  return file


class _Demo(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A `test` split of normal and defective images of some categories."""

  VERSION = tfds.core.Version("1.0.0")

  categories: Sequence[str]
  anomaly_kinds: Sequence[str]
  num_normal: int  # Images of a category.
  num_of_each_kind: int  # Images of a category and an anomaly kind.

  def _info(self) -> DatasetInfo:
    return DatasetInfo(
      builder=self,
      description=(
        "Generated photographs of surfaces and objects, with defects and their"
        " masks. Made for this project; free to use."
      ),
      features=example_features(),
    )

  def _split_generators(self, dl_manager) -> dict[str, Any]:
    return {"test": self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
    numbers = {"good": self.num_normal}
    numbers |= dict.fromkeys(self.anomaly_kinds, self.num_of_each_kind)
    for category in self.categories:
      for kind, number in numbers.items():
        for index in range(number):
          example_id = f"{category}/test/{kind}/{index:03}"
          seed = zlib.crc32(f"{self.name}/{example_id}".encode())
          image, mask = generated.generate(
            category,
            None if kind == "good" else kind,
            np.random.default_rng(seed),
          )
          yield (
            example_id,
            {
              "image": _png(image),
              "mask": _png(mask.astype(np.uint8) * 255),
              "has_mask": True,
              "label": int(kind != "good"),
              "category": category,
              "anomaly_kind": kind,
              "dataset": self.name,
              "path": f"{example_id}.png",
              "id": example_id,
            },
          )


class DemoAuxiliary(_Demo):
  """What prompts are trained on: six categories, the seen defect kinds."""

  name = "demo_auxiliary"
  categories = generated.TRAINING_CATEGORIES
  anomaly_kinds = tuple(generated.SEEN_DEFECTS)
  num_normal = 48
  num_of_each_kind = 4


class DemoUnseen(_Demo):
  """Six categories never seen in any training, and five more defect kinds."""

  name = "demo_unseen"
  categories = generated.EVALUATION_CATEGORIES
  anomaly_kinds = tuple(generated.DEFECTS)
  num_normal = 51
  num_of_each_kind = 3


BUILDERS = {builder.name: builder for builder in (DemoAuxiliary, DemoUnseen)}
