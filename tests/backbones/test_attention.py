"""Implementations of attention against NumPy, and the choice among them."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from jax.experimental.pallas import tpu as pltpu

from cops_jax.backbones import attention
from cops_jax.errors import InputError
from cops_jax.runtime.mesh import jit_step, make_mesh
from helpers.golden import assert_close

LAYER = ("kernel", "bias")


def random_qkv(batch, length, heads=2, width=16, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  shape = (batch, length, heads, width)
  return [2 * jax.random.normal(key, shape, dtype) for key in keys]


def plain(query, key, value):
  """Computes attention in NumPy."""
  query, key, value = (
    np.asarray(array, np.float64) for array in (query, key, value)
  )
  logits = np.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
  weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
  weights /= weights.sum(axis=-1, keepdims=True)
  return np.einsum("bhqk,bkhd->bqhd", weights, value)


def attend(qkv, implementation):
  """Computes the attention of arrays "b n heads d", as `plain` does.

  The layers' projections select the three arrays from the tokens.
  """
  heads, width = qkv[0].shape[2:]
  hidden = jnp.concatenate(
    [array.reshape(*array.shape[:2], -1) for array in qkv], axis=-1
  )
  picks = jnp.eye(hidden.shape[-1]).reshape(-1, 3, heads * width)
  bias = jnp.zeros(heads * width)
  layers = {
    f"{name}_proj": {"kernel": picks[:, part], "bias": bias}
    for part, name in enumerate("qkv")
  }
  layers["out_proj"] = {
    "kernel": jnp.eye(heads * width, hidden.shape[-1]),
    "bias": jnp.zeros(hidden.shape[-1]),
  }
  found, _ = attention.self_attention(
    hidden,
    layers,
    num_heads=heads,
    num_queries=hidden.shape[1],
    has_value_path=False,
    implementation=implementation,
  )
  return found[..., : heads * width].reshape(qkv[0].shape)


@pytest.mark.parametrize("implementation", ("xla", "heads", "splash"))
def test_self_attention_matches_numpy(implementation):
  """This covers projections, rotation, a single query and the value path."""
  keys = iter(jax.random.split(jax.random.key(1), 10))
  is_interpreted = implementation == "splash"  # Slow: one image suffices.
  hidden = jax.random.normal(next(keys), (1 if is_interpreted else 2, 9, 12))
  layers = {
    f"{name}_proj": {
      "kernel": jax.random.normal(next(keys), (12, 12)),
      "bias": jax.random.normal(next(keys), (12,)),
    }
    for name in ("q", "k", "v", "out")
  }

  def apply(name, tokens):
    kernel, bias = (np.asarray(layers[name][part]) for part in LAYER)
    return np.asarray(tokens) @ kernel + bias

  query, key, value = (
    apply(f"{name}_proj", hidden).reshape(*hidden.shape[:2], 2, 6)
    for name in "qkv"
  )
  # In this test the class token, which is the single query, is rotated too.
  angles = np.asarray(jax.random.normal(next(keys), (9, 6)))
  rotation = np.cos(angles), np.sin(angles)
  query, key = (
    array * rotation[0][:, None]
    + np.concatenate([-array[..., 3:], array[..., :3]], axis=-1)
    * rotation[1][:, None]
    for array in (query, key)
  )
  interpret = contextlib.nullcontext
  if is_interpreted:
    interpret = pltpu.force_tpu_interpret_mode
  for num_queries in (9, 1):
    with interpret():
      own, values = attention.self_attention(
        hidden,
        layers,
        num_heads=2,
        num_queries=num_queries,
        has_value_path=True,
        implementation=implementation,
        rotation=rotation,
      )
    want, want_values = (
      apply("out_proj", plain(*arrays).reshape(hidden.shape))
      for arrays in ((query, key, value), (value, value, value))
    )
    assert_close(own, want[:, :num_queries], 1e-4)
    assert_close(values, want_values, 1e-4)


def test_devices_exchange_nothing_for_attention():
  """Each device computes the attention of its own images."""
  mesh = make_mesh()
  qkv = random_qkv(2 * mesh.size, 5)
  step = jit_step(lambda _, qkv: attend(qkv, "heads"), mesh, num_replicated=0)
  compiled = step.lower((), qkv).compile()
  text = compiled.as_text()
  assert "while" in text
  for exchange in ("all-gather", "all-reduce", "permute", "all-to-all"):
    assert exchange not in text
  assert_close(step((), qkv), plain(*qkv), 1e-5)


def lowered_for(platform, dtype):
  """Returns the text of the program for a platform that may be absent."""
  shapes = [jax.ShapeDtypeStruct((2, 9, 2, 64), dtype)] * 3
  name = attention.choose_implementation("auto", dtype, platform)
  function = jax.jit(functools.partial(attend, implementation=name))
  exported = jax_export.export(function, platforms=[platform])
  return exported(shapes).mlir_module()


def test_auto_chooses_an_implementation_for_each_platform():
  """Without a GPU on this machine, the choice for CUDA is "xla"."""
  marks = {"cpu": "while", "tpu": "tpu_custom_call"}
  for platform in ("cpu", "tpu", "cuda"):
    text = lowered_for(platform, jnp.bfloat16)
    for other, mark in marks.items():
      assert (mark in text) == (platform == other), (platform, mark)
  choose = attention.choose_implementation
  assert choose("auto", "bfloat16", "cuda") == "xla"
  assert choose("xla", "bfloat16", "cpu") == "xla"


@pytest.mark.parametrize(
  "implementation, dtype, expected",
  (
    ("splash", "float32", "needs a TPU, but JAX runs on cpu"),
    ("cudnn", "bfloat16", "this machine has no CUDA device"),
    (
      "cudnn",
      "float32",
      "computes in 16 bits, but config.backbone.dtype is float",
    ),
  ),
)
def test_an_unsupported_implementation_is_rejected(
  implementation, dtype, expected
):
  with pytest.raises(InputError, match=expected):
    attention.require_implementation(implementation, dtype)
  for good in ("auto", "xla", "heads"):
    attention.require_implementation(good, dtype)


@pytest.mark.parametrize(
  "version, reason",
  ((91200, ""), (91301, "cuDNN 91301 is faulty"), (91600, "")),
)
def test_faulty_versions_of_cudnn_are_not_used(monkeypatch, version, reason):
  class Library:
    def __init__(self, name):
      assert name == "libcudnn.so.9"

    def cudnnGetVersion(self):
      return version

  monkeypatch.setattr("ctypes.CDLL", Library)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert attention._cudnn_problem("bfloat16") == reason
  want = "xla" if reason else "cudnn"
  assert attention.choose_implementation("auto", jnp.bfloat16) == want
