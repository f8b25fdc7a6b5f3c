"""CLIP is loaded strictly from every kind of file."""

import hashlib
import json
import shutil

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import FlaxCLIPModel

from cops_jax.backbones.clip import CLIP
from cops_jax.errors import InputError
from cops_jax.weights import clip, clip_names, folders
from cops_jax.weights.clip import (
  DEMO_CLIP,
  DEMO_FOLDER,
  PromptTokens,
  load_clip,
)
from cops_jax.weights.tensor_files import read_tensor_file
from helpers import hub, weight_files
from tools.pretrain_demo_clip.model import save_clip


@pytest.fixture
def copy(clip_folder, tmp_path):
  return shutil.copytree(clip_folder, tmp_path / "copy")


def edit(folder, **changes):
  """Changes tensors in a folder; None removes a tensor."""
  path = folder / "model.safetensors"
  tensors = {**load_file(path), **changes}
  save_file({k: v for k, v in tensors.items() if v is not None}, path)


def test_round_trip_is_exact_in_half_precision(clip_folder, tmp_path):
  first = load_clip(str(clip_folder))
  shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
  save_clip(tmp_path, first.config, first.params)
  second = load_clip(str(tmp_path))
  chex.assert_trees_all_equal(first.params, second.params)
  assert second.params["logit_scale"].shape == ()
  assert second.tokens == first.tokens
  assert second.sha256 == sha256(tmp_path / "model.safetensors")
  with pytest.raises(InputError, match=f"{second.sha256}, but .* is 00ff"):
    load_clip(str(tmp_path), sha256="00ff")


def test_shapes_are_those_of_the_model(clip_folder):
  config = load_clip(str(clip_folder)).config
  image = np.zeros((1, *[config.vision_config.image_size] * 2, 3), np.float32)
  tokens = np.zeros((1, 1), np.int32)
  inputs = tokens, image, tokens, tokens
  model = jax.eval_shape(CLIP(config).init, jax.random.key(0), *inputs)
  assert clip_names.clip_param_shapes(config) == model["params"]


def test_every_format_has_the_same_parameters(tmp_path):
  """torch and transformers wrote the files; neither is needed to read them."""
  folder = copy_folder(tmp_path)
  expected = None
  for name in weight_files.FOLDER_FILES:
    for other in weight_files.FOLDER_FILES:
      (folder / other).unlink(missing_ok=True)
    shutil.copy(weight_files.DATA / name, folder)
    backbone = load_clip(str(folder))
    expected = expected or backbone
    chex.assert_trees_all_equal(backbone.params, expected.params)
    assert backbone.sha256 == sha256(folder / name)
  for name in weight_files.OPENAI_FILES:
    tensors = read_tensor_file(weight_files.DATA / name).tensors
    config = clip_names.config_from_openai(tensors, name)
    params = clip_names.clip_params_from_tensors(
      tensors, config, clip_names.openai_place, name
    )
    chex.assert_trees_all_equal(params, expected.params)
    for tower in ("text_config", "vision_config"):
      ours, theirs = getattr(config, tower), getattr(expected.config, tower)
      assert ours.to_dict() == theirs.to_dict()
    assert config.projection_dim == expected.config.projection_dim


