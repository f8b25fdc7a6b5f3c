"""The metrics of a run, also after an interruption, and their curves."""

import json
import sys
import types

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cops_jax.errors import InputError
from cops_jax.runs import metrics_log


def rows(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def open_log(workdir, last_step=0, **options):
  log = metrics_log.RunLog(workdir, **options)
  log.open(last_step)
  return log


def test_lines_of_repeated_steps_are_deleted(tmp_path):
  log = open_log(tmp_path)
  for step in (2, 4, 6):
    log.write(step, {"loss": float(step), "time/step_seconds": 1.0})
  assert rows(tmp_path)[0] == {"step": 2, "loss": 2, "time/step_seconds": 1}
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 8, "lo')  # The process was killed here.
  log = open_log(tmp_path, 4)
  log.write(6, {"loss": 60.0})
  assert [row["loss"] for row in rows(tmp_path)] == [2, 4, 60]
  assert metrics_log.read_metrics(tmp_path)[0] == {"step": 2, "loss": 2}


@pytest.mark.parametrize(
  "line",
  (
    *(b"{", b"[]", b'{"loss": 1}', b"\xff", b"3", b"[" * 10**5),
    *(b'{"step": 1, "loss": "x"}', b'{"step": 1' + b"0" * 400 + b"}"),
  ),
)
def test_a_damaged_line_is_named(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"step": 1}\n' + line + b"\n")
  with pytest.raises(InputError, match="metrics.jsonl is damaged in line 2"):
    open_log(tmp_path)


def test_tensorboard_receives_the_same_numbers(tmp_path, monkeypatch):
  """A fake writer records its calls, because clu's needs tensorflow."""
  calls = []

  class SummaryWriter:
    def __init__(self, logdir):
      calls.append(("open", logdir))

    def write_scalars(self, step, scalars):
      calls.append((step, scalars))

    def flush(self):
      calls.append("flush")

  module = types.ModuleType("clu.metric_writers")
  module.SummaryWriter = SummaryWriter
  monkeypatch.setitem(sys.modules, "clu.metric_writers", module)
  monkeypatch.setattr("clu.metric_writers", module, raising=False)
  log = open_log(tmp_path, use_tensorboard=True)
  log.write(3, {"loss": 0.5})
  assert calls == [
    ("open", str(tmp_path / "tensorboard")),
    (3, {"loss": 0.5}),
    "flush",
  ]


def test_every_nonzero_term_has_a_curve(tmp_path, monkeypatch):
  log = open_log(tmp_path)
  assert metrics_log.plot_losses(tmp_path, "nothing", 5) is None
  terms = ("kl", "image", "patch")
  for step in range(1, 6):
    values = {name: index / step for index, name in enumerate(terms, start=1)}
    values |= {"loss": 9 / step, "reconstruction": 0.0, "gradient_norm": 5.0}
    log.write(4 * step, values)
  log.write(20, {"made/image_auroc": 0.9})
  figures = []
  monkeypatch.setattr(
    Figure,
    "savefig",
    lambda self, *args, save=Figure.savefig, **kwargs: (
      figures.append(self),
      save(self, *args, **kwargs),
    ),
  )
  path = metrics_log.plot_losses(tmp_path, "CoPS on screws, seed 3", 8)
  assert path == tmp_path / "losses.png"
  with Image.open(path) as picture:
    assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
  (figure,) = figures
  assert figure.get_suptitle() == "CoPS on screws, seed 3"
  axes = [axis for axis in figure.axes if axis.axison]
  # A term that is always 0 has no panel.
  assert [axis.get_title() for axis in axes] == [
    *("loss", *terms, "gradient norm")
  ]
  for axis in axes:
    assert axis.get_xlabel() == "epoch"
    (line,) = axis.lines
    np.testing.assert_allclose(line.get_xdata(), [0.5, 1, 1.5, 2, 2.5])
  np.testing.assert_allclose(axes[0].lines[0].get_ydata()[0], 9)
