"""Training ends where a step is not finite, and says which example did it."""

import json

import numpy as np
import pytest

from cops_jax import datasets, training
from cops_jax.errors import InputError
from cops_jax.inputs import pipeline
from cops_jax.training import hooks
from cops_jax.training import step as steps
from cops_jax.training.non_finite import StopNonFinite

PATHS = ("a.png", "b.png", "", "c.png")


@pytest.mark.parametrize(
  "bad, expected",
  (
    ([1], "The fault is in b.png."),
    ([0, 3], "The fault is in a.png, c.png."),
    ([], "Each of its examples is finite alone"),
    ([0, 1, 3], "the parameters are at fault"),
  ),
)
def test_each_example_is_tried_alone(tmp_path, bad, expected):
  saved, values = [], np.zeros(4, np.float32)
  values[bad] = np.inf
  batch = {
    "value": values,
    "path": np.array(PATHS),
    "padding_mask": np.array(PATHS) != "",
  }

  def take_step(position, batch):
    assert position.step == 4
    assert batch["value"].shape == (4,) and batch["padding_mask"].all()
    return {"loss": batch["value"].sum()}

  class MadeSave(hooks.Save):
    def __init__(self):
      pass

    def finish(self, position):
      saved.append(position)

  position = hooks.Position(4, steps.TrainState(np.int32(3), {}, (), False))
  hook = StopNonFinite(tmp_path, MadeSave(), take_step)
  hook.check(hooks.StepTerms(3, {"loss": 1.0}, batch), position)
  assert not saved
  with pytest.raises(
    InputError, match="step 4 is not finite in: loss"
  ) as error:
    hook.check(hooks.StepTerms(4, {"kl": 0.0, "loss": np.inf}, batch), position)
  assert expected in str(error.value) and "checkpoint 3" in str(error.value)
  assert saved == [position]
  assert json.loads((tmp_path / "non_finite.json").read_text()) == {
    "step": 4,
    "terms": {"kl": "0.0", "loss": "inf"},
    "examples": ["a.png", "b.png", "c.png"],
    "not_finite_alone": [PATHS[row] for row in bad],
  }


def test_an_image_that_makes_nan_is_named(tiny, tmp_path, monkeypatch):
  examples = datasets.load(tiny.train.dataset, tiny.train.split)
  bad = examples[2]
  real = steps.encode_batch

  def encode_bad(model, variables, batch):
    image_features, patch_features = real(model, variables, batch)
    is_bad = batch["example_id"] == pipeline._noise_id(bad)
    scale = steps.jnp.where(is_bad, np.nan, 1)
    return image_features * scale[:, None], patch_features

  monkeypatch.setattr(steps, "encode_batch", encode_bad)
  with pytest.raises(InputError, match=f"fault is in {bad['path']}\\."):
    training.train(tiny, tmp_path / "run")
