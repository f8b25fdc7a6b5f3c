"""What a run writes while it trains: numbers, and curves at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cops_jax.errors import InputError, needs_extra
from cops_jax.files import read_file, write_file
from cops_jax.paths import AnyPath, is_address

_METRICS_FILE = "metrics.jsonl"
_CURVES_FILE = "losses.png"
_NO_TERM = "gradient_norm"  # Is drawn, but is no part of the loss.
_LINE_STYLES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)))
# Begins the names of what is measured, and so is never the same twice.
TIME_PREFIX = "time/"


class RunLog:
  """metrics.jsonl, line by line, and TensorBoard's files if asked for.

  Files in buckets cannot be added to: there all of it is sent by `keep`.

  Args:
    workdir: where to write.
    last_step: lines of later steps, which will be taken again, are dropped.
    use_tensorboard: whether to write TensorBoard's files too.
    is_active: whether to write at all; one process of a cluster does.

  Raises:
    InputError: TensorBoard is asked for, and its package is not installed; or
      metrics.jsonl is damaged or cannot be written.
  """

  def __init__(
    self,
    workdir: AnyPath,
    last_step: int,
    *,
    use_tensorboard: bool = False,
    is_active: bool = True,
  ):
    self._path = workdir / _METRICS_FILE
    self._is_active, self._tensorboard = is_active, None
    self._is_in_bucket = is_address(self._path)
    self._lines: list[str] = []  # Of a file in a bucket.
    if use_tensorboard and is_active:
      with needs_extra(
        "config.train.use_tensorboard",
        "tensorboard",
        *("clu", "tensorboard", "tensorflow"),
      ):
        from clu import metric_writers
      self._tensorboard = metric_writers.SummaryWriter(
        str(workdir / "tensorboard")
      )
    if is_active and (rows := _read_rows(workdir)):
      kept = [_line(row) for row in rows if row["step"] <= last_step]
      write_file(self._path, "".join(kept))
      if self._is_in_bucket:
        self._lines = kept

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Adds the values of some quantities at a step.

    Raises:
      InputError: the file cannot be written.
    """
    if not self._is_active:
      return
    if self._is_in_bucket:
      self._lines.append(_line({"step": step, **scalars}))
    else:
      self._append(_line({"step": step, **scalars}))
    if self._tensorboard:
      self._tensorboard.write_scalars(step, scalars)
      self._tensorboard.flush()

  def _append(self, line):
    try:
      with self._path.open("a", encoding="utf-8") as file:
        file.write(line)
    except OSError as error:
      raise InputError(
        f"{self._path} cannot be written: {error.strerror}. Make room and go on"
        " from the newest checkpoint with the same command."
      ) from error

  def keep(self) -> None:
    """Writes into a bucket what is not there yet.

    Raises:
      InputError: the file cannot be written.
    """
    if self._is_active and self._is_in_bucket:
      write_file(self._path, "".join(self._lines))


def _line(row: Mapping[str, Any]) -> str:
  return json.dumps(row) + "\n"


def read_metrics(workdir: AnyPath) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl but for what tells times; none without the file.

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
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(
        f"{path} is damaged in line {number} ({error}): delete that line"
      ) from error
  return rows


def plot_losses(
  workdir: AnyPath, title: str, epoch_steps: int
) -> AnyPath | None:
  """Draws the loss and its terms over the epochs: together, and each alone.

  Args:
    workdir: with metrics.jsonl; receives the picture.
    title: what was trained on what.
    epoch_steps: steps in an epoch.

  Returns:
    The picture's path; None if there is nothing to draw.
  """
  import io

  from matplotlib import colormaps
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  rows = [row for row in read_metrics(workdir) if "loss" in row]
  names = [
    name
    for name in dict.fromkeys(name for row in rows for name in row)
    if name != "step" and any(row.get(name) for row in rows)
  ]
  if not names:
    return None
  last = {"loss": 0, _NO_TERM: 2}
  names.sort(key=lambda name: last.get(name, 1))
  num_columns = -(-len(names) // 2)
  figure = Figure(figsize=(4.6 + 2.7 * num_columns, 5.4), layout="constrained")
  FigureCanvasAgg(figure)
  figure.suptitle(title)
  grid = figure.add_gridspec(
    2, num_columns + 1, width_ratios=[1.7, *[1] * num_columns]
  )
  together = figure.add_subplot(grid[:, 0])
  for index, name in enumerate(names):
    down, across = divmod(index, num_columns)
    alone = figure.add_subplot(grid[down, 1 + across])
    shown = [row for row in rows if name in row]
    epochs = [row["step"] / epoch_steps for row in shown]
    line = {
      "color": colormaps["tab10"](index % 10),
      "linestyle": _LINE_STYLES[index % len(_LINE_STYLES)],
      "label": name.replace("_", " "),
    }
    for axis in [alone] if name == _NO_TERM else [alone, together]:
      axis.plot(epochs, [row[name] for row in shown], **line)
    alone.set_title(line["label"])
  together.set_title("the loss and its terms")
  together.legend()
  for axis in figure.axes:
    axis.set_xlabel("epoch")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=100)
  write_file(workdir / _CURVES_FILE, file.getvalue())
  return workdir / _CURVES_FILE
