"""Trained prompts converted between this project's files and the authors'."""

import dataclasses

import chex
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cops_jax.errors import InputError
from cops_jax.runs.record import Record, claim_workdir
from cops_jax.weights import authors_names, prompts, torch_files
from cops_jax.weights.clip import OPENAI_TOKENS, load_clip
from cops_jax.weights.tensor_files import read_tensor_file
from helpers import golden, weight_files

SOURCES = {"cops": "weights", "anomalyclip": "anomalyclip"}
ENCODER = ("encoder", "mean", "log_var")


def record_of(method):
  model = {"feature_layers": [4]}
  return Record({"seed": 3, "method": method, "model": model}, "ab" * 32)


def stored(method):
  """Returns the state dict of the authors' module, at the golden size."""
  return {
    name.removeprefix("prompt."): array.astype(np.float32)
    for name, array in golden.load(SOURCES[method]).items()
    if name.startswith("prompt.")
  }


def trained(method):
  tensors = authors_names.select(stored(method))
  return authors_names.from_authors_names(tensors, method)


def whole_module():
  """Returns all tensors of AnomalyCLIP's module, as in its released files."""
  tensors = stored("anomalyclip")
  for state in ("pos", "neg"):
    tensors[f"token_prefix_{state}"] = np.zeros((1, 1, 1, 128), np.float32)
    tensors[f"token_suffix_{state}"] = np.zeros((1, 1, 64, 128), np.float32)
    name = f"tokenized_prompts_{state}"
    tensors[name] = golden.load("anomalyclip")[f"prompt.{name}"]
  for index in range(2):
    name = f"compound_prompt_projections.{index}"
    tensors[f"{name}.weight"] = np.zeros((896, 128), np.float32)
    tensors[f"{name}.bias"] = np.zeros(896, np.float32)
  return tensors


def without_deep_prompts(method):
  tree = trained(method)
  del tree["prompt_learner" if method == "cops" else "object_prompts"][
    "deep_prompts"
  ]
  return tree


def tiny_template():
  """Returns a tree with the shapes of tests/data/weights/epoch_1.pth."""
  tensors = weight_files.authors_tensors()
  for name in ("net.0", "mean", "log_var"):
    tensors[f"vae_encoder.{name}.weight"] = np.zeros((8, 8))
    tensors[f"vae_encoder.{name}.bias"] = np.zeros(8)
  return authors_names.from_authors_names(tensors, "cops")


def authors_file(path, tensors):
  torch_files.write(path, tensors, "prompt_learner")
  return path


@pytest.mark.parametrize("method", SOURCES)
def test_names_and_shapes_are_those_of_the_authors(method):
  expected = authors_names.select(stored(method))
  actual = authors_names.to_authors_names(trained(method), method)
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(actual[name], array, strict=True)


def test_deep_prompts_are_in_numeric_order():
  tree = trained("cops")
  width = tree["prototype_extractor"]["queries"].shape[-1]
  deep = np.arange(11.0, dtype=np.float32)[:, None, None]
  tree["prompt_learner"]["deep_prompts"] = np.broadcast_to(deep, (11, 4, width))
  tensors = authors_names.to_authors_names(tree, "cops")
  assert tensors["compound_prompts_text.10"][0, 0] == 10
  found = authors_names.from_authors_names(tensors, "cops")
  chex.assert_trees_all_equal(found, tree)


@pytest.mark.parametrize("method", SOURCES)
@pytest.mark.parametrize("name", ("epoch_15.pth", "prompts.safetensors"))
def test_round_trips_are_exact(tmp_path, method, name):
  path, record = tmp_path / name, record_of(method)
  for tree in (trained(method), without_deep_prompts(method)):
    prompts.write_prompts(path, tree, record)
    loaded, source = prompts.load_prompts(path, tree, method)
    chex.assert_trees_all_equal(loaded, tree)
    assert source == str(path)
    assert prompts.find_record(path) == record
    first = path.read_bytes()
    prompts.write_prompts(path, loaded, record)
    assert path.read_bytes() == first


def test_the_authors_released_file_is_read():
  """torch wrote it in half precision, without an encoder and a record."""
  path = weight_files.DATA / "epoch_1.pth"
  loaded, _ = prompts.load_prompts(path, tiny_template())
  singles = {
    name: array.astype(np.float32)
    for name, array in weight_files.authors_tensors().items()
  }
  expected = authors_names.from_authors_names(singles, "cops")
  chex.assert_trees_all_equal(loaded, expected)
  assert not set(ENCODER) & set(loaded["category_vae"])
  assert prompts.find_record(path) is None


def test_unused_entries_are_ignored(tmp_path, monkeypatch):
  """One file is CoPS's. The other is AnomalyCLIP's, saved from a GPU."""
  surplus = np.zeros((2, 2), np.float32)
  names = ("projector.weight", "extractor_.attn.bias", "token_prefix_pos")
  tensors = weight_files.authors_tensors() | dict.fromkeys(names, surplus)
  path = authors_file(tmp_path / "epoch_2.pth", tensors)
  loaded, _ = prompts.load_prompts(path, tiny_template())
  assert "queries" in loaded["prototype_extractor"]
  real = torch_files._text
  monkeypatch.setattr(
    torch_files, "_text", lambda text: real(text.replace("cpu", "cuda:0"))
  )
  authors_file(path, whole_module())
  assert b"cuda:0" in path.read_bytes()
  tree = trained("anomalyclip")
  loaded, _ = prompts.load_prompts(path, tree, "anomalyclip")
  chex.assert_trees_all_equal(loaded, tree)


