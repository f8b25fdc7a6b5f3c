"""Rows of the benchmarks' table, and the models and images that they use."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from cops_jax.backbones.transformers_clip import CLIPConfig
from cops_jax.config import recipe
from cops_jax.weights.clip import OPENAI_TOKENS, PretrainedCLIP, load_clip
from cops_jax.weights.clip_names import clip_param_shapes
from cops_jax.weights.model import settle_dtype


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table.

  Attributes:
    what: was measured.
    seconds: of each repetition; None if the row has no time.
    note: rates and ratios, with what was measured in the same run.
  """

  what: str
  seconds: np.ndarray | None = None
  note: str = ""


def measure(call: Callable[[], Any], repeats: int) -> np.ndarray:
  """Returns seconds of each call, after one that does not count."""
  seconds = []
  for _ in range(1 + repeats):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return np.array(seconds[1:])


def clip_config() -> CLIPConfig:
  """Returns the sizes of OpenAI's ViT-L/14@336."""
  return CLIPConfig(
    text_config=dict(
      hidden_size=768,
      intermediate_size=3072,
      num_hidden_layers=12,
      num_attention_heads=12,
    ),
    vision_config=dict(
      hidden_size=1024,
      intermediate_size=4096,
      num_hidden_layers=24,
      num_attention_heads=16,
      image_size=336,
      patch_size=14,
    ),
    projection_dim=768,
  )


def load(is_quick: bool) -> tuple[Any, PretrainedCLIP]:
  """Returns the demo's config and CLIP, or the published recipe's.

  The latter's CLIP has random weights.
  """
  config = settle_dtype(recipe("demo" if is_quick else "visa"), None)
  if is_quick:
    return config, load_clip("demo")
  rng = np.random.default_rng(0)
  sizes = clip_config()
  params = jax.tree.map(
    lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32),
    clip_param_shapes(sizes),
  )
  return config, PretrainedCLIP(sizes, params, OPENAI_TOKENS, "random")


def write_images(root: pathlib.Path, number: int) -> None:
  """Writes smooth noise, which compresses about as photographs do.

  Images of 1024 x 1024 pixels, half PNG and half JPEG, half of them with a
  mask, in MVTec AD's layout.
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
