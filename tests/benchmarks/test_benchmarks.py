"""They run, and what they compare with gives the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import input_pipeline, metrics, plain, vit_l
from cops_jax.clip.features import join_params
from cops_jax.clip.flops import prompt_flops, vision_flops
from cops_jax.evaluation.step import make_predict_step
from cops_jax.runtime.mesh import make_mesh
from cops_jax.runtime.randomness import (
  EVALUATION_KEY,
  example_noise,
  random_key,
)
from cops_jax.weights import build_model, clip_of
from helpers import golden
from helpers.scripts import environment, start_afresh


@pytest.mark.parametrize(
  "fields",
  (
    {},
    {"model.num_value_layers": 3, "model.feature_layers": (1, 2)},
    {"model.num_value_layers": 0, "model.deep_prompt_length": 8},
  ),
)
def test_the_evaluation_step_is_the_plain_one(config, fields):
  """Stock layers, all tokens and 77 positions, full maps, scipy's filter."""
  config.update_from_flattened_dict(fields)
  clip = clip_of(config)
  model, settings = build_model(config, clip), config.evaluation
  trainable = model.init_trainable(jax.random.key(0))
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (2, 48, 48, 3), dtype=np.uint8),
    "example_id": np.arange(2, dtype=np.uint32),
  }
  step = make_predict_step(model, make_mesh(jax.devices()[:1]))
  found = step(trainable, clip.params, batch)
  noise = example_noise(
    random_key(config.seed, EVALUATION_KEY),
    jnp.asarray(batch["example_id"]),
    settings.num_samples,
    clip.config.projection_dim,
  )
  want = plain.make_step(model)(
    join_params(trainable, clip.params), batch["image"], noise
  )
  for name, values in want.items():
    np.testing.assert_allclose(found[name], values, atol=2e-5, rtol=0)


def test_needed_flops_of_the_published_recipe():
  from cops_jax.config import recipe

  config, clip = recipe("visa"), vit_l.clip_config()
  num_tokens = golden.model("visa").num_prompt_tokens(is_training=False)
  flops = vision_flops(config, clip)
  flops += prompt_flops(num_tokens, clip, is_training=False)
  assert flops == pytest.approx(1.25e12, rel=0.01)


@pytest.mark.parametrize("section", ("evaluation", "training", "saving"))
def test_a_section_runs(section):
  process = start_afresh(
    *("-m", f"benchmarks.{section}", "--quick"),
    env=environment(num_devices=1),
  )
  out, err = process.communicate()
  assert process.returncode == 0, err
  assert sum(line.startswith(section) for line in out.splitlines()) >= 2


def test_pixel_metrics_are_measured_against_scikit_learn():
  (row,) = metrics.rows(is_quick=True)
  assert "scikit-learn's AUROC and AP" in row.note
  rows = metrics.error_rows("usual", is_quick=True)
  assert len(rows) == 4
  for row in rows:
    assert abs(float(row.note.split()[1])) < 1e-5
  assert metrics.peak_megabytes(2, is_measured=True) > 0


def test_the_input_pipeline_is_measured_against_pil(monkeypatch):
  monkeypatch.setattr(input_pipeline, "_NUM_IMAGES", 8)
  monkeypatch.setattr(input_pipeline, "_NUM_EPOCHS", 1)
  plainly, ours = input_pipeline.rows(is_quick=True)
  assert float(plainly.note.split()[0]) > 0 and "times plain PIL" in ours.note
