"""Rows of the benchmarks' table, and models and images for the benchmarks."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from cops_jax import methods
from cops_jax.backbones.dino import DINOConfig
from cops_jax.backbones.transformers_clip import CLIPConfig
from cops_jax.config import recipe
from cops_jax.weights.backbone import PretrainedBackbone, load_backbone
from cops_jax.weights.clip import DEMO_CLIP, OPENAI_TOKENS, PretrainedCLIP
from cops_jax.weights.clip_names import VISION_PARAMS, clip_param_shapes
from cops_jax.weights.dino import PretrainedDINO, dino_param_shapes
from cops_jax.weights.model import choose_dtype


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table.

  Attributes:
    what: description of the measured operation.
    seconds: duration of each repetition; None if the row has no time.
    note: rates, and ratios to other measurements of the same run.
  """

  what: str
  seconds: np.ndarray | None = None
  note: str = ""


def measure(call: Callable[[], Any], repeats: int) -> np.ndarray:
  """Returns the seconds of each call, after a first call to warm up."""
  seconds = []
  for _ in range(1 + repeats):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return np.array(seconds[1:])


def published_config(kind: str) -> CLIPConfig | DINOConfig:
  """Returns the sizes of the published ViT-L of a config.backbone.kind."""
  width, num_layers, num_heads = 1024, 24, 16
  if kind == "clip":
    return CLIPConfig(
      text_config=dict(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
      ),
      vision_config=dict(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        image_size=336,
        patch_size=14,
      ),
      projection_dim=768,
    )
  is_second = kind == "dinov2"
  return DINOConfig(
    patch_size=14 if is_second else 16,
    num_layers=num_layers,
    num_heads=num_heads,
    width=width,
    mlp_width=4 * width,
    num_other_tokens=5,
    layer_norm_eps=1e-6 if is_second else 1e-5,
    position_grid=37 if is_second else 0,
    rope_theta=0.0 if is_second else 100.0,
  )


def without_weights(config: Any) -> PretrainedBackbone:
  """Returns the published backbone of a config's kind with shapes as weights.

  It includes CLIP's text tower only if the method uses it.
  """
  kind = config.backbone.kind
  sizes = published_config(kind)
  if kind != "clip":
    return PretrainedDINO(sizes, dino_param_shapes(sizes), "none")
  shapes = clip_param_shapes(sizes)
  if not methods.find(config.method).USES_TEXT:
    shapes = {name: shapes[name] for name in VISION_PARAMS}
  return PretrainedCLIP(sizes, shapes, OPENAI_TOKENS, "none")


def load(name: str) -> tuple[Any, PretrainedBackbone]:
  """Returns a recipe's config and backbone.

  A demo has the toy CLIP, and other recipes a backbone with random weights.
  """
  config = choose_dtype(recipe(name), None)
  if config.backbone.weights == DEMO_CLIP:
    return config, load_backbone(config)
  rng = np.random.default_rng(0)
  backbone = without_weights(config)
  params = jax.tree.map(
    lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32),
    backbone.params,
  )
  return config, dataclasses.replace(backbone, params=params)


def write_images(root: pathlib.Path, number: int) -> None:
  """Writes images of smooth noise, which compress about as well as photographs.

  The images have 1024 x 1024 pixels and MVTec AD's layout. Half of them are PNG
  files, and half are JPEG files. Half of them have a mask.
  """
  rng = np.random.default_rng(0)
  mask = np.zeros((1024, 1024), np.uint8)
  mask[100:300, 200:400] = 255
  for index in range(number):
    kind = ("good", "crack")[index % 2]
    coarse = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(mask.shape, Image.Resampling.BICUBIC)
    suffix = ("png", "jpg")[index // 2 % 2]
    files = {f"test/{kind}/{index:03}.{suffix}": image}
    if kind == "crack":
      name = f"ground_truth/{kind}/{index:03}_mask.png"
      files[name] = Image.fromarray(mask)
    for name, content in files.items():
      path = root / "part" / name
      path.parent.mkdir(parents=True, exist_ok=True)
      content.save(path)
