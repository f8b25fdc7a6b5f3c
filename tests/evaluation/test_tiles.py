"""Evaluation that looks at tiles beside the whole of each image."""

import jax
import numpy as np
import pytest

from cops_jax import datasets, weights
from cops_jax.evaluation import DatasetEvaluator
from cops_jax.images import tiles
from cops_jax.images.decoding import open_image
from cops_jax.inputs import pipeline
from cops_jax.runtime.mesh import make_mesh, replicate, replicated_sharding
from helpers.images import make_image, write_folder


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
  """Of several sizes."""
  root = tmp_path_factory.mktemp("data") / "plates"
  name = write_folder(root, 7)
  for index, path in enumerate(sorted(root.glob("test/*/*.png"))):
    make_image(index, 100 + 10 * index, 80).save(path)
  return datasets.load(name, "test", None)


@pytest.fixture
def evaluator_of(config, clip_folder):
  """From a grid to an evaluator and the parameters of untrained prompts."""
  clip = weights.load_clip(str(clip_folder))

  def make(grid, num_devices=8, batch_size=8):
    config.evaluation.tiles = grid
    config.evaluation.batch_size = batch_size
    model = weights.build_model(config, clip)
    mesh = make_mesh(jax.devices()[:num_devices])
    trainable = model.init_trainable(jax.random.key(0))
    return (
      DatasetEvaluator(config, model, clip, mesh, replicated_sharding(mesh)),
      replicate((trainable, clip.params), mesh),
    )

  return make


@pytest.fixture
def evaluate(evaluator_of, examples):
  def run(*arguments):
    evaluator, params = evaluator_of(*arguments)
    return evaluator.run(*params, examples, num_pictures=1)

  return run


def scores(result):
  return np.array([image.image_score for image in result.images])


def test_a_grid_of_one_is_the_whole(evaluate):
  assert evaluate("1x1").images == evaluate("").images


def test_results_do_not_depend_on_batches_or_devices(evaluate):
  base = evaluate("2x3")
  assert len(base.images) == 7
  for num_devices, batch_size in ((1, 3), (8, 5)):
    other = evaluate("2x3", num_devices, batch_size)
    np.testing.assert_allclose(scores(other), scores(base), rtol=1e-5)
    for category, row in base.categories.items():
      assert other.categories[category].metrics == pytest.approx(
        row.metrics, abs=1e-3
      )
    assert [picture.image.path for picture in other.pictures] == [
      picture.image.path for picture in base.pictures
    ]
  assert np.abs(scores(evaluate("")) - scores(base)).max() > 1e-4


def test_whole_and_tiles_are_combined(evaluator_of, examples):
  """As `images.tiles` says, of steps that see one part of an image each."""
  evaluator, params = evaluator_of("2x3", 1, 7)
  (batch,) = pipeline.iterate_batches(
    examples, evaluator._options.batches, range(1)
  )
  batch = {name: batch[name] for name in ("image", "tiles", "example_id")}
  assert batch["tiles"].shape == (7, 6, 48, 48, 3)
  with open_image(examples[3]["image"]) as image:
    np.testing.assert_array_equal(
      batch["tiles"][3], tiles.cut(image, (2, 3), 48)
    )

  found = evaluator._step(*params, batch)
  parts = batch.pop("tiles")
  whole, *seen = (
    jax.device_get(evaluator._step(*params, {**batch, "image": part}))
    for part in (batch["image"], *parts.swapaxes(0, 1))
  )
  highest = np.max([part["image_score"] for part in seen], axis=0)
  np.testing.assert_allclose(
    found["image_score"], (whole["image_score"] + highest) / 2, rtol=1e-5
  )
  for place, anomaly_map in enumerate(found["anomaly_map"]):
    maps = np.stack([part["anomaly_map"][place] for part in seen])
    blended = tiles.blend(maps, (2, 3), (48, 48))
    want = (whole["anomaly_map"][place] + blended) / 2
    np.testing.assert_allclose(anomaly_map, want, rtol=1e-4, atol=1e-6)
