"""DINO folders: supported models are read, and all others are refused."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cops_jax import config as configuration
from cops_jax.errors import InputError
from cops_jax.weights.backbone import load_backbone
from cops_jax.weights.dino import load_dino
from cops_jax.weights.model import build_model
from helpers.dino import write_golden

KINDS = ("dinov2", "dinov3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, clip_folder):
  root = tmp_path_factory.mktemp("folders")
  made = {kind: write_golden(kind, root / kind) for kind in KINDS}
  return {"clip": clip_folder, **made}


@pytest.fixture
def change(folders, tmp_path):
  """A function that copies a folder and changes values in its config.json."""

  def change(kind, **values):
    copy = shutil.copytree(folders[kind], tmp_path / f"{kind}-changed")
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return copy

  return change


def make_config(kind, folder):
  config = configuration.recipe("uniadet_demo")
  config.backbone.kind, config.backbone.weights = kind, str(folder)
  config.model.feature_layers = (2, 3)
  return config


@pytest.mark.parametrize(
  "kind, other",
  (("clip", "dinov2"), ("dinov2", "clip"), ("dinov3", "dinov2")),
)
def test_a_folder_of_another_kind_is_refused(folders, kind, other):
  with pytest.raises(InputError, match=f"config.backbone.kind is '{kind}'"):
    load_backbone(make_config(kind, folders[other]))


def test_a_method_with_texts_needs_clip(folders):
  config = configuration.recipe("demo")
  config.backbone.kind = "dinov2"
  config.backbone.weights = str(folders["dinov2"])
  with pytest.raises(InputError, match="it must be 'clip' with the method"):
    build_model(config, load_backbone(config))


@pytest.mark.parametrize("kind, size", (("dinov2", 512), ("dinov3", 518)))
def test_the_image_size_must_be_a_multiple_of_the_patch_size(
  folders, kind, size
):
  config = make_config(kind, folders[kind])
  config.model.image_size_pixels = size
  with pytest.raises(InputError, match="a multiple of the patch size"):
    build_model(config, load_backbone(config))


@pytest.mark.parametrize(
  "kind, values, expected",
  (
    ("dinov2", {"model_type": "dinov2"}, "a DINOv2 without registers: choo"),
    ("dinov2", {"model_type": "vit"}, "has the model_type 'vit', but"),
    ("dinov2", {"use_swiglu_ffn": True}, "only False is supported"),
    ("dinov3", {"use_gated_mlp": True}, "only False is supported"),
    ("dinov3", {"num_attention_heads": 3}, "3 heads do not divide 64"),
    ("dinov3", {"num_hidden_layers": 10**9}, "num_layers is 1000000000"),
    ("dinov3", {"num_hidden_layers": 9}, r"missing: layer\.4\.attention\.k"),
    ("dinov3", {"hidden_size": "many"}, "width is 'many'"),
    ("dinov2", {"image_size": 14}, "shape of embeddings.position_embeddings"),
  ),
)
def test_other_architectures_are_refused(change, kind, values, expected):
  with pytest.raises(InputError, match=expected):
    load_dino(kind, str(change(kind, **values)))


def test_missing_registers_and_key_biases_are_refused(change):
  for kind, edit, expected in (
    ("dinov2", "embeddings.register_tokens", "missing: embeddings.register"),
    ("dinov3", "layer.0.attention.k_proj.bias", "DINOv3's keys have"),
  ):
    path = change(kind) / "model.safetensors"
    tensors = load_file(path)
    if tensors.pop(edit, None) is None:
      tensors[edit] = np.zeros(64, np.float32)
    save_file(tensors, path)
    with pytest.raises(InputError, match=expected):
      load_dino(kind, str(path.parent))


def test_a_file_and_a_folder_without_config_are_refused(folders, tmp_path):
  path = folders["dinov3"] / "model.safetensors"
  with pytest.raises(InputError, match="name the folder with its config.json"):
    load_dino("dinov3", str(path))
  with pytest.raises(InputError, match="config.json does not exist; a Hugging"):
    load_dino("dinov3", str(tmp_path))


def test_a_method_without_texts_loads_no_text_tower(folders, tmp_path):
  copy = shutil.copytree(folders["clip"], tmp_path / "clip")
  for name in ("vocab.json", "merges.txt"):
    (copy / name).unlink()
  params = load_backbone(make_config("clip", copy)).params
  assert params.keys() == {"vision_model", "visual_projection", "logit_scale"}
