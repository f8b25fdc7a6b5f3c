"""The metrics of a training, and their curves."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

from cops_jax.errors import InputError, needs_extra
from cops_jax.files import read_file, to_json, write_file
from cops_jax.paths import AnyPath, is_address

_METRICS_FILE = "metrics.jsonl"
_CURVES_FILE = "losses.png"
# Prefix of the names of measured times, which differ between equal runs.
TIME_PREFIX = "time/"


def import_writers() -> Any:
  """Returns the clu module that writes TensorBoard's files.

  Raises:
    InputError: if the extra [tensorboard] is not installed.
  """
  packages = ("clu", "tensorboard", "tensorflow")
  with needs_extra("config.train.use_tensorboard", "tensorboard", *packages):
    from clu import metric_writers
  return metric_writers


class RunLog:
  """Writer of metrics.jsonl and, on request, of TensorBoard's files.

  In a cluster only the first process uses it.
  """

  def __init__(self, workdir: AnyPath, use_tensorboard: bool = False):
    self._workdir, self._use_tensorboard = workdir, use_tensorboard
    self._path = workdir / _METRICS_FILE
    self._tensorboard = None
    # A bucket cannot append to a file, so `flush` writes all lines again.
    self._lines: list[str] | None = [] if is_address(workdir) else None

  def open(self, last_step: int) -> None:
    """Opens the log and deletes the lines of steps that will run again.

    Args:
      last_step: last step to keep.

    Raises:
      InputError: if metrics.jsonl is damaged or cannot be written, or the extra
        [tensorboard] is needed but not installed.
    """
    if self._use_tensorboard:
      folder = str(self._workdir / "tensorboard")
      self._tensorboard = import_writers().SummaryWriter(folder)
    if rows := _read_rows(self._workdir):
      lines = [to_json(row) + "\n" for row in rows if row["step"] <= last_step]
      write_file(self._path, "".join(lines))
      if self._lines is not None:
        self._lines = lines

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Adds a line with the values of a step.

    Raises:
      InputError: if the file cannot be written.
    """
    line = to_json({"step": step, **scalars}) + "\n"
    if self._lines is not None:
      self._lines.append(line)
    else:
      try:
        with self._path.open("a", encoding="utf-8") as file:
          file.write(line)
      except OSError as error:
        raise InputError(
          f"{self._path} cannot be written: {error.strerror}. Free some space;"
          " the same command resumes from the newest checkpoint."
        ) from error
    if self._tensorboard:
      self._tensorboard.write_scalars(step, scalars)
      self._tensorboard.flush()

  def flush(self) -> None:
    """Writes the log if it is in a bucket; raises InputError if this fails."""
    if self._lines is not None:
      write_file(self._path, "".join(self._lines))


def read_metrics(workdir: AnyPath) -> list[dict[str, Any]]:
  """Returns the rows of metrics.jsonl without times; none without the file.

  Raises:
    InputError: if the file is damaged. The message names the line.
  """
  return [
    {
      name: value
      for name, value in row.items()
      if not name.startswith(TIME_PREFIX)
    }
    for row in _read_rows(workdir)
  ]


def _read_rows(workdir):
  path = workdir / _METRICS_FILE
  try:
    lines = read_file(path).split(b"\n")
  except FileNotFoundError:
    return []
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error
  rows = []
  for number, line in enumerate(lines[:-1], start=1):
    # A killed run can leave part of a line after the last newline.
    try:
      rows.append(json.loads(line))
      rows[-1]["step"] + 0
      for value in rows[-1].values():
        math.isnan(value)  # Raises unless it is a number.
    except (
      *(ValueError, KeyError, TypeError, AttributeError),
      *(OverflowError, RecursionError),
    ) as error:
      raise InputError(
        f"{path} is damaged in line {number} ({error}). Delete that line."
      ) from error
  return rows


def plot_losses(
  workdir: AnyPath, title: str, epoch_steps: int
) -> AnyPath | None:
  """Draws the loss, its terms and the gradient's norm over the epochs.

  Returns:
    The picture's path; None if there is nothing to draw.
  """
  from matplotlib.figure import Figure

  rows = [row for row in read_metrics(workdir) if "loss" in row]
  names = [
    name
    for name in dict.fromkeys(["loss", *itertools.chain(*rows)])
    if name != "step" and any(row.get(name) for row in rows)
  ]
  if not names:
    return None
  num_columns = -(-len(names) // 2)
  figure = Figure(figsize=(3 * num_columns, 5.4))
  figure.suptitle(title)
  # The margins are fixed because matplotlib's search for them is as slow as
  # drawing.
  figure.subplots_adjust(0.08, 0.1, 0.98, 0.87, wspace=0.35, hspace=0.45)
  axes = figure.subplots(2, num_columns, squeeze=False).flat
  epochs = [row["step"] / epoch_steps for row in rows]
  for axis, name in itertools.zip_longest(axes, names):
    if name is None:  # The number of names is odd.
      axis.set_axis_off()
      continue
    axis.plot(epochs, [row.get(name, math.nan) for row in rows])
    axis.set_title(name.replace("_", " "))
    axis.set_xlabel("epoch")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=100)
  write_file(workdir / _CURVES_FILE, file.getvalue())
  return workdir / _CURVES_FILE
