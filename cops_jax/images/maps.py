"""Writes raw anomaly maps to files, one for each category."""

from __future__ import annotations

import contextlib
import urllib.parse
import zipfile

import jax
import numpy as np

from cops_jax.errors import InputError
from cops_jax.files import whole_file
from cops_jax.paths import AnyPath
from cops_jax.typing import Float


class MapWriter:
  """Context manager that writes CATEGORY.npz files.

  `numpy.load` reads them; they contain float16 maps (h, w) by image path. Maps
  are written one at a time, and files appear under their names only when all
  are complete. Each process of a cluster writes its own CATEGORY-PROCESS.npz.

  Args:
    folder: output folder, created if missing; None writes nothing.
  """

  def __init__(self, folder: AnyPath | None):
    self._folder = folder
    self._files = {}
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> MapWriter:
    return self

  def write(
    self, category: str, path: str, anomaly_map: Float[np.ndarray, "h w"]
  ) -> None:
    """Adds the map of an image under the path of the image.

    Raises:
      InputError: if the map cannot be written.
    """
    if self._folder is None:
      return
    try:
      if category not in self._files:
        self._files[category] = self._open(category)
      with self._files[category].open(f"{path}.npy", "w") as file:
        np.lib.format.write_array(file, anomaly_map.astype(np.float16))
    except OSError as error:
      raise InputError(
        f"anomaly maps cannot be written to {self._folder}: {error.strerror}."
        " Free disk space, or run the command without --save_maps."
      ) from error

  def _open(self, category):
    process = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
    name = f"{urllib.parse.quote(category, safe=' ')}{process}.npz"
    partial = self._stack.enter_context(whole_file(self._folder / name))
    return self._stack.enter_context(
      zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED)
    )

  def __exit__(self, *error) -> None:
    self._stack.__exit__(*error)
