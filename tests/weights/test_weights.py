"""The command for weight files, and runs that start from such files."""

import hashlib
import logging
import shutil

import chex
import flax.traverse_util
import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import cops_jax
from cops_jax import training
from cops_jax.commands.weights import inspect, main
from cops_jax.errors import InputError
from cops_jax.evaluation import many
from cops_jax.files import seal, unseal
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.record import read_record
from cops_jax.weights import authors_names, prompts, torch_files
from helpers import weight_files


@pytest.fixture(scope="module")
def untrained(clip_folder, data_dir, tmp_path_factory):
  """A run without steps, and its config."""
  from helpers.config import make_config

  config = make_config(clip_folder, data_dir)
  config.train.num_epochs = 0
  workdir = tmp_path_factory.mktemp("untrained")
  training.train(config, workdir)
  return workdir, config


@pytest.fixture
def untrained_config(untrained):
  return untrained[1].copy_and_resolve_references()


@pytest.fixture(scope="module")
def saved(untrained, tmp_path_factory):
  """Files of the run's prompts in both formats."""
  folder = tmp_path_factory.mktemp("saved")
  paths = [folder / "prompts.pth", folder / "prompts.safetensors"]
  for path in paths:
    prompts.save(str(untrained[0]), str(path))
  return paths


@pytest.fixture
def other_clip(clip_folder, tmp_path):
  """A CLIP of the same sizes in which one number differs."""
  folder = shutil.copytree(clip_folder, tmp_path / "other_clip")
  path = folder / "model.safetensors"
  save_file(
    {**load_file(path), "logit_scale": np.float16([3]).reshape(())}, path
  )
  return folder


def parameters(workdir):
  with Checkpoints(workdir) as saved:
    return jax.device_get(saved.restore_params()[1])


def test_runs_and_saved_files_have_the_same_record(
  untrained, saved, clip_folder
):
  workdir, config = untrained
  record, expected = read_record(workdir), parameters(workdir)
  content = (clip_folder / "model.safetensors").read_bytes()
  assert record.backbone_sha256 == hashlib.sha256(content).hexdigest()
  assert record.version == cops_jax.__version__
  for path in saved:
    loaded, _ = prompts.load_prompts(path, expected)
    chex.assert_trees_all_equal(loaded, expected)
    assert prompts.find_record(path) == record
  for path in (workdir, *saved):
    assert prompts.recorded_config(path).to_dict() == config.to_dict()
    text = inspect(str(path))
    assert "trained on demo_auxiliary on " in text
    assert record.backbone_sha256 in text


def test_the_command_saves_prompts(untrained, tmp_path, capsys):
  out = tmp_path / "deeper" / "prompts.pth"
  main(["save", f"--workdir={untrained[0]}", f"--out={out}"])
  expected = f"wrote the prompts of step 0 of {untrained[0]} to {out}\n"
  assert capsys.readouterr().out == expected
  assert out.is_file()


@pytest.mark.parametrize(
  "arguments, expected",
  (
    (("save", "--workdir={0}", "--out=a.bin"), "must end in .safetensors or"),
    (("save", "--workdir={0}/no", "--out=a.pth"), "holds no training run"),
    (("inspect", "{0}/no"), "no cannot be read: No such file or directory"),
    (("inspect", "{0}/checkpoints"), "checkpoints holds no training run"),
    (("inspect", "{0}/run.json"), "neither safetensors nor torch's zip format"),
  ),
)
def test_the_command_reports_errors(untrained, arguments, expected):
  with pytest.raises(SystemExit) as caught:
    main([text.format(untrained[0]) for text in arguments])
  assert str(caught.value).startswith("error: ")
  assert expected in str(caught.value)


@pytest.mark.parametrize(
  "name, expected",
  (
    ("openai_script.pt", ("TorchScript archive, CLIP in OpenAI's names",)),
    ("pytorch_model.bin", ("torch, CLIP in Hugging Face's names",)),
    ("model.safetensors", ("safetensors, CLIP in Hugging Face's names",)),
    ("flax_model.msgpack", ("flax msgpack, CLIP in Hugging Face's names",)),
    (
      "epoch_1.pth",
      (
        "torch, trained prompts in the authors' names",
        "| prompt_learner.ctx_pos                        | (1, 1, 14, 8) |",
        "float16 (22)",
        "8,737 bytes",
      ),
    ),
  ),
)
def test_inspect_describes_files_of_every_format(name, expected):
  path = weight_files.DATA / name
  text = inspect(str(path))
  for part in (*expected, hashlib.sha256(path.read_bytes()).hexdigest()):
    assert part in text


def test_inspect_describes_a_run_and_an_unknown_file(untrained, tmp_path):
  text = inspect(str(untrained[0]))
  assert "newest:  the prompts of step 0; checkpoints of: 0\n" in text
  assert "  train.dataset = 'demo_auxiliary'\n" in text
  assert "prompt_learner/context" in text or "prompt_learner.context" in text
  torch_files.write(tmp_path / "file", {"x": np.zeros(3)}, "root")
  text = inspect(str(tmp_path / "file"))
  assert "neither CLIP nor known prompts" in text


