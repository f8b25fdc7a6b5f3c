"""The steps are compiled for TPU slices without a TPU."""

import sys

import jax
import pytest

from cops_jax.errors import InputError
from cops_jax.weights.model import build_model
from tools import compile_ahead

pytest.importorskip("libtpu")


@pytest.mark.parametrize(
  "topology, num_chips", (("v5e:2x2", 4), ("v5e:4x4", 16))
)
def test_the_steps_compile_for_a_slice(config, topology, num_chips):
  """Memory, collectives and types are right with the attention kernel."""
  config.backbone.dtype = "auto"
  mesh = compile_ahead.tpu_mesh(topology)
  assert mesh.size == num_chips
  backbone = compile_ahead.read_backbone(config)
  reports = {
    report.step: report
    for report in compile_ahead.compile_steps(config, backbone, mesh, 2)
  }
  training, cached, evaluation = reports.values()
  num_parameters = sum(
    leaf.size
    for leaf in jax.tree.leaves(
      jax.eval_shape(
        lambda: build_model(config, backbone).init_trainable(jax.random.key(0))
      )
    )
  )
  for report in (training, cached):
    # Chips exchange the gradient once in float32, the counts of the losses, and
    # whether all processes have a batch.
    for kind, dtype in report.collectives:
      assert kind == "all-reduce"
      assert dtype in ("f32", "s32", "u32", "pred")
    number = report.collectives["all-reduce", "f32"]
    assert 4 * num_parameters <= number < 4.5 * num_parameters
    assert "bfloat16" not in report.outputs
  assert evaluation.collectives == {}
  assert evaluation.outputs == ("float32", "float32")
  assert cached.flops < training.flops
  vision = backbone.config.vision_config
  kernels = 2 * vision.num_hidden_layers * 4 * 512**2 * vision.hidden_size
  assert evaluation.flops > kernels
  assert 0 < evaluation.temporary_bytes < 16e9
  text = compile_ahead.table(list(reports.values()), "TPU v5 lite")
  assert "share of 16 GB" in text and "all-reduce f32, MB" in text


def test_a_v4_chip_is_one_device():
  assert compile_ahead.tpu_mesh("v4:2x2x2").size == 8


def test_an_unknown_slice_is_refused():
  with pytest.raises(InputError, match="--topology=v5e:3x1000 is not a slice"):
    compile_ahead.tpu_mesh("v5e:3x1000")


def test_a_missing_libtpu_is_reported(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  with pytest.raises(InputError, match="requires libtpu. Run `pip"):
    compile_ahead.tpu_mesh("v5e:2x2")
