"""Each ablation removes one part of the model and keeps all other parts."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ablations
from cops_jax import config as configuration
from cops_jax.backbones.features import join_params
from cops_jax.errors import InputError
from cops_jax.evaluation.step import detect_anomalies
from cops_jax.runs.record import Record
from cops_jax.runtime.mesh import make_mesh
from cops_jax.training import step as steps
from cops_jax.weights import prompts
from cops_jax.weights.backbone import load_backbone
from cops_jax.weights.model import build_model

TERMS = {"image", "patch", "gather", "scatter", "kl", "reconstruction"}
# Parameters and loss terms that an ablation lacks, and its number of trained
# words.
ABSENT = {
  "full": ((), set(), 14),
  "no_prototypes": (("prototype_extractor",), {"gather", "scatter"}, 8),
  "no_vae": (("category_vae",), {"kl", "reconstruction"}, 12),
  "no_deep_prompts": (("prompt_learner.deep_prompts",), set(), 14),
  "no_value_path": ((), set(), 14),
}


@pytest.fixture
def base(config):
  config.model.smoothing_window_patches = 3
  config.train.reconstruction = "pairwise"
  return config


def prepare(base, name):
  config = ablations.ablate(base, name)
  backbone = load_backbone(config)
  model = build_model(config, backbone)
  return (
    config,
    backbone,
    model,
    model.init_trainable(jax.random.key(0), backbone.params),
  )


def flat(params):
  return flax.traverse_util.flatten_dict(params, sep=".")


@pytest.mark.parametrize("name", ABSENT)
def test_a_removed_part_is_neither_trained_nor_computed(base, name):
  absent_params, absent_terms, num_words = ABSENT[name]
  config, backbone, model, params = prepare(base, name)
  full = flat(prepare(base, "full")[-1])
  assert flat(params).keys() == {
    key for key in full if not key.startswith(absent_params)
  }
  assert flat(params)["prompt_learner.context"].shape == (2, num_words, 24)
  optimizer = steps.make_optimizer(config.train, num_steps=1)
  mesh = make_mesh(jax.devices()[:1])
  train_step = steps.make_train_step(model, optimizer, mesh)
  batch = {
    "image": jnp.zeros((2, 48, 48, 3), jnp.uint8),
    "mask_counts": jnp.zeros((2, 9), jnp.int32),
    "label": jnp.zeros(2, jnp.int32),
    "example_id": jnp.zeros(2, jnp.uint32),
    "padding_mask": jnp.ones(2, bool),
  }
  state = steps.create_train_state(params, optimizer)
  _, terms = jax.eval_shape(train_step, state, backbone.params, batch)
  assert terms.keys() & TERMS == TERMS - absent_terms


def test_without_distance_weighting_alpha_has_no_effect(base):
  rng, models = np.random.default_rng(0), []
  batch = {
    "image_features": rng.standard_normal((1, 24), np.float32),
    "patch_features": rng.standard_normal((1, 2, 9, 24), np.float32),
  }
  for name, alpha in (
    ("full", 0.1),
    ("no_distance_weighting", 0.1),
    ("no_distance_weighting", 0.9),
  ):
    base.evaluation.alpha = alpha
    _, backbone, model, params = prepare(base, name)
    models.append(model)

  @jax.jit
  def detect(variables, batch):
    return [detect_anomalies(model, variables, batch) for model in models]

  found = detect(join_params(params, backbone.params), batch)
  first, second, third = (
    row["anomaly_map"].tobytes() for row in jax.device_get(found)
  )
  assert first != second == third


def test_prompts_without_a_part_do_not_fit_the_authors_format(base, tmp_path):
  config, backbone, _, params = prepare(base, "no_vae")
  path, record = (
    tmp_path / "prompts.pth",
    Record(config.to_dict(), backbone.sha256),
  )
  reason = "authors' format requires prompts with"
  with pytest.raises(InputError, match=reason):
    prompts.write_prompts(path, params, record)
  assert not path.exists()
  prompts.write_prompts(path, prepare(base, "full")[-1], record)
  with pytest.raises(InputError, match=reason):
    prompts.load_prompts(path, params)


@pytest.mark.parametrize(
  "base", ("ablations", "uniadet_demo:augmented"), ids=("cops", "uniadet")
)
def test_an_ablation_changes_only_its_own_fields(base):
  base = configuration.recipe(base)
  full = ablations.ablate(base, "full").to_dict()
  assert full == base.to_dict()
  for name, overrides in ablations.find(base.method).items():
    config = ablations.ablate(base, name)
    assert config.is_locked
    changed = config.to_dict()
    for field, value in overrides.items():
      section, key = field.split(".")
      assert changed[section][key] == value != full[section][key]
      changed[section][key] = full[section][key]
    assert changed == full
