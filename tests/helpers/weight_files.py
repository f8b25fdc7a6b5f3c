"""One tiny CLIP and tiny prompts in every file format.

The files in tests/data/weights were written with torch 2.13.0 and transformers
4.57.6, so that the formats can be tested without torch. The two in OpenAI's
names were saved from one torch module with OpenAI's layout, as its state dict
and, by tracing it, as TorchScript. This command writes the other files:

  cd tests && python -c "from helpers import weight_files as w; w.write_all()"
"""

import pathlib

import numpy as np

DATA = pathlib.Path(__file__).parents[1] / "data" / "weights"
OPENAI_FILES = ("openai_script.pt", "openai_state.pt")
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")
FILES = (*OPENAI_FILES, *FOLDER_FILES, "epoch_1.pth")


def make_torch_clip():
  """Returns transformers' torch CLIP with the weights of the stored files."""
  import torch
  from transformers import CLIPModel

  from cops_jax.weights import clip_names
  from cops_jax.weights.tensor_files import read_tensor_file
  from tools.pretrain_demo_clip.model import to_torch_names

  source = read_tensor_file(DATA / "openai_state.pt").tensors
  config = clip_names.config_from_openai(source, "the stored file")
  params = clip_names.clip_params_from_tensors(
    source, config, clip_names.openai_place, "the stored file"
  )
  result = CLIPModel(config).eval()
  tensors = to_torch_names(params)
  result.load_state_dict(
    {name: torch.tensor(np.array(array)) for name, array in tensors.items()}
  )
  return result


def authors_tensors(width=8):
  """Returns random prompts in the authors' format, which has no encoder."""
  rng = np.random.default_rng(1)
  linear = ("attn.out_proj", "mlp.c_fc", "mlp.c_proj")
  shapes = {
    "ctx_pos": (1, 1, 14, width),
    "ctx_neg": (1, 1, 14, width),
    "t_n": (6, width),
    "t_a": (6, width),
    "extractor.attn.in_proj_weight": (3 * width, width),
    "extractor.attn.in_proj_bias": (3 * width,),
  }
  for name in (
    *(f"extractor.{part}" for part in linear),
    *("vae_decoder.net.0", "vae_decoder.net.2"),
  ):
    shapes |= {f"{name}.weight": (width, width), f"{name}.bias": (width,)}
  for name in ("extractor.ln_1", "extractor.ln_2"):
    shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
  for index in range(2):
    shapes[f"compound_prompts_text.{index}"] = (4, width)
  return {
    name: rng.normal(0, 0.1, shape).astype(np.float16)
    for name, shape in shapes.items()
  }


def write_all(folder=DATA):
  """Writes all files except OpenAI's; CLIP's config is next to its weights."""
  import torch
  from transformers import FlaxCLIPModel

  torch_clip = make_torch_clip()
  torch_clip.half().save_pretrained(folder)
  torch.save(torch_clip.state_dict(), folder / "pytorch_model.bin")
  FlaxCLIPModel.from_pretrained(folder, from_pt=True).save_pretrained(folder)
  tensors = authors_tensors()
  torch.save(
    {"prompt_learner": {k: torch.tensor(v) for k, v in tensors.items()}},
    folder / "epoch_1.pth",
  )
