"""Attention among all tokens of an image, for each platform its own way.

All ways compute softmax(q k^T / sqrt(head_dim)) v. They differ in what of the
scores, a square of the number of tokens for each head, exists at a time.
"""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp

from cops_jax.errors import InputError
from cops_jax.models.devices import on_each_device
from cops_jax.typing import Array, Float

# "auto" is the platform's own: "heads" on CPU, "splash" on TPU, "cudnn" on CUDA
# where it can be used; everywhere else "xla".
IMPLEMENTATIONS = ("auto", "xla", "heads", "cudnn", "splash")

# Faults of flash attention at lengths that 128 does not divide were reported
# for cuDNN from the first of these versions to below the second.
_FAULTY_CUDNN = (91300, 91600)
# Rows and columns of scores that the TPU's kernel holds at a time.
_SPLASH_BLOCK = 512

Qkv = Float[Array, "b n heads d"]


@functools.partial(jax.jit, static_argnames="implementation")  # Traced once.
def attend(query: Qkv, key: Qkv, value: Qkv, implementation: str) -> Qkv:
  """Attention without a mask.

  Args:
    query, key, value: of one shape.
    implementation: of `IMPLEMENTATIONS`: "xla" has all scores at once, "heads"
      those of one image and head, "cudnn" and "splash" a block of them.
  """
  if implementation != "auto":
    return _FUNCTIONS[implementation](query, key, value)
  on_cuda = _FUNCTIONS[cuda_implementation("auto", query.dtype)]
  return jax.lax.platform_dependent(
    query, key, value, cpu=_by_head, tpu=_splash, cuda=on_cuda, default=_xla
  )


def cuda_implementation(
  implementation: str, dtype: jax.typing.DTypeLike
) -> str:
  """What `attend` does on CUDA, in a program that is made on this machine."""
  if implementation != "auto":
    return implementation
  return "xla" if _why_not_cudnn(dtype) else "cudnn"


def require_implementation(
  implementation: str, dtype: jax.typing.DTypeLike
) -> None:
  """Checks that this machine can compute attention in a way, and a type.

  Raises:
    InputError: it cannot.
  """
  platform, reason = jax.default_backend(), ""
  if implementation == "cudnn":
    reason = _why_not_cudnn(dtype)
  if implementation == "splash" and platform != "tpu":
    reason = f"it needs a TPU, and JAX computes on {platform} here"
  if reason:
    raise InputError(
      f"config.clip.attention is {implementation!r}, which cannot be used:"
      f" {reason}. Leave it 'auto'."
    )


def _why_not_cudnn(dtype):
  """Why cuDNN's flash attention cannot be lowered here; "" if it can."""
  if jnp.dtype(dtype).itemsize != 2:
    return f"it computes in 16 bits, and config.clip.dtype is {dtype}"
  from jax._src.lib import cuda_versions

  if jax.default_backend() != "gpu" or cuda_versions is None:
    return "this machine has no CUDA device"
  version = cuda_versions.cudnn_get_version()
  first, end = _FAULTY_CUDNN
  return f"cuDNN {version} has faults" if first <= version < end else ""


def _xla(query, key, value):
  return jax.nn.dot_product_attention(query, key, value)


def _cudnn(query, key, value):
  return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


@on_each_device
def _by_head(query, key, value):
  """One image and head after the other; its scores fit in a CPU's cache."""

  def attend_one(arrays):
    query, key, value = arrays  # n d
    scores = jnp.einsum(
      "qd,kd->qk", query, key, preferred_element_type=jnp.float32
    )
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    return (weights.astype(value.dtype) @ value / total).astype(value.dtype)

  batch, length, heads, width = query.shape
  rows = [
    array.swapaxes(1, 2).reshape(-1, length, width)
    for array in (query / width**0.5, key, value)
  ]
  mixed = jax.lax.map(attend_one, tuple(rows))
  return mixed.reshape(batch, heads, length, width).swapaxes(1, 2)


def padded_length(length: int) -> int:
  """Tokens that "splash" computes with, for a number of them."""
  return -(-length // _SPLASH_BLOCK) * _SPLASH_BLOCK


@on_each_device
def _splash(query, key, value):
  """The TPU's kernel; tokens are padded to whole blocks, and masked."""
  from jax.experimental.pallas.ops.tpu import splash_attention

  _, length, heads, width = query.shape
  padded, block = padded_length(length), _SPLASH_BLOCK
  kernel = splash_attention.make_splash_mha_single_device(
    splash_attention.MultiHeadMask(
      [splash_attention.FullMask((padded, padded))] * heads
    ),
    block_sizes=splash_attention.BlockSizes(
      block_q=block, block_kv=block, block_kv_compute=block
    ),
  )
  is_token = (jnp.arange(padded) < length).astype(jnp.int32)
  rows = [
    jnp.pad(
      array.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded - length), (0, 0))
    )
    for array in (query / width**0.5, key, value)
  ]
  # The kernel multiplies 16 bits in no other precision than its own.
  is_short = query.dtype.itemsize == 2
  with (
    jax.default_matmul_precision("default")
    if is_short
    else contextlib.nullcontext()
  ):
    mixed = jax.vmap(kernel, in_axes=(0, 0, 0, None))(
      *rows, splash_attention.SegmentIds(is_token, is_token)
    )
  return mixed[:, :, :length].swapaxes(1, 2)


_FUNCTIONS = {
  "xla": _xla,
  "heads": _by_head,
  "cudnn": _cudnn,
  "splash": _splash,
}
