"""The record of a run, and its comparison with later commands."""

import dataclasses

import pytest

import cops_jax
from cops_jax.errors import InputError
from cops_jax.files import seal
from cops_jax.runs.record import (
  Record,
  check_config,
  claim_workdir,
  from_json,
  read_record,
)

CONFIG = {
  "seed": 0,
  "data_dir": "",
  "backbone": {"weights": "demo", "dtype": "float32"},
  "model": {"temperature": 0.07, "feature_layers": [24]},
  "train": {"learning_rate": 1e-3, "log_every_steps": 20},
  "evaluation": {"beta": 0.9},
}
RECORD = Record(CONFIG, "ab" * 32)


def changed(section, name, value):
  config = {**CONFIG, section: {**CONFIG[section], name: value}}
  return dataclasses.replace(RECORD, config=config)


def test_a_record_is_written_and_read_back(tmp_path):
  claim_workdir(tmp_path, RECORD)
  assert read_record(tmp_path) == RECORD
  assert RECORD.version == cops_jax.__version__


def test_a_workdir_can_be_claimed_again(tmp_path):
  claim_workdir(tmp_path, RECORD)
  first = (tmp_path / "run.json").read_text()
  claim_workdir(tmp_path, RECORD)
  claim_workdir(tmp_path, changed("evaluation", "beta", 1.0))
  claim_workdir(tmp_path, changed("train", "log_every_steps", 1))
  claim_workdir(tmp_path, changed("backbone", "weights", "elsewhere"))
  config = {**CONFIG, "data_dir": "elsewhere"}
  claim_workdir(tmp_path, dataclasses.replace(RECORD, config=config))
  assert (tmp_path / "run.json").read_text() == first


def test_another_config_is_refused_and_the_first_kept(tmp_path):
  claim_workdir(tmp_path, RECORD)
  with pytest.raises(InputError, match=r"train\.learning_rate is 0\.001 in"):
    claim_workdir(tmp_path, changed("train", "learning_rate", 1e-4))
  assert read_record(tmp_path) == RECORD


@pytest.mark.parametrize(
  "change, expected, allow",
  (
    ({"init_from": "a.pth"}, "began from init_from='', not 'a.pth'", None),
    (
      {"backbone_sha256": "cd" * 32},
      "(ab){32}; the present file has (cd){32}",
      "allow_other_backbone",
    ),
    ({"data_sha256": "0"}, "other images. .*--allow_ot", "allow_other_data"),
  ),
)
def test_another_run_is_refused_unless_allowed(
  tmp_path, change, expected, allow
):
  claim_workdir(tmp_path, RECORD)
  other = dataclasses.replace(RECORD, **change)
  with pytest.raises(InputError, match=expected):
    claim_workdir(tmp_path, other)
  if allow:
    claim_workdir(tmp_path, other, **{allow: True})
  assert read_record(tmp_path) == RECORD


def test_only_the_given_sections_are_compared():
  other = changed("train", "learning_rate", 1e-4)
  check_config(RECORD, other.config, ("model",), "run")
  other = changed("model", "temperature", 0.1)
  with pytest.raises(InputError, match=r"model\.temperature is 0\.07 in"):
    check_config(RECORD, other.config, ("model",), "run")


def test_unrecorded_fields_have_their_defaults(tmp_path):
  claim_workdir(tmp_path, RECORD)
  new = {**CONFIG, "input": {"num_workers": 3}, "feature_cache": {}}
  new["model"] = {**CONFIG["model"], "num_heads": 12}
  claim_workdir(tmp_path, dataclasses.replace(RECORD, config=new))
  new["model"]["num_heads"] = 8
  with pytest.raises(InputError, match=r"num_heads is 12 in the run and 8 now"):
    claim_workdir(tmp_path, dataclasses.replace(RECORD, config=new))


def test_a_missing_run_is_reported(tmp_path):
  with pytest.raises(InputError, match="holds no training run"):
    read_record(tmp_path / "nowhere")
  assert not (tmp_path / "nowhere").exists()


def test_a_lost_record_is_not_replaced(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  for use in (read_record, lambda folder: claim_workdir(folder, RECORD)):
    with pytest.raises(InputError, match="does not exist, but .* checkpoints"):
      use(tmp_path)


def test_a_file_as_workdir_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="file/.*.json cannot be written: "):
    claim_workdir(tmp_path / "file", RECORD)


@pytest.mark.parametrize(
  "text",
  (
    '{"config": 0',
    "[" * 100000,
    '{"config": {}, "backbone_sha256": ""}',
    seal({"config": {}}),
    seal({"config": {}, "backbone_sha256": 1}),
    seal({"config": [], "backbone_sha256": ""}),
    seal({"config": {}, "backbone_sha256": "", "surplus": ""}),
  ),
)
def test_a_damaged_record_is_refused(tmp_path, text):
  with pytest.raises(InputError, match="^here is damaged"):
    from_json(text, "here")
  (tmp_path / "run.json").write_text(text)
  with pytest.raises(InputError, match="run.json is damaged"):
    claim_workdir(tmp_path, RECORD)
  assert (tmp_path / "run.json").read_text() == text
