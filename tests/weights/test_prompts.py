"""Trained prompts between this project's files and the authors'."""

import warnings

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cops_jax.errors import InputError
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.record import Record, claim_workdir
from cops_jax.weights import cops_names, prompts
from cops_jax.weights.tensor_files import read_tensor_file
from cops_jax.weights.torch_files import write_tensors
from helpers import golden, weight_files

RECORD = Record({"seed": 3, "model": {"feature_layers": (4,)}}, "ab" * 32)
ENCODER = ("encoder", "mean", "log_var")


@pytest.fixture(scope="module")
def trained():
  """The authors' parameters at the golden size, encoder and all."""
  return jax.device_get(golden.trainable("prompt.", golden.load("weights")))


def without_encoder(tree):
  tree = dict(tree)
  tree["category_vae"] = {
    name: leaf
    for name, leaf in tree["category_vae"].items()
    if name not in ENCODER
  }
  return tree


def tiny_template():
  """Shapes of the model that tests/data/weights/epoch_1.pth was made for."""
  tensors = weight_files.authors_tensors()
  for name in ("net.0", "mean", "log_var"):
    tensors[f"vae_encoder.{name}.weight"] = np.zeros((8, 8))
    tensors[f"vae_encoder.{name}.bias"] = np.zeros(8)
  return cops_names.from_authors_names(tensors)


def test_names_and_shapes_are_the_authors(trained):
  """The golden file holds the state of the authors' own module."""
  stored = {
    name.removeprefix("prompt."): array
    for name, array in golden.load("weights").items()
    if name.startswith("prompt.")
  }
  actual = cops_names.to_authors_names(trained)
  assert actual.keys() == stored.keys()
  for name, array in stored.items():
    expected = array.astype(np.float32)
    np.testing.assert_array_equal(actual[name], expected, strict=True)
  assert actual["ctx_pos"].shape == (1, 1, 14, actual["t_n"].shape[1])
  # Many deep prompts: their order is of numbers, not of words.
  width = actual["t_n"].shape[1]
  deep = np.arange(11.0, dtype=np.float32)[:, None, None]
  deep = np.broadcast_to(deep, (11, 4, width))
  tree = {**trained, "prompt_learner": {**trained["prompt_learner"]}}
  tree["prompt_learner"]["deep_prompts"] = deep
  tensors = cops_names.to_authors_names(tree)
  assert tensors["compound_prompts_text.10"][0, 0] == 10
  chex.assert_trees_all_equal(cops_names.from_authors_names(tensors), tree)


@pytest.mark.parametrize("name", ("prompts.pth", "prompts.safetensors"))
def test_round_trips_are_exact(tmp_path, trained, name):
  path = tmp_path / name
  prompts.write_prompts(path, trained, RECORD)
  loaded, source = prompts.load_prompts(path, trained)
  chex.assert_trees_all_equal(loaded, trained)
  assert source == str(path)
  assert prompts.find_record(path) == RECORD
  first = path.read_bytes()
  prompts.write_prompts(path, loaded, RECORD)
  assert path.read_bytes() == first


def test_a_work_directory(tmp_path, trained):
  claim_workdir(tmp_path, RECORD)
  with Checkpoints(tmp_path, num_kept=1) as saved:
    saved.save(7, *jax.device_put((trained, {"count": np.int32(7)})))
  loaded, source = prompts.load_prompts(tmp_path, trained)
  chex.assert_trees_all_equal(jax.device_get(loaded), trained)
  assert source == f"step 7 of {tmp_path}"
  assert prompts.find_record(tmp_path) == RECORD
  with Checkpoints(tmp_path) as saved:
    step, loaded = saved.restore_params()
  assert step == 7
  chex.assert_trees_all_equal(jax.device_get(loaded), trained)


def test_torch_loads_what_is_written(tmp_path, trained):
  torch = pytest.importorskip("torch")
  path = tmp_path / "epoch_9.pth"
  prompts.write_prompts(path, trained, RECORD)
  loaded = torch.load(path, weights_only=True)
  assert list(loaded) == ["prompt_learner"]
  expected = cops_names.to_authors_names(trained)
  assert loaded["prompt_learner"].keys() == expected.keys()
  for name, array in expected.items():
    actual = loaded["prompt_learner"][name].numpy()
    np.testing.assert_array_equal(actual, array, strict=True)
  # And back, through torch's own writer.
  torch.save(loaded, path)
  again, _ = prompts.load_prompts(path, trained)
  chex.assert_trees_all_equal(again, trained)
  assert prompts.find_record(path) is None


