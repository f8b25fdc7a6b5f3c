"""AnomalyCLIP's files, and files of one method given to another."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from cops_jax.errors import InputError
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.record import Record, claim_workdir
from cops_jax.weights import anomalyclip_names, prompts, torch_pickles
from cops_jax.weights.clip import OPENAI_TOKENS, load_clip
from cops_jax.weights.tensor_files import read_tensor_file
from cops_jax.weights.torch_files import write_tensors
from helpers import golden, weight_files

RECORD = Record({"seed": 3, "method": "anomalyclip"}, "ab" * 32)


@pytest.fixture(scope="module")
def stored():
  """The state dict of the authors' module, what nothing reads with it."""
  tensors = {
    name.removeprefix("prompt."): array
    for name, array in golden.load("anomalyclip").items()
    if name.startswith("prompt.")
  }
  for state, length in (("pos", 64), ("neg", 64)):
    tensors[f"token_prefix_{state}"] = np.zeros((1, 1, 1, 128), np.float32)
    tensors[f"token_suffix_{state}"] = np.zeros((1, 1, length, 128), np.float32)
  for index in range(2):
    name = f"compound_prompt_projections.{index}"
    tensors[f"{name}.weight"] = np.zeros((896, 128), np.float32)
    tensors[f"{name}.bias"] = np.zeros(896, np.float32)
  return tensors


@pytest.fixture(scope="module")
def trained(stored):
  tensors = {
    name: array.astype(np.float32)
    for name, array in anomalyclip_names.select(stored).items()
  }
  return anomalyclip_names.from_authors_names(tensors)


def load(path, template):
  return prompts.load_prompts(path, template, "anomalyclip")[0]


def test_the_authors_file_is_read(tmp_path, stored, trained, monkeypatch):
  """Its tensors were on a GPU, as the released ones."""
  real = torch_pickles._text
  monkeypatch.setattr(
    torch_pickles, "_text", lambda text: real(text.replace("cpu", "cuda:0"))
  )
  path = tmp_path / "epoch_15.pth"
  write_tensors(path, stored, "prompt_learner")
  assert b"cuda:0" in path.read_bytes()
  chex.assert_trees_all_equal(load(path, trained), trained)
  prompts_tree = trained["object_prompts"]
  assert prompts_tree["context"].shape == (2, 12, 128)
  assert prompts_tree["deep_prompts"].shape == (2, 4, 128)


@pytest.mark.parametrize("name", ("epoch_15.pth", "prompts.safetensors"))
def test_round_trips_are_exact(tmp_path, trained, name):
  path = tmp_path / name
  prompts.write_prompts(path, trained, RECORD)
  chex.assert_trees_all_equal(load(path, trained), trained)
  assert prompts.find_record(path) == RECORD


def test_prompts_without_deep_ones(tmp_path, trained):
  tree = {"object_prompts": {"context": trained["object_prompts"]["context"]}}
  prompts.write_prompts(tmp_path / "epoch_1.pth", tree, RECORD)
  chex.assert_trees_all_equal(load(tmp_path / "epoch_1.pth", tree), tree)


def test_torch_loads_what_is_written(tmp_path, stored, trained):
  torch = pytest.importorskip("torch")
  path = tmp_path / "epoch_15.pth"
  prompts.write_prompts(path, trained, RECORD)
  loaded = torch.load(path, weights_only=True)["prompt_learner"]
  expected = anomalyclip_names.select(stored)
  assert loaded.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(loaded[name].numpy(), array)


def test_with_clip_the_file_has_all_of_the_authors_module(
  tmp_path, stored, trained
):
  """So that it loads strictly, there too."""
  clip = load_clip("demo")
  path = tmp_path / "epoch_15.pth"
  prompts.write_prompts(path, trained, RECORD, clip)
  chex.assert_trees_all_equal(load(path, trained), trained)
  tensors = {
    name.removeprefix("prompt_learner."): array
    for name, array in read_tensor_file(path).tensors.items()
  }
  kinds = [
    {name: (array.shape, array.dtype.kind) for name, array in rows.items()}
    for rows in (tensors, stored)
  ]
  assert kinds[0] == kinds[1]
  # In OpenAI's vocabulary the ids are the stored ones.
  embedding = {"embedding": np.zeros((49408, 128), np.float32)}
  params = {"text_model": {"embeddings": {"token_embedding": embedding}}}
  clip = dataclasses.replace(clip, tokens=OPENAI_TOKENS, params=params)
  found = anomalyclip_names.unused_tensors(trained, clip)
  for name in ("tokenized_prompts_pos", "tokenized_prompts_neg"):
    np.testing.assert_array_equal(found[name], stored[name])


def test_prompts_of_another_method_are_refused(tmp_path, trained):
  """A file of either authors, an export and a run."""
  theirs = tmp_path / "epoch_15.pth"
  tensors = anomalyclip_names.to_authors_names(trained)
  write_tensors(theirs, tensors, "prompt_learner")
  export, workdir = tmp_path / "prompts.safetensors", tmp_path / "run"
  prompts.write_prompts(export, trained, RECORD)
  claim_workdir(workdir, RECORD)
  with Checkpoints(workdir, num_kept=1) as saved:
    saved.save(7, *jax.device_put((trained, {"count": np.int32(7)})))
  for path, method, other in (
    (theirs, "cops", "anomalyclip"),
    (export, "cops", "anomalyclip"),
    (workdir, "cops", "anomalyclip"),
    (weight_files.DATA / "epoch_1.pth", "anomalyclip", "cops"),
  ):
    with pytest.raises(InputError) as caught:
      prompts.load_prompts(path, trained, method)
    assert str(caught.value) == (
      f"{path} holds prompts of the method {other!r}, and config.method is"
      f" {method!r}"
    )


def test_methods_without_a_format_have_safetensors(tmp_path, trained):
  record = Record({"method": "coop"}, "ab" * 32)
  path = tmp_path / "prompts.pth"
  with pytest.raises(InputError, match="'coop' has no authors' format, only"):
    prompts.write_prompts(path, trained, record)
  prompts.write_prompts(path.with_suffix(".safetensors"), trained, record)
