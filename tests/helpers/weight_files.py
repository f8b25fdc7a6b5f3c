"""One tiny CLIP, and tiny prompts, in every format, as their own tools write.

The files in tests/data/weights were written with torch 2.13.0 and transformers
4.57.6 by

  cd tests && python -c "import weight_files; weight_files.write_all()"

so that the formats are tested without torch too. Only that command needs it.
"""

import pathlib

import numpy as np
from transformers import CLIPConfig

DATA = pathlib.Path(__file__).parents[1] / "data" / "weights"
OPENAI_FILES = ("openai_script.pt", "openai_state.pt")
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")
FILES = (*OPENAI_FILES, *FOLDER_FILES, "epoch_1.pth")


def clip_config(vocabulary=20):
  """Two vision layers and a text layer; one head in either tower."""
  sizes = dict(
    hidden_size=8,
    intermediate_size=32,
    num_attention_heads=1,
    hidden_act="quick_gelu",
  )
  return CLIPConfig(
    text_config=dict(
      vocab_size=vocabulary,
      max_position_embeddings=20,
      num_hidden_layers=1,
      bos_token_id=vocabulary - 2,
      eos_token_id=vocabulary - 1,
      **sizes,
    ),
    vision_config=dict(
      image_size=8, patch_size=4, num_hidden_layers=2, **sizes
    ),
    projection_dim=8,
  )


def make_openai_clip(vocabulary=20):
  """A torch module with OpenAI's parameter names and random fp16 weights."""
  import torch
  from torch import nn

  class QuickGELU(nn.Module):
    def forward(self, x):
      return x * torch.sigmoid(1.702 * x)

  class Block(nn.Module):
    def __init__(self, width, mask):
      super().__init__()
      self.attn = nn.MultiheadAttention(width, 1, batch_first=True)
      self.ln_1 = nn.LayerNorm(width)
      self.mlp = nn.Sequential()
      self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
      self.mlp.add_module("gelu", QuickGELU())
      self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
      self.ln_2 = nn.LayerNorm(width)
      self.attn_mask = mask

    def forward(self, x):
      h = self.ln_1(x)
      mask = None if self.attn_mask is None else self.attn_mask.to(h.dtype)
      x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
      return x + self.mlp(self.ln_2(x))

  class Transformer(nn.Module):
    def __init__(self, width, layers, mask=None):
      super().__init__()
      self.resblocks = nn.Sequential(
        *(Block(width, mask) for _ in range(layers))
      )

    def forward(self, x):
      return self.resblocks(x)

  class Visual(nn.Module):
    def __init__(self, width, layers, patch_size, num_patches, joint):
      super().__init__()
      self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
      self.class_embedding = nn.Parameter(torch.empty(width))
      self.positional_embedding = nn.Parameter(
        torch.empty(num_patches + 1, width)
      )
      self.ln_pre = nn.LayerNorm(width)
      self.transformer = Transformer(width, layers)
      self.ln_post = nn.LayerNorm(width)
      self.proj = nn.Parameter(torch.empty(width, joint))

    def forward(self, images):
      x = self.conv1(images).flatten(2).transpose(1, 2)
      first = self.class_embedding.expand(len(x), 1, -1)
      x = torch.cat([first, x], dim=1) + self.positional_embedding
      x = self.transformer(self.ln_pre(x))
      return self.ln_post(x[:, 0]) @ self.proj

  class CLIP(nn.Module):
    def __init__(self, config):
      super().__init__()
      vision, text = config.vision_config, config.text_config
      length, width = text.max_position_embeddings, text.hidden_size
      mask = torch.full((length, length), float("-inf")).triu(1)
      self.visual = Visual(
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.patch_size,
        (vision.image_size // vision.patch_size) ** 2,
        config.projection_dim,
      )
      self.transformer = Transformer(width, text.num_hidden_layers, mask)
      self.token_embedding = nn.Embedding(text.vocab_size, width)
      self.positional_embedding = nn.Parameter(torch.empty(length, width))
      self.ln_final = nn.LayerNorm(width)
      self.text_projection = nn.Parameter(
        torch.empty(width, config.projection_dim)
      )
      self.logit_scale = nn.Parameter(torch.empty(()))
      # OpenAI's archives note three sizes like this.
      for name, size in (
        ("input_resolution", vision.image_size),
        ("context_length", length),
        ("vocab_size", text.vocab_size),
      ):
        self.register_buffer(name, torch.tensor(size))

    def forward(self, images, tokens):
      x = self.token_embedding(tokens) + self.positional_embedding
      x = self.ln_final(self.transformer(x))
      last = tokens.argmax(dim=-1)
      texts = x[torch.arange(len(x)), last] @ self.text_projection
      return self.visual(images), texts

  model = CLIP(clip_config(vocabulary)).eval().requires_grad_(False)
  generator = torch.Generator().manual_seed(0)
  for parameter in model.parameters():
    values = torch.randn(parameter.shape, generator=generator)
    # Values of fp16, so that every format holds the same ones.
    parameter.data = (0.3 * values).half().float()
  return model


def trace(model):
  """TorchScript of the model, by tracing, as OpenAI's archives are made."""
  import torch

  config = clip_config()
  side = config.vision_config.image_size
  length = config.text_config.max_position_embeddings
  images = torch.zeros(2, 3, side, side, dtype=model.visual.proj.dtype)
  tokens = torch.zeros(2, length, dtype=torch.long)
  return torch.jit.trace(model, (images, tokens), check_trace=False)


def to_hugging_face(model):
  """transformers' torch CLIP with the weights of `make_openai_clip`."""
  import torch
  from transformers import CLIPModel

  from cops_jax.weights import clip_names

  source = {name: v.numpy() for name, v in model.state_dict().items()}
  config = clip_names.config_from_openai(source, "the test's model")
  params = clip_names.params_from_tensors(
    source, config, clip_names.openai_place, "the test's model"
  )
  result = CLIPModel(config).eval()
  tensors = clip_names.params_to_torch_names(params)
  result.load_state_dict(
    {name: torch.tensor(array) for name, array in tensors.items()}
  )
  return result


def authors_tensors(width=8):
  """Random prompts as the authors' released files have them: no encoder."""
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
  """Writes every file; folders' files lie together, with their config."""
  import torch
  from transformers import FlaxCLIPModel

  folder.mkdir(parents=True, exist_ok=True)
  model = make_openai_clip()
  half = make_openai_clip().half()
  torch.save(half.state_dict(), folder / "openai_state.pt")
  torch.jit.save(trace(half), folder / "openai_script.pt")
  torch_clip = to_hugging_face(model)
  torch_clip.half().save_pretrained(folder)
  torch.save(torch_clip.state_dict(), folder / "pytorch_model.bin")
  FlaxCLIPModel.from_pretrained(folder, from_pt=True).save_pretrained(folder)
  tensors = authors_tensors()
  torch.save(
    {"prompt_learner": {k: torch.tensor(v) for k, v in tensors.items()}},
    folder / "epoch_1.pth",
  )
