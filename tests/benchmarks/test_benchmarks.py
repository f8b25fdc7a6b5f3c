"""The benchmarks run, and the plain step returns the same results."""

import jax
import numpy as np
import pytest

from benchmarks import (
  common,
  evaluation,
  input_pipeline,
  metrics,
  plain,
  saving,
  training,
)
from cops_jax.backbones.features import join_params
from cops_jax.backbones.flops import prompt_flops, vision_flops
from cops_jax.config import recipe
from cops_jax.evaluation.step import make_predict_step
from cops_jax.runtime.mesh import make_mesh
from cops_jax.weights.backbone import load_backbone
from cops_jax.weights.model import build_model
from helpers import golden
from helpers.config import make_config


@pytest.mark.parametrize(
  "fields",
  (
    {"model.num_value_layers": 3, "model.feature_layers": (1, 2)},
    {"model.num_value_layers": 0, "model.deep_prompt_length": 8},
  ),
)
def test_the_evaluation_step_matches_the_plain_one(config, fields):
  """The plain step computes all tokens with transformers' own layers."""
  config.update_from_flattened_dict(fields)
  backbone = load_backbone(config)
  model = build_model(config, backbone)
  trainable = model.init_trainable(jax.random.key(0))
  rng = np.random.default_rng(0)
  batch = {"image": rng.integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)}
  step = make_predict_step(model, make_mesh(jax.devices()[:1]))
  found = step(trainable, backbone.params, batch)
  variables = join_params(trainable, backbone.params)
  want = plain.make_step(model)(variables, batch["image"])
  for name, values in want.items():
    np.testing.assert_allclose(found[name], values, atol=2e-5, rtol=0)


def test_the_published_recipe_needs_a_known_number_of_flops():
  config, backbone = recipe("visa"), common.published_config("clip")
  num_tokens = golden.model("visa").num_prompt_tokens(is_training=False)
  flops = vision_flops(config, backbone)
  flops += prompt_flops(num_tokens, backbone, is_training=False)
  assert flops == pytest.approx(1.25e12, rel=0.01)


def test_every_section_returns_its_rows(clip_folder, data_dir, monkeypatch):
  """The section startup is not run, because it runs whole commands."""

  def load(name):
    config = make_config(clip_folder, data_dir, name)
    return config, load_backbone(config)

  for module in (evaluation, training, saving):
    monkeypatch.setattr(module, "load", load)
  monkeypatch.setattr(input_pipeline, "_NUM_IMAGES", 8)
  monkeypatch.setattr(input_pipeline, "_NUM_EPOCHS", 1)
  notes = {
    row.what: row.note
    for section in (evaluation, training, saving, input_pipeline, metrics)
    for row in section.rows(is_quick=True)
  }
  for what, words in (
    ("evaluation step, batch size 4", "of the matrix rate"),
    ("plain step, 1 image", "the evaluation step takes"),
    ("demo: training step of 1 image, feature cache bfloat16", "times as fast"),
    ("uniadet_demo: 1 image", "with 4 reference images"),
    ("wait until training continues", "of saving"),
    ("pipeline, 0 workers", "times plain PIL"),
    ("pipeline, 0 workers, augmented", "without augmentation"),
    ("all pixel metrics, 10 maps of 518 x 518", "scikit-learn's AUROC and AP"),
  ):
    assert words in notes[what]
