"""Floating-point operations per image, and peak rates of devices.

A product of (n, k) and (k, m) counts as 2 n k m operations. Embeddings, norms,
softmax and anomaly maps are not counted; together they are below one percent.
"""

from __future__ import annotations

from typing import Any

from cops_jax.backbones.vision import sizes_of

# Published peak rates of dense 16-bit products in TFLOP/s, by `device_kind`.
PEAK_TERA_FLOPS = {
  "TPU v4": 275.0,
  "TPU v5 lite": 197.0,
  "TPU v5": 459.0,
  "TPU v6 lite": 918.0,
  "Tesla V100-SXM2-16GB": 125.0,
  "Tesla V100-SXM2-32GB": 125.0,
  "NVIDIA A100-SXM4-40GB": 312.0,
  "NVIDIA A100-SXM4-80GB": 312.0,
  "NVIDIA A100 80GB PCIe": 312.0,
  "NVIDIA H100 80GB HBM3": 989.0,
  "NVIDIA H100 PCIe": 756.0,
  "NVIDIA H200": 989.0,
}


def vision_flops(config: Any, backbone: Any) -> float:
  """Returns the operations that compute an image's features.

  `backbone` is the configuration of the backbone; see `vision.sizes_of`.
  """
  model, sizes = config.model, sizes_of(backbone)
  num_patches = (model.image_size_pixels // sizes.patch_size) ** 2
  tokens, width = num_patches + sizes.num_other_tokens, sizes.width
  mlp = 4 * width * sizes.mlp_width
  attention = 4 * tokens**2 * width
  layer = tokens * (8 * width**2 + mlp) + attention
  last = max(model.feature_layers)
  num_layers, num_value = sizes.num_layers, model.num_value_layers
  flops = (num_layers - 1) * layer
  if num_value:
    # The last layer computes keys and values of all tokens, but one query.
    flops += 4 * tokens * width**2 + 4 * width**2 + mlp
    # The value path has attention and its output projection only.
    num_value = max(min(num_value - num_layers + last, num_value), 0)
    flops += num_value * (attention + 2 * tokens * width**2)
  else:
    flops += layer
  flops += 2 * num_patches * 3 * sizes.patch_size**2 * width
  if joint_width := getattr(backbone, "projection_dim", 0):
    flops += 2 * len(model.feature_layers) * num_patches * width * joint_width
  return float(flops)


def prompt_flops(
  num_tokens: float, backbone: Any, *, is_training: bool
) -> float:
  """Returns the operations that compute an image's prompts.

  Args:
    num_tokens: text tokens per image; see `methods.Model.num_prompt_tokens`.
    backbone: configuration of CLIP; not read if num_tokens is 0.
    is_training: if True, counts the gradient too. It doubles the operations,
      because it passes through the text tower, whose weights are frozen.
  """
  if not num_tokens:
    return 0.0
  text = backbone.text_config
  width = text.hidden_size
  per_token = 8 * width**2 + 4 * width * text.intermediate_size
  passes = 2 if is_training else 1
  return float(passes * text.num_hidden_layers * num_tokens * per_token)
