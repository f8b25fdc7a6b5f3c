"""The evaluation step against the plain one, torch and the machine itself.

  python -m benchmarks.evaluation

ViT-L/14@336 at 518 x 518 pixels with random weights and the published recipe's
config; with --quick the demo's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers  # noqa: F401  Before cops_jax, to find torch.

from benchmarks import plain, torch_tower, vit_l
from benchmarks.timing import Row, measure, row
from cops_jax.clip.features import join_params
from cops_jax.clip.flops import prompt_flops, vision_flops
from cops_jax.config import recipe
from cops_jax.evaluation.step import make_predict_step
from cops_jax.runtime.mesh import make_mesh, replicate, shard_batch
from cops_jax.runtime.randomness import (
  EVALUATION_KEY,
  example_noise,
  random_key,
)
from cops_jax.weights import build_model, load_clip, place_clip, settle_dtype

_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def rows(is_quick: bool) -> Iterator[Row]:
  """Measures; rows come as they are ready."""
  config = settle_dtype(recipe("demo" if is_quick else "visa"), None)
  clip = load_clip("demo") if is_quick else vit_l.random_clip()
  model, mesh = build_model(config, clip), make_mesh(jax.devices()[:1])
  trainable = replicate(model.init_trainable(jax.random.key(0)), mesh)
  clip_params, _ = place_clip(clip, model, mesh, is_split=False)
  step = make_predict_step(model, mesh)
  flops = vision_flops(config, clip.config)
  num_tokens = model.num_prompt_tokens(is_training=False)
  flops += prompt_flops(num_tokens, clip.config, is_training=False)
  repeats = 10 if is_quick else 3

  rate = _matrix_rate(clip.config, config, jnp.dtype(config.clip.dtype))
  yield Row("matrix product", note=f"{rate / 1e9:.0f} GFLOP/s")

  base = None
  for number in _batches(is_quick):
    batch = _make_batch(config, number)
    placed = shard_batch(batch, mesh)
    start = time.perf_counter()
    compiled = step.lower(trainable, clip_params, placed).compile()
    compile_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    seconds = measure(
      lambda compiled=compiled, placed=placed: compiled(
        trainable, clip_params, placed
      ),
      repeats,
    )
    base = base if base is not None else seconds
    share = number * flops / np.median(seconds) / rate
    yield row(
      f"evaluation step, {number} image(s)",
      seconds,
      f"{number / np.median(seconds):.2f} images/s, {share:.2f} of the matrix"
      f" rate on {number * flops / 1e12:.3g} TFLOP; compiled in"
      f" {compile_seconds:.0f} s; {memory.temp_size_in_bytes / 1e6:.0f} MB"
      " temporary",
    )

  batch = _make_batch(config, 1)
  params = (trainable, clip_params)
  ours = jax.device_get(step(*params, shard_batch(batch, mesh)))
  yield from _plain_row(config, model, params, batch, ours, base)
  yield from torch_tower.rows(
    config, model, clip, clip_params, batch["image"], repeats
  )


def _plain_row(config, model, params, batch, ours, base):
  settings = config.evaluation
  step = plain.make_step(model)
  noise = example_noise(
    random_key(config.seed, EVALUATION_KEY),
    jnp.asarray(batch["example_id"]),
    settings.num_samples,
    model.clip.config.projection_dim,
  )
  variables = join_params(*params)
  want = step(variables, batch["image"], noise)
  tolerance = _TOLERANCE[config.clip.dtype]
  for name, values in want.items():
    np.testing.assert_allclose(ours[name], values, atol=tolerance, rtol=0)
  seconds = measure(lambda: step(variables, batch["image"], noise), len(base))
  yield row(
    "the same, plainly, 1 image",
    seconds,
    f"the step above takes {np.median(base) / np.median(seconds):.2f} of it",
  )


def _batches(is_quick):
  if jax.default_backend() == "cpu":
    return (1, 4)
  return (1, 8) if is_quick else (1, 2, 4, 8, 16, 32, 64)


def _make_batch(config: Any, number: int) -> dict[str, np.ndarray]:
  side = config.model.image_size_pixels
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (number, side, side, 3), dtype=np.uint8),
    "example_id": np.arange(number, dtype=np.uint32),
  }


def _matrix_rate(clip, config, dtype):
  """FLOPs a second of the largest matrix product of a layer."""
  vision = clip.vision_config
  tokens = (config.model.image_size_pixels // vision.patch_size) ** 2 + 1
  if jax.default_backend() != "cpu":
    tokens *= 8
  shape = (tokens, vision.hidden_size, vision.intermediate_size)
  key = jax.random.key(0)
  left = jax.random.normal(key, shape[:2], dtype)
  right = jax.random.normal(key, shape[1:], dtype)
  multiply = jax.jit(jnp.matmul)
  seconds = measure(lambda: multiply(left, right), 20)
  return 2 * np.prod(shape) / np.median(seconds)


if __name__ == "__main__":
  from benchmarks.table import run

  run({"evaluation": rows})