def sha256(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


def copy_folder(tmp_path):
  """Returns a Hugging Face folder of the tiny CLIP."""
  folder = tmp_path / "folder"
  folder.mkdir()
  for name in ("config.json", *weight_files.FOLDER_FILES):
    shutil.copy(weight_files.DATA / name, folder)
  for name in ("vocab.json", "merges.txt"):
    shutil.copy(DEMO_FOLDER / name, folder)
  return folder


@pytest.mark.parametrize("name", ("model.safetensors", "pytorch_model.bin"))
def test_files_of_transformers_have_the_output_of_torch(tmp_path, name):
  """transformers wrote them from fp32 weights, with torch's own buffers."""
  torch = pytest.importorskip("torch")
  model = weight_files.make_torch_clip()
  folder = copy_folder(tmp_path)
  for other in weight_files.FOLDER_FILES:
    (folder / other).unlink()
  if name == "model.safetensors":
    model.save_pretrained(folder)
  else:
    state = model.state_dict()
    # Old versions of transformers saved this buffer.
    state["text_model.embeddings.position_ids"] = torch.arange(20)[None]
    torch.save(state, folder / name)
  backbone = load_clip(str(folder))
  flax_model = FlaxCLIPModel(backbone.config, _do_init=False)
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
  tokens = np.array([[18, 5, 7, 3, 19], [18, 1, 2, 19, 0]], np.int32)
  pixels, ids = torch.tensor(images), torch.tensor(tokens).long()
  with torch.no_grad():
    expected = model.get_image_features(pixels), model.get_text_features(ids)
  found = (
    flax_model.get_image_features(images, params=backbone.params),
    flax_model.get_text_features(tokens, params=backbone.params),
  )
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


def openai_file(tmp_path, vocabulary=20, **changes):
  """Writes the golden file with some tensors changed; None removes one."""
  tensors = dict(
    read_tensor_file(weight_files.DATA / "openai_state.pt").tensors
  )
  tensors["token_embedding.weight"] = np.zeros((vocabulary, 8), np.float16)
  tensors.update(changes)
  path = tmp_path / "openai.safetensors"
  save_file(
    {
      name: np.ascontiguousarray(array) if array.ndim else array.copy()
      for name, array in tensors.items()
      if array is not None
    },
    path,
  )
  return str(path)


def test_an_openai_file_has_openais_tokens_and_can_have_a_tokenizer(tmp_path):
  path = openai_file(tmp_path, vocabulary=49408)
  backbone = load_clip(path)
  assert backbone.tokens == PromptTokens(
    start=49406, damaged=(13568,), object=14115, period=269, end=49407
  )
  assert backbone.tokenizer is None
  with pytest.raises(InputError, match="but this CLIP has none"):
    backbone.tokenize(["a dent"])
  for name in ("vocab.json", "merges.txt"):
    shutil.copy(DEMO_FOLDER / name, tmp_path)
  assert load_clip(path).tokenizer == tmp_path


def test_every_wrong_tensor_of_an_openai_file_is_listed(tmp_path):
  path = openai_file(
    tmp_path,
    **{
      "ln_final.bias": None,
      "visual.transformer.resblocks.1.attn.in_proj_weight": np.zeros((8, 8)),
      "visual.proj": np.zeros((8, 8), np.int32),
      "surplus": np.zeros(2),
      "transformer.resblocks.0.attn_mask": np.zeros(2),
    },
  )
  with pytest.raises(InputError) as caught:
    load_clip(path)
  message = str(caught.value)
  assert f"{path} does not contain a whole CLIP with OpenAI's" in message
  assert message.count("missing: ln_final.bias") == 1
  assert message.count("1.attn.in_proj_weight: (8, 8), expected (24, 8)") == 1
  assert "type of visual.proj: int32, expected a float" in message
  assert "unexpected: surplus" in message
  assert "attn_mask" not in message and "vocab_size" not in message


@pytest.mark.parametrize(
  "changes, expected",
  (
    (
      {"visual.conv1.weight": None},
      r"conv1.weight has the shape \(\) or is m",
    ),
    (
      {"text_projection": np.zeros(3, np.float32)},
      r"text_projection has the shape \(3,\) or is missing, expected 2 axes",
    ),
    (
      {"visual.layer1.0.conv1.weight": np.zeros((2, 2), np.float16)},
      "CLIP with a ResNet, but a vision transformer is needed",
    ),
    ({}, "vocabulary of 20 tokens, but OpenAI's has 49408"),
  ),
)
def test_unusable_openai_files_are_refused(tmp_path, changes, expected):
  with pytest.raises(InputError, match=expected):
    load_clip(openai_file(tmp_path, **changes))


def test_the_hubs_cache_works_offline_and_by_revision(
  clip_folder, tmp_path, monkeypatch
):
  """The client of huggingface_hub reads a cache in its own layout."""
  folders = {}
  for scale, revision in enumerate(("main", "v2")):
    folders[revision] = shutil.copytree(clip_folder, tmp_path / revision)
    edit(folders[revision], logit_scale=np.array(scale, np.float16))
  hub.fill_cache(tmp_path / "cache", "some/clip", folders, monkeypatch)
  commit = hub.commit_of(folders["v2"])
  for revision, scale in (("", 0), ("v2", 1), (commit, 1)):
    backbone = load_clip("some/clip", revision=revision)
    assert backbone.params["logit_scale"] == scale
  for name, revision, expected in (
    ("some/clip", "v3", "'some/clip' at revision 'v3' is neither"),
    ("no/such-clip", "", "'no/such-clip' is neither a file or folder here"),
    (str(clip_folder), "main", "config.backbone.revision is 'main', but"),
    (f"{clip_folder}/model.safetensors", "", "Hugging Face's names, name its"),
  ):
    with pytest.raises(InputError, match=expected):
      load_clip(name, revision)


def test_a_hub_name_downloads_only_the_preferred_file_of_tensors():
  needed = ["config.json", "vocab.json", "merges.txt"]
  files = [*needed, "pytorch_model.bin", "tf_model.h5"]
  kinds = clip._TOKENIZER, clip._TENSOR_FILES
  assert folders.needed_files(files, *kinds) == [*needed, "pytorch_model.bin"]
  files.append("model.safetensors")
  assert folders.needed_files(files, *kinds) == [*needed, "model.safetensors"]


def test_the_toy_clips_tokens_are_those_of_its_vocabulary():
  backbone = load_clip(DEMO_CLIP)
  vocab = json.loads((DEMO_FOLDER / "vocab.json").read_text())
  assert backbone.tokens == PromptTokens(
    start=vocab["<|startoftext|>"],
    damaged=(vocab["damaged</w>"],),
    object=vocab["object</w>"],
    period=vocab[".</w>"],
    end=vocab["<|endoftext|>"],
  )


@pytest.mark.parametrize(
  "name", ("config.json", "vocab.json", "merges.txt", "model.safetensors")
)
def test_a_missing_file_is_reported(copy, name):
  (copy / name).unlink()
  with pytest.raises(InputError, match=f"{name} does not exist"):
    load_clip(str(copy))


@pytest.mark.parametrize("text", ("{", "{}", '{"a": "b"}', "[" * 10**5))
def test_a_damaged_vocabulary_is_refused(copy, text):
  (copy / "vocab.json").write_text(text)
  with pytest.raises(InputError, match="the tokenizer in .* is damaged"):
    load_clip(str(copy))


def test_a_damaged_config_is_refused(copy):
  for text, expected in (
    ("{", "config.json is not JSON"),
    ("[" * 10**5, "config.json is not JSON"),
    ("[]", "config.json does not describe a model"),
    ('{"vision_config": 3}', "config.json does not describe a CLIP"),
    (
      '{"vision_config": {"num_hidden_layers": 1000000000}}',
      "1000000012 layers, but .* has only 110 tensors",
    ),
    ('{"text_config": {"num_attention_heads": 7}}', "7 heads do not divide"),
    ('{"text_config": {"hidden_act": "abs"}}', "'abs' is not an activation"),
    (
      '{"vision_config": {"num_hidden_layers": 1, "hidden_size": "many"}}',
      "no CLIP can be built with its sizes",
    ),
  ):
    (copy / "config.json").write_text(text)
    with pytest.raises(InputError, match=expected):
      load_clip(str(copy))


def test_only_fields_that_the_towers_use_are_read_from_config_json(copy):
  """transformers also reads other fields; one of them names code to run."""
  want = load_clip(str(copy)).config
  path = copy / "config.json"
  values = json.loads(path.read_text())
  hostile = {
    "_attn_implementation_internal": "somebody/kernels",
    "attn_implementation": "somebody/kernels",
    "auto_map": {"AutoModel": "somebody/code--model.Model"},
    "transformers_version": "4.99",
  }
  values["text_config"] |= hostile
  values["vision_config_dict"] = values["vision_config"] | hostile
  path.write_text(json.dumps(values | hostile))
  found = load_clip(str(copy)).config
  for config in (found, found.text_config, found.vision_config):
    text = config.to_json_string(use_diff=False)
    assert "somebody" not in text and "4.99" not in text
  assert found.text_config.to_dict() == want.text_config.to_dict()
  assert found.vision_config.to_dict() == want.vision_config.to_dict()
