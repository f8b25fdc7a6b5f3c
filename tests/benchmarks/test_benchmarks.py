"""What the benchmarks compare with gives the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import plain, vit_l
from cops_jax.evaluation.step import make_configured_step
from cops_jax.methods import cops
from cops_jax.models.cops import init_trainable
from cops_jax.models.encoding import join_params
from cops_jax.models.flops import prompt_flops, vision_flops
from cops_jax.runtime.mesh import make_mesh
from cops_jax.runtime.randomness import (
  EVALUATION_KEY,
  example_noise,
  random_key,
)
from cops_jax.weights import build_model, clip_of


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
  trainable = init_trainable(model, jax.random.key(0))
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (2, 48, 48, 3), dtype=np.uint8),
    "example_id": np.arange(2, dtype=np.uint32),
  }
  step = make_configured_step(config, model, make_mesh(jax.devices()[:1]))
  found = step(trainable, clip.params, batch)
  noise = example_noise(
    random_key(config.seed, EVALUATION_KEY),
    jnp.asarray(batch["example_id"]),
    settings.num_samples,
    clip.config.projection_dim,
  )
  want = plain.make_step(model, settings.alpha, settings.beta)(
    join_params(trainable, clip.params), batch["image"], noise
  )
  for name, values in want.items():
    np.testing.assert_allclose(found[name], values, atol=2e-5, rtol=0)


def test_needed_flops_of_the_published_recipe():
  from cops_jax.config import recipe

  config, clip = recipe("visa"), vit_l.clip_config()
  num_tokens = cops.num_prompt_tokens(config, is_training=False)
  flops = vision_flops(config, clip)
  flops += prompt_flops(num_tokens, clip, is_training=False)
  assert flops == pytest.approx(1.25e12, rel=0.01)
