"""The authors' numbers at a tiny size, in this project's names.

`weights.npz` holds random CLIP weights in OpenAI's names and prompt parameters
in the names of the authors' checkpoints; each recipe's file holds inputs,
outputs, losses and gradients of the authors' code in float32.
"""

import functools
import json
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from cops_jax import clip_names
from cops_jax.models.cops import CoPS, join_params

DATA = pathlib.Path(__file__).parent / "data"
RECIPES = ("visa", "mvtec")
# Window, alpha, beta and reconstruction of the two published recipes.
SETTINGS = {
  "visa": dict(window=5, alpha=0.26, beta=0.9, reconstruction="none"),
  "mvtec": dict(window=3, alpha=0.35, beta=1.0, reconstruction="pairwise"),
}


@functools.cache
def load(name):
  with np.load(DATA / f"{name}.npz") as file:
    return {key: file[key] for key in file}


@functools.cache
def clip_tensors():
  """CLIP in OpenAI's names; token ids are rows of the stored embedding."""
  tensors = {
    name.removeprefix("clip."): array.astype(np.float32)
    for name, array in load("weights").items()
    if name.startswith("clip.")
  }
  del tensors["token_embedding.ids"]
  tensors["token_embedding.weight"] = tensors.pop("token_embedding.rows")
  return tensors


@functools.cache
def clip_config():
  return clip_names.config_from_openai(clip_tensors(), "golden")


@functools.cache
def clip_params():
  """CLIP's parameter tree."""
  params = clip_names.params_from_tensors(
    clip_tensors(), clip_config(), clip_names.openai_place, "golden"
  )
  return jax.tree.map(jnp.asarray, params)


def trainable(prefix, source):
  """The authors' prompt parameters (or gradients) as the trainable tree."""
  source = {
    name.removeprefix(prefix): array.astype(np.float32)
    for name, array in source.items()
    if name.startswith(prefix)
  }
  deep = sorted(name for name in source if name.startswith("compound"))
  tree = {
    "prompt_learner.context": np.concatenate(
      [source["ctx_pos"][0], source["ctx_neg"][0]]
    ),
    "prompt_learner.deep_prompts": np.stack([source[name] for name in deep]),
    "prototype_extractor.queries": np.stack([source["t_n"], source["t_a"]]),
  }
  stacked = zip(
    ("query", "key", "value"),
    np.split(source["extractor.attn.in_proj_weight"], 3),
    np.split(source["extractor.attn.in_proj_bias"], 3),
    strict=True,
  )
  for name, weight, bias in stacked:
    tree[f"prototype_extractor.{name}.kernel"] = weight.T
    tree[f"prototype_extractor.{name}.bias"] = bias
  linear = {
    "extractor.attn.out_proj": "prototype_extractor.out",
    "extractor.mlp.c_fc": "prototype_extractor.c_fc",
    "extractor.mlp.c_proj": "prototype_extractor.c_proj",
    "vae_encoder.net.0": "category_vae.encoder",
    "vae_encoder.mean": "category_vae.mean",
    "vae_encoder.log_var": "category_vae.log_var",
    "vae_decoder.net.0": "category_vae.decoder",
    "vae_decoder.net.2": "category_vae.output",
  }
  for old, new in linear.items():
    tree[f"{new}.kernel"] = source[f"{old}.weight"].T
    tree[f"{new}.bias"] = source[f"{old}.bias"]
  for norm in ("ln_1", "ln_2"):
    tree[f"prototype_extractor.{norm}.scale"] = source[
      f"extractor.{norm}.weight"
    ]
    tree[f"prototype_extractor.{norm}.bias"] = source[f"extractor.{norm}.bias"]
  tree = {name: jnp.asarray(array) for name, array in tree.items()}
  return flax.traverse_util.unflatten_dict(tree, sep=".")


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
