"""Results stored in a run directory and reused only for the same inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from cops_jax.config import complete, decides
from cops_jax.errors import InputError
from cops_jax.evaluation.results import (
  CategoryResult,
  DatasetResult,
  ImageResult,
  Picture,
  without_nan,
)
from cops_jax.field_types import Role
from cops_jax.files import (
  delete,
  find_files,
  read_file,
  seal,
  unseal,
  write_file,
)
from cops_jax.paths import AnyPath
from cops_jax.runtime.processes import gather_objects

_logger = logging.getLogger(__name__)


class StoredResult:
  """A data set's result in evaluation/NAME.json, stored with its inputs.

  Attributes:
    maps_folder: the folder maps/NAME, or None if maps are not saved.
  """

  def __init__(
    self,
    workdir: AnyPath,
    examples: Sequence[Mapping[str, Any]],
    fingerprint: str,
    provenance: Mapping[str, Any],
    save_maps: bool,
  ):
    """Determines the file and the inputs; writes nothing.

    `provenance` is the field of `results.Evaluated`, with the SHA-256 of the
    reference images. If `save_maps` is True, the result includes anomaly maps.
    """
    names = (
      "version",
      "prompts_sha256",
      "backbone_sha256",
      "normal_images_sha256",
    )
    config = complete(provenance["config"])
    key = {name: provenance[name] for name in names} | {
      "config": {
        name: value
        for name, value in config.items()
        if decides(name, Role.RESULTS)
      },
      "dataset": examples.name,
      "fingerprint": fingerprint,
      "num_images": len(examples),
    }
    # The stored key has lists in place of tuples.
    self._key = json.loads(json.dumps(key))
    self._path = workdir / "evaluation" / f"{examples.name}.json"
    self.maps_folder = workdir / "maps" / examples.name if save_maps else None

  def read(self) -> DatasetResult | None:
    """Returns the stored result, or None if the evaluation must be repeated.

    It must be repeated if an input changed, if the stored file is damaged
    (which is reported), or if files were skipped, which may be readable now.
    """
    result = None
    try:
      stored = unseal(read_file(self._path))
      if stored["key"] == self._key and (
        not self.maps_folder or stored["maps"] == self._find_maps()
      ):
        result = _from_values(stored["result"])
        result = None if result.skipped else result
    except FileNotFoundError:
      pass
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
      _logger.warning("%s cannot be reused: %s", self._path, error)
    if result is None and self.maps_folder and jax.process_index() == 0:
      # If this fails, writing fails too and reports the reason.
      with contextlib.suppress(OSError):
        # A folder never contains maps of two evaluations.
        delete(self._path)
        for name in self._find_maps(".partial"):  # A killed process left them.
          delete(self.maps_folder / name)
    # Either all processes evaluate or none does.
    if not all(gather_objects(result is not None)):
      return None
    _logger.info("using the stored result %s", self._path)
    return result

  def _find_maps(self, *suffixes):
    return {
      name: size
      for name, size in find_files(self.maps_folder).items()
      if name.endswith((".npz", *suffixes))
    }

  def write(self, result: DatasetResult) -> None:
    """Stores the result; logs a warning if it cannot be written."""
    if jax.process_index() > 0:
      return
    content = {
      "key": self._key,
      "maps": self._find_maps() if self.maps_folder else None,
      "result": without_nan(dataclasses.asdict(result)),
    }
    try:
      write_file(self._path, seal(content))
    except (InputError, OSError) as error:
      _logger.warning("the result is not stored: %s", error)


def _with_nan(values):
  """Returns values with NaN for None, which is how JSON stores NaN."""
  return {
    name: math.nan if value is None else value for name, value in values.items()
  }


def _from_values(values):
  pictures = [
    Picture(**{**row, "image": ImageResult(**row["image"])})
    for row in values["pictures"]
  ]
  categories = {
    name: CategoryResult(
      **_with_nan(row) | {"metrics": _with_nan(row["metrics"])}
    )
    for name, row in values["categories"].items()
  }
  images = [ImageResult(**row) for row in values["images"]]
  nested = dict(categories=categories, images=images, pictures=pictures)
  return DatasetResult(**values | nested)