def test_with_clip_the_file_has_all_tensors_of_the_authors_module(tmp_path):
  """The authors' module can then load it strictly."""
  backbone, tree = load_clip("demo"), trained("anomalyclip")
  path = tmp_path / "epoch_15.pth"
  prompts.write_prompts(path, tree, record_of("anomalyclip"), backbone)
  loaded, _ = prompts.load_prompts(path, tree, "anomalyclip")
  chex.assert_trees_all_equal(loaded, tree)
  tensors = {
    name.removeprefix("prompt_learner."): array
    for name, array in read_tensor_file(path).tensors.items()
  }
  found, expected = (
    {name: (array.shape, array.dtype.kind) for name, array in rows.items()}
    for rows in (tensors, whole_module())
  )
  assert found == expected
  # With OpenAI's vocabulary the ids are those of the released files.
  embedding = {"embedding": np.zeros((49408, 128), np.float32)}
  params = {"text_model": {"embeddings": {"token_embedding": embedding}}}
  backbone = dataclasses.replace(backbone, tokens=OPENAI_TOKENS, params=params)
  unused = authors_names.unused_tensors(tree, backbone)
  for name in ("tokenized_prompts_pos", "tokenized_prompts_neg"):
    np.testing.assert_array_equal(unused[name], whole_module()[name])


def test_every_wrong_entry_is_listed_at_once(tmp_path):
  tensors = weight_files.authors_tensors() | {
    "ctx_pos": np.zeros((1, 14, 8), np.float32),
    "compound_prompts_text.2": np.zeros((4, 8), np.float32),
    "surplus": np.zeros(1, np.float32),
    # The other parts of the encoder are missing.
    "vae_encoder.mean.bias": np.zeros(8, np.float32),
    "t_a": np.zeros((6, 8), np.int64),
  }
  del tensors["t_n"]
  path = authors_file(tmp_path / "epoch_2.pth", tensors)
  with pytest.raises(InputError) as caught:
    prompts.load_prompts(path, tiny_template())
  assert sorted(str(caught.value).splitlines()[1:]) == [
    "  missing: t_n",
    "  missing: vae_encoder.log_var.bias",
    "  missing: vae_encoder.log_var.weight",
    "  missing: vae_encoder.mean.weight",
    "  missing: vae_encoder.net.0.bias",
    "  missing: vae_encoder.net.0.weight",
    "  shape of ctx_pos: (1, 14, 8), expected (1, 1, 14, 8)",
    "  type of t_a: int64, expected a float",
    "  unexpected: compound_prompts_text.2",
    "  unexpected: surplus",
  ]


def test_prompts_of_another_method_are_refused(tmp_path):
  """The paths are authors' files of both methods, an export and a run."""
  tree, record = trained("anomalyclip"), record_of("anomalyclip")
  theirs = authors_file(tmp_path / "epoch_15.pth", stored("anomalyclip"))
  export, workdir = tmp_path / "prompts.safetensors", tmp_path / "run"
  prompts.write_prompts(export, tree, record)
  claim_workdir(workdir, record)
  for path, method, other in (
    (theirs, "cops", "anomalyclip"),
    (export, "cops", "anomalyclip"),
    (workdir, "cops", "anomalyclip"),
    (weight_files.DATA / "epoch_1.pth", "anomalyclip", "cops"),
  ):
    with pytest.raises(InputError) as caught:
      prompts.load_prompts(path, tree, method)
    assert str(caught.value) == (
      f"{path} has prompts of the method {other!r}, but config.method is"
      f" {method!r}: use a config of the same method"
    )


def test_files_without_the_models_prompts_are_refused(tmp_path):
  tree = trained("cops")
  path = tmp_path / "prompts.safetensors"
  prompts.write_prompts(path, tree, record_of("cops"))
  tensors = load_file(path)
  context = tensors.pop("prompt_learner.context")
  save_file(tensors, path)
  with pytest.raises(InputError, match="missing: prompt_learner.context"):
    prompts.load_prompts(path, tree)
  save_file(
    {**tensors, "prompt_learner.context": context}, path, {"record": "{"}
  )
  with pytest.raises(InputError, match="prompts.safetensors is damaged"):
    prompts.find_record(path)
  path = weight_files.DATA / "pytorch_model.bin"
  with pytest.raises(InputError, match="has no trained prompts: .* file has"):
    prompts.load_prompts(path, tiny_template())
  with pytest.raises(InputError, match="nowhere.pth holds no training run"):
    prompts.find_record(tmp_path / "nowhere.pth")


def test_a_method_without_an_authors_format_saves_only_safetensors(tmp_path):
  tree, record = trained("cops"), record_of("coop")
  with pytest.raises(InputError, match="have a format of .*, not 'coop'. Sa"):
    prompts.write_prompts(tmp_path / "a.pth", tree, record)
  assert not list(tmp_path.iterdir())
  path = tmp_path / "prompts.safetensors"
  prompts.write_prompts(path, tree, record)
  assert prompts.find_record(path) == record
