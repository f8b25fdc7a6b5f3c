"""Evaluation of whole data sets, on the demo's data and a random CLIP."""

import jax
import numpy as np
import pytest

from cops_jax import datasets, evaluation, metrics, scoring, weights
from cops_jax.errors import InputError
from cops_jax.evaluation import accumulate, results
from cops_jax.images.decoding import decode_mask
from cops_jax.inputs.pipeline import BatchOptions
from cops_jax.runtime.mesh import make_mesh, replicate


@pytest.fixture(scope="module")
def examples(data_dir):
  unseen = datasets.load("demo_unseen", "test", data_dir)
  return [unseen[index] for index in range(0, 612, 15)]


def batch_options(batch_size, num_devices=8):
  return BatchOptions(
    image_size=48,
    patch_size=16,
    batch_size=batch_size,
    num_devices=num_devices,
    full_masks=True,
  )


@pytest.fixture
def evaluate(config, clip_folder):
  """Evaluates some examples with untrained prompts."""
  clip = weights.load_clip(str(clip_folder))
  config.evaluation.update(num_samples=3, alpha=0.3, beta=0.5)

  def run(
    examples,
    batch_size,
    num_devices=8,
    seed=0,
    pixel_metrics="binned",
    maps_folder=None,
  ):
    mesh = make_mesh(jax.devices()[:num_devices])
    config.seed = seed
    model = weights.build_model(config, clip)
    trainable = model.init_trainable(jax.random.key(0))
    step = evaluation.make_predict_step(model, mesh)
    on_devices = replicate((trainable, clip.params), mesh)
    return evaluation.evaluate_dataset(
      examples,
      lambda batch: step(*on_devices, batch),
      mesh,
      evaluation.EvaluationOptions(
        batch_options(batch_size, num_devices), pixel_metrics, num_pictures=2
      ),
      name="demo_unseen",
      maps_folder=maps_folder,
    )

  return run


def scores(result):
  return np.array([image.image_score for image in result.images])


def test_results_do_not_depend_on_batches_devices_or_order(evaluate, examples):
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
      got = other.categories[category].metrics
      assert got == pytest.approx(row.metrics, abs=1e-3)
    for picture, want in zip(other.pictures, base.pictures, strict=True):
      assert picture.kind == want.kind
      assert picture.image.path == want.image.path
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
  kinds = [picture.kind for picture in result.pictures]
  assert kinds == ["best"] * 2 + ["worst"] * 2 + ["random"] * 2
  for picture in result.pictures:
    image = rows[picture.image.path]
    assert picture.image.label == image.label
    assert picture.image.image_score == pytest.approx(image.image_score)


def choose(scores, threshold, number):
  """Scores of the pictures by kind; given by category for each label."""
  found = accumulate.Findings("binned")
  for category, kinds in scores.items():
    for label, values in enumerate(kinds):
      for value in values:
        found.indices.append(len(found.images))
        found.example_ids.append(len(found.images))
        found.images.append(
          results.ImageResult("made", category, "a.png", label, value)
        )
  category = results.CategoryResult({}, image_threshold=threshold)
  chosen = found.choose_pictures(dict.fromkeys(scores, category), number)
  shown = {"best": [], "worst": [], "random": []}
  for kind, index in chosen:
    shown[kind].append(found.images[index].image_score)
  return shown


def test_best_and_worst_are_of_as_many_categories_as_there_are():
  """Though one category has all of the largest distances."""
  scores = {
    "easy": ((0.0, 0.02, 0.9), (0.99, 0.95, 0.05)),
    "hard": ((0.4, 0.45, 0.55), (0.65, 0.52, 0.48)),
  }
  shown = choose(scores, 0.5, 2)
  assert shown["best"] == [0.0, 0.65] and shown["worst"] == [0.05, 0.55]
  # A second one of a category only when each has one.
  shown = choose(scores, 0.5, 3)
  assert shown["best"] == [0.0, 0.65, 0.99]
  assert shown["worst"] == [0.05, 0.55, 0.9]
  shown = choose(scores, 0.5, 100)
  assert all(len(set(values)) == 12 for values in shown.values())
  assert choose({"one": scores["hard"]}, 0.5, 2)["worst"] == [0.55, 0.48]


def test_distances_are_shares_of_what_there_is_on_a_side():
  """Below a low threshold nothing is far away, and can be best all the same."""
  assert choose({"part": ((0.0,), (0.9,))}, 0.1, 1)["best"] == [0.0]


def test_without_masks_pixel_metrics_are_undefined(evaluate, examples):
  blind = [{**example, "has_mask": False} for example in examples]
  result = evaluate(blind, batch_size=16)
  for name, value in result.mean.items():
    assert np.isnan(value) == name.startswith("pixel"), name
  for row in result.categories.values():
    assert row.undefined["pixel_aupro"] == "no masks"
    assert set(row.undefined) == {
      name for name in row.metrics if name.startswith("pixel")
    }


def test_without_normal_images_image_metrics_are_undefined(evaluate, examples):
  anomalous = [example for example in examples if example["label"]]
  result = evaluate(anomalous, batch_size=16)
  for name, value in result.mean.items():
    assert np.isnan(value) == name.startswith("image"), name
  assert len(result.pictures) == 6
  for row in result.categories.values():
    assert row.undefined["image_auroc"] == "no normal images"


def test_exact_and_binned_metrics_agree(evaluate, examples):
  binned = evaluate(examples, batch_size=41)
  exact = evaluate(examples, batch_size=41, pixel_metrics="exact")
  assert exact.images == binned.images
  assert exact.mean == pytest.approx(binned.mean, abs=1e-4)


def test_saved_maps_are_those_that_were_measured(evaluate, examples, tmp_path):
  result = evaluate(
    examples, batch_size=16, pixel_metrics="exact", maps_folder=tmp_path
  )
  masks = {
    example["path"]: decode_mask(example["mask"], 48) for example in examples
  }
  assert {path.name for path in tmp_path.iterdir()} == {
    f"{category}.npz" for category in result.categories
  }
  for category, row in result.categories.items():
    state = metrics.ExactPixelMetrics()
    with np.load(tmp_path / f"{category}.npz") as maps:
      assert set(maps.files) == {
        image.path for image in result.images if image.category == category
      }
      for path in maps.files:
        assert maps[path].dtype == np.float16
        state.add(maps[path].astype(np.float32), masks[path].astype(bool))
    for name, value in state.count().compute().items():
      assert value == pytest.approx(row.metrics[name], abs=0.01)


def test_nan_is_reported_with_the_image(examples):
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
      make_mesh(),
      evaluation.EvaluationOptions(batch_options(8), num_pictures=1),
      name="demo_unseen",
    )