def test_training_starts_from_a_file_or_a_run(
  untrained, saved, untrained_config, tmp_path
):
  untrained_config.seed = 7
  expected = parameters(untrained[0])
  for index, start in enumerate((untrained[0], saved[0])):
    workdir = tmp_path / str(index)
    training.train(untrained_config, workdir, init_from=start)
    chex.assert_trees_all_equal(parameters(workdir), expected)
    assert read_record(workdir).init_from == str(start)
  # A resumed run does not read the file again, but must name the same one.
  training.train(untrained_config, workdir, init_from=start)
  with pytest.raises(InputError, match="holds a run that began from"):
    training.train(untrained_config, workdir)


def test_training_starts_from_an_authors_file_without_an_encoder(
  untrained, untrained_config, tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("cops_jax"), "propagate", True)
  start = jax.tree.map(lambda leaf: leaf + 1, parameters(untrained[0]))
  tensors = authors_names.to_authors_names(start, "cops")
  halves = {
    name: array.astype(np.float16)
    for name, array in tensors.items()
    if not name.startswith("vae_encoder")
  }
  path = tmp_path / "epoch_3.pth"
  torch_files.write(path, halves, "prompt_learner")
  with caplog.at_level(logging.INFO, "cops_jax"):
    training.train(untrained_config, tmp_path / "run", init_from=path)
  assert "epoch_3.pth has no VAE encoder; starting with random" in caplog.text
  actual = flax.traverse_util.flatten_dict(parameters(tmp_path / "run"))
  random = flax.traverse_util.flatten_dict(parameters(untrained[0]))
  for name, leaf in flax.traverse_util.flatten_dict(start).items():
    if name[1] in ("encoder", "mean", "log_var"):
      np.testing.assert_array_equal(actual[name], random[name])
    else:
      half = np.float16(leaf).astype(np.float32)
      np.testing.assert_array_equal(actual[name], half, strict=True)


def test_a_start_that_does_not_fit_writes_nothing(untrained_config, tmp_path):
  workdir = tmp_path / "run"
  path = weight_files.DATA / "epoch_1.pth"
  with pytest.raises(InputError, match="(?s)not contain the prompts.*shape"):
    training.train(untrained_config, workdir, init_from=path)
  with pytest.raises(InputError, match="nowhere holds no training run"):
    training.train(untrained_config, workdir, init_from=tmp_path / "nowhere")
  assert not workdir.exists()


def test_changed_prompts_and_prompts_with_nan_are_refused(
  saved, untrained_config, tmp_path
):
  with safe_open(saved[1], framework="numpy") as file:
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    metadata = file.metadata()
  path = tmp_path / "prompts.safetensors"
  tensors["prompt_learner.context"][0, 0, 0] += 1
  save_file(tensors, path, metadata)
  expected = "its tensors changed after they were written"
  with pytest.raises(InputError, match=expected):
    training.train(untrained_config, tmp_path / "run", init_from=path)
  tensors["prompt_learner.context"][0, 0, 0] = np.nan
  metadata["record"], _, _ = metadata["record"].partition("tensors'")
  save_file(tensors, path, metadata)
  expected = "contains NaN or infinity in prompt_learner.context. "
  with pytest.raises(InputError, match=expected):
    training.train(untrained_config, tmp_path / "run", init_from=path)
  assert not (tmp_path / "run").exists()


def test_another_clip_is_refused_unless_allowed(
  untrained, saved, untrained_config, other_clip, tmp_path
):
  before = sorted(untrained[0].iterdir())
  untrained_config.backbone.weights = str(other_clip)
  content = (other_clip / "model.safetensors").read_bytes()
  hashes = (
    f"{read_record(untrained[0]).backbone_sha256}; the present file has"
    f" {hashlib.sha256(content).hexdigest()}"
  )
  workdir = tmp_path / "new"
  for action, arguments in (
    (training.train, dict(workdir=untrained[0])),
    (training.train, dict(workdir=workdir, init_from=saved[0])),
    (many.evaluate, dict(workdir=untrained[0])),
    (many.evaluate, dict(workdir=workdir, checkpoint=saved[1])),
  ):
    with pytest.raises(InputError, match=hashes):
      action(untrained_config, **arguments)
  assert sorted(untrained[0].iterdir()) == before and not workdir.exists()
  training.train(untrained_config, untrained[0], allow_other_backbone=True)
  training.train(
    untrained_config, workdir, init_from=saved[0], allow_other_backbone=True
  )


def test_a_recorded_config_of_another_version_is_refused(untrained, tmp_path):
  record = unseal((untrained[0] / "run.json").read_text())
  record["config"]["model"]["forgotten"] = 1
  (tmp_path / "run.json").write_text(seal(record))
  with pytest.raises(InputError, match="written by version .*forgotten"):
    prompts.recorded_config(tmp_path)
  path = weight_files.DATA / "epoch_1.pth"
  with pytest.raises(InputError, match="config that it was trained with: "):
    prompts.recorded_config(path)
