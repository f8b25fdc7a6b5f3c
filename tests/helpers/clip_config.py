"""Configurations of small CLIP models."""


def make_clip_config(
  text, vision, joint, image_size, patch_size, mlp_ratio=2, **text_fields
):
  """Returns a CLIPConfig; `text` and `vision` are (width, layers, heads)."""
  from transformers import CLIPConfig  # conftest imports this file.

  text, vision = (
    {
      "hidden_size": width,
      "intermediate_size": mlp_ratio * width,
      "num_hidden_layers": layers,
      "num_attention_heads": heads,
    }
    for width, layers, heads in (text, vision)
  )
  vision |= {"image_size": image_size, "patch_size": patch_size}
  return CLIPConfig(
    text_config=text | text_fields, vision_config=vision, projection_dim=joint
  )
