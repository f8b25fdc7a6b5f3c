"""TFDS builders of published data sets: one class, a table of rows."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from cops_jax.datasets.features import example_features
from cops_jax.datasets.layouts import Record, read_mvtec, read_visa
from cops_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Specification:
  """A row of the table: what tells one published data set from another."""

  name: str
  categories: Sequence[str]
  read: Callable[[pathlib.Path, Sequence[str]], Iterator[Record]]
  description: str
  homepage: str
  citation: str


SPECIFICATIONS = (
  Specification(
    name="mvtec_ad",
    categories=(
      *("carpet", "grid", "leather", "tile", "wood", "bottle", "cable"),
      *("capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush"),
      *("transistor", "zipper"),
    ),
    read=read_mvtec,
    description=(
      "MVTec AD: ten objects and five textures from industry, with 73 kinds of"
      " defects. Licence: CC BY-NC-SA 4.0, not for commercial use."
    ),
    homepage="https://www.mvtec.com/company/research/datasets/mvtec-ad",
    citation=(
      "Bergmann, Fauser, Sattlegger, Steger: MVTec AD - A Comprehensive"
      " Real-World Dataset for Unsupervised Anomaly Detection. CVPR 2019."
    ),
  ),
  Specification(
    name="visa",
    categories=(
      *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1"),
      *("macaroni2", "pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
    ),
    read=read_visa,
    description=(
      "VisA: twelve objects of three kinds, circuit boards among them."
      " Licence: CC BY 4.0."
    ),
    homepage="https://github.com/amazon-science/spot-diff",
    citation=(
      "Zou, Jeong, Pemula, Zhang, Dabeer: SPot-the-Difference Self-Supervised"
      " Pre-training for Anomaly Detection and Segmentation. ECCV 2022."
    ),
  ),
)


def _empty_mask() -> bytes:
  file = io.BytesIO()
  Image.new("L", (1, 1)).save(file, "PNG")
  return file.getvalue()


class _Published(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The original files of a published data set, bytes unchanged."""

  VERSION = tfds.core.Version("1.0.0")

  specification: Specification

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.specification.description,
      homepage=self.specification.homepage,
      citation=self.specification.citation,
      features=example_features(),
    )

  def _split_generators(self, dl_manager) -> dict[str, Any]:
    specification = self.specification
    try:
      root = pathlib.Path(dl_manager.manual_dir) / specification.name
    except AssertionError as error:  # TFDS's, with the directory and our hint.
      raise InputError(
        f"data set {specification.name!r} is not prepared: {error}"
      ) from error
    if not root.is_dir():
      raise InputError(
        f"data set {specification.name!r} is not prepared, and its original"
        f" files are not in {root}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
      )
    # All of it is listed before anything is written.
    records = list(specification.read(root, specification.categories))
    return {
      split: self._generate_examples(
        root, [record for record in records if record.split == split]
      )
      for split in sorted({record.split for record in records})
    }

  def _generate_examples(
    self, root: pathlib.Path, records: Sequence[Record]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for record in records:
      path = record.image.relative_to(root).as_posix()
      yield (
        path,
        {
          "image": record.image.read_bytes(),
          "mask": record.mask.read_bytes() if record.mask else _empty_mask(),
          "has_mask": True,
          "label": int(record.mask is not None),
          "category": record.category,
          "anomaly_kind": record.anomaly_kind,
          "dataset": self.name,
          "path": path,
          "id": path,
        },
      )


# Each registers itself with TFDS under its name.
_BUILDERS = {
  row.name: type(
    "".join(part.capitalize() for part in row.name.split("_")),
    (_Published,),
    {
      "name": row.name,
      "specification": row,
      "MANUAL_DOWNLOAD_INSTRUCTIONS": (
        f"Get the data set from {row.homepage} and unpack it there into the"
        f" folder {row.name}, or set config.manual_dir to where that folder is."
      ),
      "__module__": __name__,
      "__doc__": row.description,
    },
  )
  for row in SPECIFICATIONS
}
