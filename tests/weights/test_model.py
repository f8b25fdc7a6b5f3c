"""The dtype of the backbone: from the platform, or from the run."""

import json
import logging

import jax.numpy as jnp
import pytest

from cops_jax import training
from cops_jax.runs.record import Record
from cops_jax.weights.backbone import load_backbone
from cops_jax.weights.model import build_model, choose_dtype


def test_auto_is_the_fast_dtype_or_that_of_the_run(config, caplog):
  caplog.set_level(logging.INFO, "cops_jax")
  config.backbone.dtype = "auto"
  chosen = choose_dtype(config, None)
  assert chosen.backbone.dtype == "float32" and config.backbone.dtype == "auto"
  assert "the backbone computes in float32, fast on cpu" in caplog.text
  assert (
    build_model(config, load_backbone(config)).backbone.dtype == jnp.float32
  )
  record = Record({"backbone": {"dtype": "bfloat16"}}, "")
  assert choose_dtype(config, record).backbone.dtype == "bfloat16"
  assert "the backbone computes in bfloat16, as in the run" in caplog.text


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_a_run_records_its_dtype_and_resumes_with_auto(config, tmp_path, dtype):
  config.train.num_epochs = 0
  config.backbone.dtype = "auto" if dtype == "float32" else dtype
  for _ in range(2):
    training.train(config, tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["backbone"]["dtype"] == dtype
    config.backbone.dtype = "auto"
