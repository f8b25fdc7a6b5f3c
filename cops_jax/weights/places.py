"""The names and layouts of parameters in files of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from cops_jax.weights.tensor_files import check_tensors


class Place(NamedTuple):
  """Name and layout of a parameter in a file.

  Attributes:
    name: name of the tensor in the file.
    axes: axes of the tensor in the order of the parameter's axes.
    part: index of the parameter if the tensor stacks three of them, or None.
  """

  name: str
  axes: tuple[int, ...]
  part: int | None = None

  def file_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the tensor for the shape of the parameter."""
    shape = tuple(shape[axis] for axis in np.argsort(self.axes))
    return shape if self.part is None else (3 * shape[0], *shape[1:])

  def from_file(self, tensor: np.ndarray) -> np.ndarray:
    """Returns the parameter, float32, in the tensor from the file."""
    if self.part is not None:
      tensor = np.split(tensor, 3)[self.part]
    return np.asarray(np.transpose(tensor, self.axes), np.float32)


def flax_place(name: str, num_axes: int) -> Place:
  """Returns a parameter's place in a file with flax's names."""
  return Place(name, tuple(range(num_axes)))


def torch_place(name: str, num_axes: int) -> Place:
  """Returns a parameter's place in a file with torch's names and axes."""
  stem, _, leaf = name.rpartition(".")
  if leaf == "kernel":
    # Dense: out in -> in out. Convolution: out in h w -> h w in out.
    return Place(f"{stem}.weight", (1, 0) if num_axes == 2 else (2, 3, 1, 0))
  if leaf in ("scale", "embedding"):
    name = f"{stem}.weight"
  return flax_place(name, num_axes)


def params_from_tensors(
  tensors: Mapping[str, np.ndarray],
  shapes: Mapping[str, Any],
  place: Callable[[str, int], Place],
  source: str,
) -> Mapping[str, Any]:
  """Returns a tree of float32 parameters from a file's tensors.

  Args:
    tensors: arrays by their names in the file.
    shapes: tree of `jax.ShapeDtypeStruct`s of the parameters.
    place: function from a parameter's dotted name and number of axes to its
      place.
    source: beginning of an error's message, which names the file.

  Raises:
    InputError: if tensors are missing, unexpected or of another shape. The
      message lists all of them.
  """
  shapes = flax.traverse_util.flatten_dict(shapes, sep=".")
  places = {name: place(name, leaf.ndim) for name, leaf in shapes.items()}
  expected = {
    place.name: place.file_shape(shapes[name].shape)
    for name, place in places.items()
  }
  check_tensors(tensors, expected, source)
  params = {
    name: place.from_file(tensors[place.name]) for name, place in places.items()
  }
  return flax.traverse_util.unflatten_dict(params, sep=".")