def test_the_authors_released_file():
  """Written by torch: half precision, no encoder, no record."""
  path = weight_files.DATA / "epoch_1.pth"
  loaded, _ = prompts.load_prompts(path, tiny_template())
  halves = weight_files.authors_tensors()
  expected = cops_names.from_authors_names(
    {name: array.astype(np.float32) for name, array in halves.items()}
  )
  chex.assert_trees_all_equal(loaded, expected)
  assert not set(ENCODER) & set(loaded["category_vae"])
  assert prompts.find_record(path) is None


def authors_file(tmp_path, **changes):
  tensors = {**weight_files.authors_tensors(), **changes}
  path = tmp_path / "epoch_2.pth"
  kept = {name: v for name, v in tensors.items() if v is not None}
  write_tensors(path, kept, "prompt_learner")
  return path


def test_unused_entries_are_skipped(tmp_path):
  surplus = np.zeros((2, 2), np.float32)
  path = authors_file(
    tmp_path,
    **{
      "projector.weight": surplus,
      "projector_2.0.bias": surplus,
      "extractor_.attn.in_proj_weight": surplus,
      "token_prefix_pos": surplus,
      "tokenized_prompts_neg": surplus.astype(np.int64),
    },
  )
  loaded, _ = prompts.load_prompts(path, tiny_template())
  expected, _ = prompts.load_prompts(
    weight_files.DATA / "epoch_1.pth", tiny_template()
  )
  chex.assert_trees_all_equal(loaded, expected)


def test_every_wrong_entry_is_listed_at_once(tmp_path):
  path = authors_file(
    tmp_path,
    **{
      "t_n": None,
      "ctx_pos": np.zeros((1, 14, 8), np.float32),
      "compound_prompts_text.2": np.zeros((4, 8), np.float32),
      "surplus": np.zeros(1, np.float32),
      # A part of the encoder: the rest of it is missing.
      "vae_encoder.mean.bias": np.zeros(8, np.float32),
      "t_a": np.zeros((6, 8), np.int64),
    },
  )
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


def test_wrong_safetensors_are_refused(tmp_path, trained):
  path = tmp_path / "prompts.safetensors"
  prompts.write_prompts(path, trained, RECORD)
  tensors = load_file(path)
  del tensors["prompt_learner.context"]
  tensors["surplus"] = np.zeros(1)
  save_file(tensors, path)
  with pytest.raises(InputError, match="(?s)missing: prompt_learner.context.*"):
    prompts.load_prompts(path, trained)


def test_prompts_without_deep_ones(tmp_path, trained):
  tree = {**trained, "prompt_learner": {**trained["prompt_learner"]}}
  del tree["prompt_learner"]["deep_prompts"]
  for name in ("prompts.pth", "prompts.safetensors"):
    prompts.write_prompts(tmp_path / name, tree, RECORD)
    loaded, _ = prompts.load_prompts(tmp_path / name, tree)
    chex.assert_trees_all_equal(loaded, tree)


def test_a_file_without_prompts_is_refused(tmp_path):
  path = weight_files.DATA / "pytorch_model.bin"
  with pytest.raises(InputError, match="holds no trained prompts: .* It has"):
    prompts.load_prompts(path, tiny_template())
  with pytest.raises(InputError, match="nowhere.pth does not exist; trained"):
    prompts.find_record(tmp_path / "nowhere.pth")


def test_a_file_that_cannot_be_written_is_reported(tmp_path, trained):
  with pytest.raises(InputError, match=r"must end in .safetensors or .pth"):
    prompts.write_prompts(tmp_path / "prompts.bin", trained, RECORD)
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="file/a.pth cannot be written: "):
    prompts.write_prompts(tmp_path / "file" / "a.pth", trained, RECORD)
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_record_is_refused(tmp_path, trained):
  for name in ("prompts.pth", "prompts.safetensors"):
    path = tmp_path / name
    prompts.write_prompts(path, trained, RECORD)
    file = read_tensor_file(path)
    assert file.record == RECORD.to_json()
  flat = {name: np.array(array) for name, array in file.tensors.items()}
  save_file(flat, path, {"record": "{"})
  with pytest.raises(InputError, match="prompts.safetensors is damaged"):
    prompts.find_record(path)


def test_fixtures_are_what_their_writer_writes(tmp_path):
  """The stored files hold what today's torch and transformers write."""
  pytest.importorskip("torch")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    weight_files.write_all(tmp_path)
  for name in weight_files.FILES:
    stored = read_tensor_file(weight_files.DATA / name).tensors
    fresh = read_tensor_file(tmp_path / name).tensors
    assert stored.keys() == fresh.keys()
    for key, array in stored.items():
      np.testing.assert_array_equal(fresh[key], array, strict=True)
