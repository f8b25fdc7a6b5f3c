"""Speed of the evaluation step, compared with a plain step.

Uses the published recipe with ViT-L/14@336, 518 x 518 pixels and random
weights. The step's operations are also compared with those of a matrix product.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import plain
from benchmarks.common import Row, load, measure
from cops_jax.backbones.features import join_params
from cops_jax.backbones.flops import prompt_flops, vision_flops
from cops_jax.backbones.vision import sizes_of
from cops_jax.evaluation.normal_images import make_memory_step
from cops_jax.evaluation.step import make_predict_step
from cops_jax.runtime.mesh import make_mesh, replicate, shard_batch
from cops_jax.weights.clip import DEMO_FOLDER
from cops_jax.weights.model import build_model, place_backbone

_OTHER_RECIPES = (
  *("anomalyclip_visa", "prompt_ensemble", "uniadet_visa:clip"),
  *("uniadet_visa:dinov2", "uniadet_visa:dinov3"),
)
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def rows(is_quick: bool) -> Iterator[Row]:
  """Yields rows as they are measured."""
  config, backbone = load("demo" if is_quick else "visa")
  model, mesh = build_model(config, backbone), make_mesh(jax.devices()[:1])
  trainable = replicate(model.init_trainable(jax.random.key(0)), mesh)
  backbone_params, _ = place_backbone(backbone, model, mesh, is_split=False)
  params = trainable, backbone_params
  step = make_predict_step(model, mesh)
  num_tokens = model.num_prompt_tokens(is_training=False)
  flops = vision_flops(config, backbone.config)
  flops += prompt_flops(num_tokens, backbone.config, is_training=False)
  repeats = 10 if is_quick else 3

  is_cpu = jax.default_backend() == "cpu"
  rate = _matrix_rate(backbone.config, config, 1 if is_cpu else 8)
  yield Row("matrix product", note=f"{rate / 1e9:.0f} GFLOP/s")
  side = config.model.image_size_pixels
  rng = np.random.default_rng(0)
  first = None
  for number in (1, 4) if is_cpu else (1, 2, 4, 8, 16, 32, 64):
    shape = number, side, side, 3
    batch = {"image": rng.integers(0, 256, shape, dtype=np.uint8)}
    placed = shard_batch(batch, mesh)
    start = time.perf_counter()
    compiled = step.lower(*params, placed).compile()
    compile_seconds = time.perf_counter() - start
    megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
    seconds = measure(
      lambda run=compiled, batch=placed: run(*params, batch), repeats
    )
    share = number * flops / np.median(seconds) / rate
    yield Row(
      f"evaluation step, batch size {number}",
      seconds,
      f"{number / np.median(seconds):.2f} images/s; {number * flops / 1e12:.3g}"
      f" TFLOP at {share:.2f} of the matrix rate; compiled in"
      f" {compile_seconds:.0f} s; {megabytes:.0f} MB temporary",
    )
    first = first or (batch, jax.device_get(compiled(*params, placed)), seconds)
  yield _plain_row(model, params, *first)
  names = ("uniadet_demo",) if is_quick else _OTHER_RECIPES
  yield from map(_method_row, names)


def _method_row(name):
  """Times the step for one image, for UniADet also with 4 reference images."""
  config, backbone = load(name)
  # The published tokenizer is not downloaded. The toy CLIP's knows these texts.
  if config.method == "prompt_ensemble":
    config.model.texts = "demo"
    backbone = dataclasses.replace(backbone, tokenizer=DEMO_FOLDER)
  model, mesh = build_model(config, backbone), make_mesh(jax.devices()[:1])
  trainable = model.init_trainable(jax.random.key(0), backbone.params)
  number = sum(leaf.size for leaf in jax.tree.leaves(trainable))
  backbone_params, _ = place_backbone(backbone, model, mesh, is_split=False)
  side = config.model.image_size_pixels
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, side, side, 3), dtype=np.uint8)
  batch = shard_batch({"image": images[:1]}, mesh)
  seconds, notes = [], [f"{number:,} parameters in addition to the backbone"]
  for shots in (0, 4) if config.method == "uniadet" else (0,):
    if shots:
      memory = make_memory_step(model, mesh)(backbone_params, images)
      trainable = {**trainable, **memory}
    params = replicate(trainable, mesh), backbone_params
    compiled = make_predict_step(model, mesh).lower(*params, batch).compile()
    run = functools.partial(compiled, *params, batch)
    seconds.append(measure(run, 3))
    megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
    notes.append(f"{megabytes:.0f} MB temporary")
  if len(seconds) > 1:
    notes.append(f"with 4 reference images {np.median(seconds[1]):.3g} s")
  return Row(f"{name}: 1 image", seconds[0], "; ".join(notes))


def _plain_row(model, params, batch, ours, our_seconds):
  step, config = plain.make_step(model), model.config
  variables = join_params(*params)
  for name, values in step(variables, batch["image"]).items():
    tolerance = _TOLERANCE[config.backbone.dtype]
    np.testing.assert_allclose(ours[name], values, atol=tolerance, rtol=0)
  seconds = measure(lambda: step(variables, batch["image"]), len(our_seconds))
  ratio = np.median(our_seconds) / np.median(seconds)
  note = f"the evaluation step takes {ratio:.2f} times as long"
  return Row("plain step, 1 image", seconds, note)


def _matrix_rate(backbone, config, number):
  """Returns the FLOP per second of a layer's largest matrix product."""
  sizes, dtype = sizes_of(backbone), jnp.dtype(config.backbone.dtype)
  tokens = (config.model.image_size_pixels // sizes.patch_size) ** 2 + 1
  tokens *= number
  width, hidden = sizes.width, sizes.mlp_width
  key = jax.random.key(0)
  left = jax.random.normal(key, (tokens, width), dtype)
  right = jax.random.normal(key, (width, hidden), dtype)
  multiply = jax.jit(jnp.matmul)
  seconds = measure(lambda: multiply(left, right), 20)
  return 2 * tokens * width * hidden / np.median(seconds)
