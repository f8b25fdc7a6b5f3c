"""The authors' numbers at a tiny size, in this project's names.

`weights.npz` holds random CLIP weights in OpenAI's names and prompt parameters
in the names of the authors' checkpoints; each recipe's file holds inputs,
outputs, losses and gradients of the authors' code in float32.
`anomalyclip.npz` holds all of these of AnomalyCLIP.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.models.cops import CoPS
from cops_jax.models.encoding import join_params
from cops_jax.weights import clip_names, cops_names

DATA = pathlib.Path(__file__).parents[1] / "data"
RECIPES = ("visa", "mvtec")
# Window, alpha and beta of the two published recipes.
SETTINGS = {
  "visa": dict(window=5, alpha=0.26, beta=0.9),
  "mvtec": dict(window=3, alpha=0.35, beta=1.0),
}


@functools.cache
def load(name):
  with np.load(DATA / f"{name}.npz") as file:
    return {key: file[key] for key in file}


@functools.cache
def clip_tensors(source="weights"):
  """CLIP in OpenAI's names; token ids are rows of the stored embedding."""
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
def clip_params(source="weights"):
  """CLIP's parameter tree."""
  params = clip_names.params_from_tensors(
    clip_tensors(source), clip_config(source), clip_names.openai_place, "golden"
  )
  return jax.tree.map(jnp.asarray, params)


def trainable(prefix, source):
  """The authors' prompt parameters (or gradients) as the trainable tree."""
  tensors = {
    name.removeprefix(prefix): array.astype(np.float32)
    for name, array in source.items()
    if name.startswith(prefix)
  }
  return jax.tree.map(jnp.asarray, cops_names.from_authors_names(tensors))


def model(recipe):
  sizes = json.loads(str(load(f"{recipe}_recipe")["config"]))
  ids = list(load("weights")["clip.token_embedding.ids"])
  return CoPS(
    clip_config=clip_config(),
    prefix_tokens=(ids.index(49406),),
    suffix_tokens=(ids.index(269), ids.index(49407)),
    feature_layers=tuple(sizes["features"]),
    num_value_layers=sizes["dpam"],
    smoothing_window=SETTINGS[recipe]["window"],
    num_heads=sizes["heads"],
    num_context_words=sizes["n_ctx"] - sizes["prt"],
    num_state_words=sizes["prt"],
    num_category_words=2,
    deep_prompt_length=sizes["t_n_ctx"],
    deep_prompt_depth=sizes["depth"],
    prototype_injection="crossed",
    temperature=0.07,
  )


def variables():
  """Both parameter trees of `CoPS`, joined."""
  return join_params(trainable("prompt.", load("weights")), clip_params())


def images(recipe):
  """The normalised images, (b, h, w, 3) float32."""
  stored = jnp.asarray(load(f"{recipe}_recipe")["in.image"], jnp.float32)
  return stored.transpose(0, 2, 3, 1)


def assert_close(actual, expected, tolerance=1e-5):
  """Bounds the largest difference over the largest entry."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape
  error = np.abs(actual - expected).max() / np.abs(expected).max()
  assert error <= tolerance, f"relative error {error:.2e}"
