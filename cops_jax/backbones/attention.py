"""Self-attention over an image's tokens, with one implementation per platform.

All implementations compute softmax(q k^T / sqrt(head_dim)) v. The scores are an
n x n matrix per head for n tokens. The implementations differ in how much of it
is in memory at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cops_jax.backbones.devices import on_each_device
from cops_jax.errors import InputError
from cops_jax.typing import Array, Float

# From the first of these cuDNN versions up to, but not including, the second,
# flash attention has reported faults at lengths that 128 does not divide.
_FAULTY_CUDNN = (91300, 91600)
# Side of the block of scores that the TPU kernel computes at a time.
_SPLASH_BLOCK = 512
_PARTS = ("kernel", "bias")

# Parameters of an attention layer, named as in transformers' Flax CLIP: q_proj,
# k_proj, v_proj and out_proj, each with kernel and bias.
Layers = Mapping[str, Mapping[str, Array]]


@functools.partial(  # Under jit, all layers share one trace.
  jax.jit,
  static_argnames=(
    *("num_heads", "num_queries", "has_value_path", "implementation"),
  ),
)
def self_attention(
  hidden: Float[Array, "b n c"],
  layers: Layers,
  *,
  num_heads: int,
  num_queries: int,
  has_value_path: bool,
  implementation: str,
  rotation: tuple[Float[Array, "n d"], Float[Array, "n d"]] | None = None,
) -> tuple[Float[Array, "b q c"], Float[Array, "b n c"] | None]:
  """Returns self-attention without a mask and, optionally, its value path.

  Args:
    hidden: tokens, after the layer's first norm.
    layers: parameters of the query, key, value and output projections.
    num_heads: number of heads, which share the width c.
    num_queries: 1 to compute the first token only, or the number of tokens.
    has_value_path: if True, also computes value-value attention
      softmax(v v^T / sqrt(head_dim)) v of all tokens.
    implementation: "xla" holds all scores at once, "heads" those of one image
      and head, "cudnn" and "splash" a block of them.
    rotation: cosines and sines of the tokens' rotary angles, for the channels
      of one head; None for no rotation.

  Returns:
    The attention of the queries, and the value-value attention or None, both
    after the output projection.
  """
  function, length = _FUNCTIONS[implementation], hidden.shape[1]
  is_splash = implementation == "splash"
  # Padding the tokens before the projections pads them once, not per head.
  padding = padded_length(length) - length if is_splash else 0
  padded = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
  split, merge = (
    functools.partial(step, is_direct=is_splash)
    for step in (_split_heads, _merge_heads)
  )
  key = _rotate(split(padded, layers["k_proj"], num_heads), rotation)
  value = split(padded, layers["v_proj"], num_heads)
  if num_queries == length:
    query = _rotate(split(padded, layers["q_proj"], num_heads), rotation)
    own = function(query, key, value, length)
  else:
    query = split(hidden[:, :num_queries], layers["q_proj"], num_heads)
    query = _rotate(query, rotation)
    own = _xla(query, key[:, :, :length], value[:, :, :length], length)
  own = merge(own, layers["out_proj"])
  if not has_value_path:
    return own, None
  values = function(value, value, value, length)
  return own, merge(values, layers["out_proj"])


def _split_heads(tokens, layer, num_heads, is_direct):
  """Projects tokens (b, n, c) to heads, (b, heads, n, head_dim).

  With is_direct, the product yields the memory layout that the TPU kernel
  reads. On a CPU, that product would copy the matrices.
  """
  kernel, bias = (layer[name].astype(tokens.dtype) for name in _PARTS)
  if is_direct:
    kernel = kernel.reshape(len(kernel), num_heads, -1)
    bias = bias.reshape(1, num_heads, 1, -1)
    return jnp.einsum("bnc,chd->bhnd", tokens, kernel) + bias
  projected = tokens @ kernel + bias[None, None]
  return projected.reshape(*tokens.shape[:2], num_heads, -1).swapaxes(1, 2)


def _rotate(tokens, rotation):
  """Rotates channels i and i + d/2 of each token by the token's angles."""
  if rotation is None:
    return tokens
  # There can be fewer queries than tokens, or padding, which becomes 0.
  length = tokens.shape[2]
  cosine, sine = (
    jnp.pad(array, ((0, max(length - len(array), 0)), (0, 0)))[:length]
    .astype(tokens.dtype)
    .reshape(1, 1, length, -1)
    for array in rotation
  )
  first, second = jnp.split(tokens, 2, axis=-1)
  turned = jnp.concatenate([-second, first], axis=-1)
  return tokens * cosine + turned * sine


