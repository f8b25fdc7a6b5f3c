"""CLIP from a Hugging Face folder, strictly."""

import json
import shutil

import chex
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import FlaxCLIPModel

from cops_jax import weights
from cops_jax.errors import InputError


@pytest.fixture
def copy(clip_folder, tmp_path):
  return shutil.copytree(clip_folder, tmp_path / "copy")


def edit(folder, **changes):
  """Changes tensors of a folder; None removes one."""
  path = folder / "model.safetensors"
  tensors = {**load_file(path), **changes}
  save_file({k: v for k, v in tensors.items() if v is not None}, path)


def test_round_trip_is_exact_in_half_precision(clip_folder, tmp_path):
  first = weights.load_clip(str(clip_folder))
  shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
  weights.save_clip(tmp_path, first.config, first.params)
  second = weights.load_clip(str(tmp_path))
  chex.assert_trees_all_equal(first.params, second.params)
  assert second.params["logit_scale"].shape == ()
  assert second.tokens == first.tokens


def test_same_parameters_as_torchs_clip(clip_folder):
  """transformers' torch model reads the folder to the same output."""
  torch = pytest.importorskip("torch")
  from transformers import CLIPModel

  loaded = weights.load_clip(str(clip_folder))
  flax_model = FlaxCLIPModel(loaded.config, _do_init=False)
  pixels = np.random.default_rng(0).normal(size=(2, 3, 64, 64))
  pixels = pixels.astype(np.float32)
  ids = np.array([[5, 6, 7, 8]], np.int32)
  ours = flax_model(ids, pixels, params=loaded.params)
  model = CLIPModel.from_pretrained(clip_folder, torch_dtype=torch.float32)
  with torch.no_grad():
    theirs = model(torch.tensor(ids, dtype=torch.long), torch.tensor(pixels))
  for name in ("image_embeds", "text_embeds", "logits_per_image"):
    np.testing.assert_allclose(
      ours[name], theirs[name].numpy(), rtol=1e-4, atol=1e-5
    )


def test_torchs_own_format(copy):
  """As on hub models that offer nothing else, with a buffer of old versions."""
  torch = pytest.importorskip("torch")
  expected = weights.load_clip(str(copy))
  tensors = load_file(copy / "model.safetensors")
  state = {name: torch.tensor(array) for name, array in tensors.items()}
  state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
  torch.save(state, copy / "pytorch_model.bin")
  (copy / "model.safetensors").unlink()
  actual = weights.load_clip(str(copy))
  chex.assert_trees_all_equal(actual.params, expected.params)


@pytest.mark.parametrize("tensors", ("model.safetensors", "pytorch_model.bin"))
def test_a_hub_name_downloads_what_is_needed(clip_folder, monkeypatch, tensors):
  import huggingface_hub

  asked = {}

  def snapshot_download(name, revision, allow_patterns):
    asked[name, revision] = allow_patterns
    return str(clip_folder)

  monkeypatch.setattr(
    huggingface_hub.HfApi,
    "list_repo_files",
    lambda self, name, revision: [tensors, "pytorch_model.bin", "tf_model.h5"],
  )
  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  weights.load_clip("some/clip", revision="v1")
  assert asked == {
    ("some/clip", "v1"): ["config.json", "vocab.json", "merges.txt", tensors]
  }


def test_tokens_of_the_demo():
  clip = weights.load_clip(weights.DEMO_CLIP)
  vocab = json.loads((weights.DEMO_FOLDER / "vocab.json").read_text())
  assert clip.tokens == weights.PromptTokens(
    start=vocab["<|startoftext|>"],
    object=vocab["object</w>"],
    period=vocab[".</w>"],
    end=vocab["<|endoftext|>"],
  )


def test_the_demo_is_small():
  files = weights.DEMO_FOLDER.rglob("*")
  assert sum(file.stat().st_size for file in files) < 8e6


def test_every_wrong_tensor_is_listed(copy):
  edit(
    copy,
    **{
      "logit_scale": None,
      "text_projection.weight": np.zeros((3, 24), np.float16),
      "surplus.weight": np.zeros(2, np.float16),
      "vision_model.embeddings.position_ids": np.arange(17),
    },
  )
  with pytest.raises(InputError) as caught:
    weights.load_clip(str(copy))
  message = str(caught.value)
  assert "missing: logit_scale" in message
  assert "text_projection.weight: (3, 24), expected (24, 24)" in message
  assert "unexpected: surplus.weight" in message
  assert "position_ids" not in message


def test_truncated_file(copy):
  path = copy / "model.safetensors"
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(InputError, match="not a whole safetensors file"):
    weights.load_clip(str(copy))


@pytest.mark.parametrize(
  "name", ("config.json", "vocab.json", "merges.txt", "model.safetensors")
)
def test_missing_file(copy, name):
  (copy / name).unlink()
  with pytest.raises(InputError, match=f"{name} does not exist"):
    weights.load_clip(str(copy))


def test_damaged_config(copy):
  (copy / "config.json").write_text("{")
  with pytest.raises(InputError, match="config.json is not JSON"):
    weights.load_clip(str(copy))


def test_unknown_name(monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  import huggingface_hub.constants

  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(InputError, match="'no/such-clip' are neither a folder"):
    weights.load_clip("no/such-clip")
