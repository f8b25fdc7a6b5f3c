"""What a run writes, also after it was interrupted."""

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


def test_lines(tmp_path):
  log = metrics_log.RunLog(tmp_path, 0)
  log.write(2, {"loss": 0.5})
  log.write(4, {"loss": 0.25, "kl": 1.0})
  assert rows(tmp_path) == [
    {"step": 2, "loss": 0.5},
    {"step": 4, "loss": 0.25, "kl": 1.0},
  ]


def test_steps_that_are_taken_again_are_dropped(tmp_path):
  log = metrics_log.RunLog(tmp_path, 0)
  for step in (2, 4, 6):
    log.write(step, {"loss": float(step)})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 8, "lo')  # Killed while writing.
  log = metrics_log.RunLog(tmp_path, 4)
  log.write(6, {"loss": 60.0})
  assert [row["loss"] for row in rows(tmp_path)] == [2, 4, 60]


@pytest.mark.parametrize("line", (b"{", b"[]", b'{"loss": 1}', b"\xff", b"3"))
def test_a_damaged_line_is_named(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"step": 1}\n' + line + b"\n")
  with pytest.raises(InputError, match="metrics.jsonl is damaged in line 2"):
    metrics_log.RunLog(tmp_path, 0)


def test_one_process_writes(tmp_path):
  log = metrics_log.RunLog(tmp_path, 0, is_active=False)
  log.write(2, {"loss": 0.5})
  assert not list(tmp_path.iterdir())


def test_tensorboard_needs_its_package(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "clu.metric_writers", None)
  with pytest.raises(InputError, match=r"\[tensorboard\]"):
    metrics_log.RunLog(tmp_path, 0, use_tensorboard=True)


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
  """clu's own writer needs tensorflow; this one notes what it is given."""
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
  log = metrics_log.RunLog(tmp_path, 0, use_tensorboard=True)
  log.write(3, {"loss": 0.5})
  assert calls == [
    ("open", str(tmp_path / "tensorboard")),
    (3, {"loss": 0.5}),
    "flush",
  ]


def test_tensorboard_files(tmp_path):
  pytest.importorskip("tensorflow")
  log = metrics_log.RunLog(tmp_path, 0, use_tensorboard=True)
  log.write(3, {"loss": 0.5})
  (file,) = (tmp_path / "tensorboard").iterdir()
  assert b"loss" in file.read_bytes()


def test_curves(tmp_path, monkeypatch):
  log = metrics_log.RunLog(tmp_path, 0)
  terms = ("kl", "image", "patch", "gather", "scatter")
  for step in range(1, 6):
    values = {name: index / step for index, name in enumerate(terms, start=1)}
    log.write(
      4 * step,
      {**values, "loss": 9 / step, "reconstruction": 0.0, "gradient_norm": 5.0},
    )
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
  together, *alone = figure.axes
  # What is always 0 has no panel, nor has what is no loss.
  assert [axis.get_title() for axis in alone] == [
    *("loss", *terms, "gradient norm")
  ]
  names = [text.get_text() for text in together.get_legend().get_texts()]
  assert names == ["loss", *terms]
  looks = [
    (line.get_color(), line.get_linestyle(), line.is_dashed())
    for line in together.lines
  ]
  assert len({color for color, *_ in looks}) == len(looks) == 6
  for axis in figure.axes:
    assert axis.get_xlabel() == "epoch"
    for line in axis.lines:
      np.testing.assert_allclose(line.get_xdata(), [0.5, 1, 1.5, 2, 2.5])


def test_nothing_to_draw(tmp_path):
  log = metrics_log.RunLog(tmp_path, 0)
  log.write(5, {"made/image_auroc": 0.9})
  assert metrics_log.plot_losses(tmp_path, "nothing", 5) is None
