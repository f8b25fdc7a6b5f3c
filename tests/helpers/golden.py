"""Golden numbers of the authors' code at a tiny size.

`weights.npz` has random CLIP weights in OpenAI's names and prompt parameters in
the names of the authors' checkpoints. The file of each recipe has inputs,
outputs, losses and gradients of the authors' code in float32. `anomalyclip.npz`
has all of these for AnomalyCLIP.
"""

import functools
import json
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cops_jax import config as configuration
from cops_jax import methods
from cops_jax.backbones.clip import CLIP
from cops_jax.backbones.features import join_params
from cops_jax.weights import authors_names, clip_names
from cops_jax.weights.clip import PromptTokens

DATA = pathlib.Path(__file__).parents[1] / "data"
RECIPES = ("visa", "mvtec")  # Recipes of CoPS.


@functools.cache
def load(name):
  with np.load(DATA / f"{name}.npz") as file:
    return {key: file[key] for key in file}


@functools.cache
def clip_tensors(source="weights"):
  """Returns CLIP's tensors; token ids are rows of the stored embedding."""
  tensors = {
    name.removeprefix("clip."): array.astype(np.float32)
    for name, array in load(source).items()
    if name.startswith("clip.")
  }
  del tensors["token_embedding.ids"]
  tensors["token_embedding.weight"] = tensors.pop("token_embedding.rows")
  return tensors


@functools.cache
def clip_config(source="weights"):
  return clip_names.config_from_openai(clip_tensors(source), "golden")


@functools.cache
def backbone_params(source="weights"):
  """Returns CLIP's parameter tree."""
  params = clip_names.clip_params_from_tensors(
    clip_tensors(source), clip_config(source), clip_names.openai_place, "golden"
  )
  return jax.tree.map(jnp.asarray, params)


def trainable(prefix, source):
  """Returns the authors' prompt parameters or gradients as a trainable tree."""
  tensors = {
    name.removeprefix(prefix): array.astype(np.float32)
    for name, array in source.items()
    if name.startswith(prefix)
  }
  tree = authors_names.from_authors_names(tensors, "cops")
  return jax.tree.map(jnp.asarray, tree)


def config(recipe, fields=None):
  """Returns a recipe at the stored sizes, with `fields` replaced."""
  source = f"{recipe}_recipe" if recipe in RECIPES else "anomalyclip"
  sizes = json.loads(str(load(source)["config"]))
  config = configuration.recipe(recipe)
  values = {
    "model.image_size_pixels": sizes["image"],
    "model.feature_layers": tuple(sizes["features"]),
    "model.num_value_layers": sizes["dpam"],
    "model.deep_prompt_depth": sizes["depth"],
  }
  config.update_from_flattened_dict(values | (fields or {}))
  return ml_collections.FrozenConfigDict(config)


def tower(source="weights"):
  return CLIP(clip_config(source))


def model(recipe, fields=None):
  """Returns a recipe's model on the stored CLIP, with `fields` replaced."""
  source = "weights" if recipe in RECIPES else "anomalyclip"
  ids = list(load(source)["clip.token_embedding.ids"])
  start, end, period, name = map(ids.index, (49406, 49407, 269, 14115))
  damaged = (ids.index(13568),) if 13568 in ids else ()
  tokens = PromptTokens(start, damaged, name, period, end)
  made = config(recipe, fields)
  return methods.find(made.method).build_model(
    made, tower(source), SimpleNamespace(tokens=tokens)
  )


def variables():
  """Returns the parameters of `CoPS`, trainable and frozen."""
  return join_params(trainable("prompt.", load("weights")), backbone_params())


def images(recipe):
  """Returns the normalized images, (b, h, w, 3) float32."""
  stored = jnp.asarray(load(f"{recipe}_recipe")["in.image"], jnp.float32)
  return stored.transpose(0, 2, 3, 1)


def assert_close(actual, expected, tolerance=1e-5):
  """Asserts that the largest difference is small next to the largest entry."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape
  error = np.abs(actual - expected).max() / np.abs(expected).max()
  assert error <= tolerance, f"relative error {error:.2e}"