def _merge_heads(mixed, layer, is_direct):
  """Joins the heads of each token and applies the output projection."""
  kernel, bias = (layer[name].astype(mixed.dtype) for name in _PARTS)
  batch, heads, length, width = mixed.shape
  if is_direct:
    kernel = kernel.reshape(heads, width, -1)
    merged = jnp.einsum("bhnd,hdc->bnc", mixed, kernel)
  else:
    merged = mixed.swapaxes(1, 2).reshape(batch, length, -1) @ kernel
  return merged + bias[None, None]


def choose_implementation(
  implementation: str, dtype: jax.typing.DTypeLike, platform: str = ""
) -> str:
  """Returns an implementation of `self_attention`, never "auto".

  Args:
    implementation: config.backbone.attention; "auto" depends on the platform.
    dtype: type of the computation.
    platform: cpu, cuda or tpu; an empty string means this process's platform.
  """
  platform = platform or jax.default_backend()
  if implementation != "auto":
    return implementation
  if platform in ("cuda", "gpu"):
    return "xla" if _cudnn_problem(dtype) else "cudnn"
  return {"cpu": "heads", "tpu": "splash"}.get(platform, "xla")


def require_implementation(
  implementation: str, dtype: jax.typing.DTypeLike
) -> None:
  """Checks that this machine supports an implementation for a data type.

  Raises:
    InputError: if it does not.
  """
  platform, reason = jax.default_backend(), ""
  if implementation == "cudnn":
    reason = _cudnn_problem(dtype)
  if implementation == "splash" and platform != "tpu":
    reason = f"it needs a TPU, but JAX runs on {platform}"
  if reason:
    raise InputError(
      f"config.backbone.attention is {implementation!r}, which cannot be used:"
      f" {reason}. Set config.backbone.attention to 'auto'."
    )


def _cudnn_problem(dtype):
  """Returns why cuDNN's flash attention cannot be used; empty if it can."""
  if jnp.dtype(dtype).itemsize != 2:
    return f"it computes in 16 bits, but config.backbone.dtype is {dtype}"
  version = _cudnn_version() if jax.default_backend() == "gpu" else None
  if version is None:
    return "this machine has no CUDA device with cuDNN 9"
  first, end = _FAULTY_CUDNN
  return f"cuDNN {version} is faulty" if first <= version < end else ""


def _cudnn_version():
  """Returns the version of the cuDNN that JAX has loaded, or None."""
  try:
    return ctypes.CDLL("libcudnn.so.9").cudnnGetVersion()
  except (OSError, AttributeError):
    return None


def _xla(query, key, value, _, implementation=None):
  # JAX expects tokens before heads.
  arrays = (array.swapaxes(1, 2) for array in (query, key, value))
  mixed = jax.nn.dot_product_attention(*arrays, implementation=implementation)
  return mixed.swapaxes(1, 2)


def _by_head(query, key, value, _):
  """Computes one head of one image at a time; its scores fit a CPU's cache."""

  @on_each_device
  def attend(query, key, value):
    rows = [
      array.reshape(-1, *array.shape[2:])
      for array in (query / query.shape[-1] ** 0.5, key, value)
    ]
    return jax.lax.map(attend_one, tuple(rows)).reshape(query.shape)

  def attend_one(arrays):
    query, key, value = arrays  # n d
    scores = jnp.einsum(
      "qd,kd->qk", query, key, preferred_element_type=jnp.float32
    )
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    return (weights.astype(value.dtype) @ value / total).astype(value.dtype)

  return attend(query, key, value)


def padded_length(length: int) -> int:
  """Returns the number of tokens with the padding that "splash" needs."""
  return -(-length // _SPLASH_BLOCK) * _SPLASH_BLOCK


def _splash(query, key, value, length):
  """Runs the TPU kernel; tokens from position `length` on are padding."""
  from jax.experimental.pallas.ops.tpu import splash_attention

  _, heads, padded, width = query.shape
  block = _SPLASH_BLOCK
  kernel = splash_attention.make_splash_mha_single_device(
    splash_attention.MultiHeadMask(
      [splash_attention.FullMask((padded, padded))] * heads
    ),
    block_sizes=splash_attention.BlockSizes(
      block_q=block, block_kv=block, block_kv_compute=block
    ),
  )
  is_token = (jnp.arange(padded) < length).astype(jnp.int32)
  segments = splash_attention.SegmentIds(is_token, is_token)

  @on_each_device
  def attend(query, key, value):
    # For 16-bit inputs the kernel supports only the default precision.
    is_short = query.dtype.itemsize == 2
    with (
      jax.default_matmul_precision("default")
      if is_short
      else contextlib.nullcontext()
    ):
      return jax.vmap(kernel, in_axes=(0, 0, 0, None))(
        query, key, value, segments
      )

  return attend(query / width**0.5, key, value)[:, :, :length]


_FUNCTIONS = {
  "xla": _xla,
  "heads": _by_head,
  "cudnn": functools.partial(_xla, implementation="cudnn"),
  "splash": _splash,
}
