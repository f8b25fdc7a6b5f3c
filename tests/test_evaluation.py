"""Evaluation of whole data sets, on the demo's data and a random CLIP."""

import jax
import numpy as np
import pytest

from cops_jax import (
  configuration,
  datasets,
  evaluation,
  scoring,
  sharding,
  weights,
)
from cops_jax.errors import InputError
from cops_jax.models.cops import init_trainable


@pytest.fixture(scope="module")
def examples(data_dir):
  unseen = datasets.load("demo_unseen", "test", data_dir)
  return [unseen[index] for index in range(0, 612, 15)]


@pytest.fixture
def evaluate(config, clip_folder):
  """Evaluates some examples with untrained prompts."""
  clip = weights.load_clip(str(clip_folder))
  model = configuration.build_model(config, clip)
  trainable = init_trainable(model, jax.random.key(0))

  def run(examples, batch_size, num_devices=8, seed=0):
    devices = np.array(jax.devices()[:num_devices])
    mesh = jax.sharding.Mesh(devices, (sharding.DATA_AXIS,))
    step = evaluation.make_predict_step(
      model, mesh, seed=seed, num_samples=3, alpha=0.3, beta=0.5
    )
    on_devices = sharding.replicate((trainable, clip.params), mesh)
    return evaluation.evaluate_dataset(
      examples,
      lambda batch: step(*on_devices, batch),
      name="demo_unseen",
      mesh=mesh,
      image_size=48,
      patch_size=16,
      batch_size=batch_size,
      num_pictures=2,
    )

  return run


def scores(result):
  return np.array([image.image_score for image in result.images])


def test_neither_batches_nor_devices_nor_order_matter(evaluate, examples):
  base = evaluate(examples, batch_size=8)
  assert len(base.images) == len(examples) == 41
  others = (
    evaluate(examples, batch_size=41),
    evaluate(examples, batch_size=3, num_devices=1),
    evaluate(examples[::-1], batch_size=8),
  )
  for other in others:
    assert [image.path for image in other.images] == [
      image.path for image in base.images
    ]
    np.testing.assert_allclose(scores(other), scores(base), rtol=1e-5)
    for category, row in base.categories.items():
      assert other.categories[category] == pytest.approx(row, abs=1e-3)
    assert [picture.sort_key for picture in other.pictures] == [
      picture.sort_key for picture in base.pictures
    ]
  assert np.abs(scores(evaluate(examples, 8, seed=1)) - scores(base)).max() > 0


def test_images_are_those_of_the_data_set(evaluate, examples):
  result = evaluate(examples, batch_size=16)
  rows = {image.path: image for image in result.images}
  for example in examples:
    image = rows[example["path"]]
    assert image.label == example["label"]
    assert image.category == example["category"]
  assert all(
    rows[example["path"]].label == scoring.ANOMALY
    for example in examples
    if example["anomaly_kind"] != "good"
  )
  shown = [picture.category for picture in result.pictures]
  assert shown == sorted(shown)
  assert all(shown.count(category) <= 2 for category in shown)


def test_without_masks_pixel_metrics_are_undefined(evaluate, examples):
  blind = [{**example, "has_mask": False} for example in examples]
  mean = evaluate(blind, batch_size=16).mean
  assert np.isnan([mean["pixel_auroc"], mean["pixel_ap"]]).all()
  assert 0 <= mean["image_auroc"] <= 1


def test_without_normal_images_image_metrics_are_undefined(evaluate, examples):
  anomalous = [example for example in examples if example["label"]]
  mean = evaluate(anomalous, batch_size=16).mean
  assert np.isnan([mean["image_auroc"], mean["image_ap"]]).all()
  assert 0 <= mean["pixel_auroc"] <= 1


def test_nan_names_the_image(examples):
  mesh = sharding.make_mesh()

  def predict(batch):
    shape = batch["image"].shape[:3]
    return {
      "image_score": np.full(shape[0], np.nan),
      "anomaly_map": np.zeros(shape),
    }

  with pytest.raises(InputError, match=examples[0]["path"]):
    evaluation.evaluate_dataset(
      examples,
      predict,
      name="demo_unseen",
      mesh=mesh,
      image_size=48,
      patch_size=16,
      batch_size=8,
      num_pictures=1,
    )
