"""A run's numbers while it trains, and their curves at the end."""

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
# Begins the names of measured times, which differ from run to run.
TIME_PREFIX = "time/"


def import_writers() -> Any:
  """Returns the module of clu that writes TensorBoard's files.

  Raises:
    InputError: the extra [tensorboard] is not installed.
  """
  packages = ("clu", "tensorboard", "tensorflow")
  with needs_extra("config.train.use_tensorboard", "tensorboard", *packages):
    from clu import metric_writers
  return metric_writers


class RunLog:
  """metrics.jsonl, line by line, and TensorBoard's files if asked for.

  In a cluster the first process alone uses it.

  Args:
    workdir: directory of the run.
    use_tensorboard: whether to write TensorBoard's files too.
  """

  def __init__(self, workdir: AnyPath, use_tensorboard: bool = False):
    self._workdir, self._use_tensorboard = workdir, use_tensorboard
    self._path = workdir / _METRICS_FILE
    self._tensorboard = None
    # Objects in a bucket cannot be appended to: `flush` writes all lines.
    self._lines: list[str] | None = [] if is_address(workdir) else None

  def open(self, last_step: int) -> None:
    """Drops the lines of steps after `last_step`, which will be taken again.

    Raises:
      InputError: metrics.jsonl is damaged or cannot be written; or see
        `import_writers`.
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
    """Adds values of a step.

    Raises:
      InputError: the file cannot be written.
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
          f"{self._path} cannot be written: {error.strerror}. Make room; the"
          " same command resumes from the newest checkpoint."
        ) from error
    if self._tensorboard:
      self._tensorboard.write_scalars(step, scalars)
      self._tensorboard.flush()

  def flush(self) -> None:
    """Writes the lines that a bucket does not have yet.

    Raises:
      InputError: they cannot be written.
    """
    if self._lines is not None:
      write_file(self._path, "".join(self._lines))


def read_metrics(workdir: AnyPath) -> list[dict[str, Any]]:
  """Returns the rows of metrics.jsonl without times; none without the file.

  Raises:
    InputError: it is damaged; names the line.
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
    # After the last newline there may be part of a line, of a killed run.
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
        f"{path} is damaged in line {number} ({error}): delete that line"
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
  # To let matplotlib find the margins takes as long as to draw.
  figure.subplots_adjust(0.08, 0.1, 0.98, 0.87, wspace=0.35, hspace=0.45)
  axes = figure.subplots(2, num_columns, squeeze=False).flat
  epochs = [row["step"] / epoch_steps for row in rows]
  for axis, name in itertools.zip_longest(axes, names):
    if name is None:  # Of an odd number.
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
