"""Evaluation of one data set with untrained prompts and a random CLIP."""

import functools
import shutil

import jax
import numpy as np
import pytest

from cops_jax import datasets, metrics, scoring
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.evaluation import findings, normal_images, results
from cops_jax.evaluation.evaluator import Evaluator
from cops_jax.images.masks import read_mask
from cops_jax.inputs.pipeline import Subset
from cops_jax.runtime.mesh import make_mesh, replicate, replicated_sharding
from cops_jax.weights.clip import load_clip
from cops_jax.weights.model import build_model
from helpers.config import make_config
from helpers.images import make_image, write_folder


class Chosen(Subset):
  name = "demo_unseen"


@pytest.fixture(scope="module")
def unseen(data_dir):
  return datasets.load("demo_unseen", "test", data_dir)


@pytest.fixture(scope="module")
def examples(unseen):
  return Chosen(unseen, range(0, 612, 15))


@pytest.fixture(scope="module")
def evaluate(clip_folder, data_dir):
  """Returns a function that evaluates examples.

  Its settings are fields of config.evaluation.
  """
  backbone = load_clip(str(clip_folder))

  @functools.cache  # Evaluators with equal arguments share a compiled step.
  def make(num_devices, seed, **settings):
    config = make_config(clip_folder, data_dir)
    config.seed = seed
    config.evaluation.update({"num_samples": 3, **settings})
    model = build_model(config, backbone)
    mesh = make_mesh(jax.devices()[:num_devices])
    evaluator = Evaluator(
      config, model, backbone, mesh, replicated_sharding(mesh)
    )
    trainable = model.init_trainable(jax.random.key(0))
    return evaluator, *replicate((trainable, backbone.params), mesh)

  def run(
    examples,
    num_devices=8,
    seed=0,
    scale=1.0,
    maps=None,
    normal=None,
    **settings,
  ):
    evaluator, trainable, backbone_params = make(num_devices, seed, **settings)
    trainable = jax.tree.map(lambda leaf: scale * leaf, trainable)
    return evaluator.run(trainable, backbone_params, examples, 2, maps, normal)

  return run


@pytest.fixture(scope="module")
def base(evaluate, examples):
  return evaluate(examples, batch_size=8)


def scores(result):
  return np.array([image.image_score for image in result.images])


@pytest.mark.parametrize("tiles, number", (("", 41), ("2x3", 14)))
def test_results_do_not_depend_on_batches_devices_or_order(
  evaluate, unseen, tiles, number
):
  indices = range(0, 612, 612 // number)[:number]
  examples = Chosen(unseen, indices)
  want = evaluate(examples, batch_size=8, tiles=tiles)
  assert len(want.images) == number
  for got in (
    evaluate(examples, batch_size=number, tiles=tiles),
    evaluate(examples, 1, batch_size=3, tiles=tiles),
    # The grid 1x1 is the whole image.
    evaluate(Chosen(unseen, indices[::-1]), batch_size=8, tiles=tiles or "1x1"),
  ):
    assert [row.path for row in got.images] == [r.path for r in want.images]
    np.testing.assert_allclose(scores(got), scores(want), rtol=1e-5)
    for category, row in want.categories.items():
      found = got.categories[category].metrics
      assert found == pytest.approx(row.metrics, abs=1e-3, nan_ok=True)
    assert [(shown.kind, shown.image.path) for shown in got.pictures] == [
      (shown.kind, shown.image.path) for shown in want.pictures
    ]


def test_an_unreadable_file_is_reported_once(config, tmp_path, caplog):
  """The feature cache and the evaluation both read it, but only one reports."""
  name = write_folder(tmp_path / "a", 4, has_masks=False)
  (tmp_path / "a/test/good/00.png").write_bytes(b"")
  config.features_dir, config.feature_cache.dtype = str(tmp_path), "float32"
  config.input.unreadable_files = "skip"
  backbone, mesh = load_clip(config.backbone.weights), make_mesh()
  model, sharding = build_model(config, backbone), replicated_sharding(mesh)
  evaluator = Evaluator(config, model, backbone, mesh, sharding)
  params = model.init_trainable(jax.random.key(0)), backbone.params
  found = evaluator.run(
    *replicate(params, mesh), datasets.load(name, "test"), num_pictures=0
  )
  assert len(found.images) == 3
  assert caplog.text.count("skipping test/good/00.png") == 1


def test_category_codes_depend_on_the_seed(evaluate, examples, base):
  other = evaluate(examples, batch_size=8, seed=1)
  assert np.abs(scores(other) - scores(base)).max() > 0


def test_every_example_is_scored_once(examples, base):
  rows = {image.path: image for image in base.images}
  assert len(rows) == len(base.images) == len(examples)
  for example in examples:
    image = rows[example["path"]]
    assert image.label == example["label"]
    assert image.category == example["category"]
    is_anomaly = example["anomaly_kind"] != "good"
    assert (image.label == scoring.ANOMALY) == is_anomaly
  kinds = [picture.kind for picture in base.pictures]
  assert kinds == ["best"] * 2 + ["worst"] * 2 + ["random"] * 2
  for picture in base.pictures:
    image = rows[picture.image.path]
    assert picture.image == image


def test_scores_and_maps_match_the_detector(
  clip_folder, data_dir, tmp_path, monkeypatch
):
  """They match with tiles, any file names and reference images by category."""
  root = tmp_path / "plates"
  write_folder(root / "one", 3)
  for index, path in enumerate(sorted(root.glob("one/test/*/*.png"))):
    make_image(index, *((48, 48) if index else (130, 80))).save(path)
  for name in ("two", "three"):
    shutil.copytree(root / "one", root / name)
  (root / "two/test/good/02.png").rename(root / "two/test/good/other.png")
  for name, seed in (("one", 10), ("two", 10), ("three", 20)):
    folder = root / name / "train" / "good"
    folder.mkdir(parents=True)
    for number in range(2):
      make_image(seed + number).save(folder / f"{number}.png")
  examples = datasets.load(f"folder:{root}", "test", None)
  config = make_config(clip_folder, data_dir)
  config.evaluation.update(tiles="2x3", num_normal_images=2)
  backbone = load_clip(str(clip_folder))
  model, mesh = build_model(config, backbone), make_mesh()
  trainable = model.init_trainable(jax.random.key(0))
  evaluator = Evaluator(
    config, model, backbone, mesh, replicated_sharding(mesh)
  )
  params = replicate((trainable, backbone.params), mesh)
  shown = []

  def draw(image, mask, anomaly_map, **_):
    shown.append(anomaly_map)
    return {"map": str(len(shown) - 1)}

  monkeypatch.setattr("cops_jax.evaluation.evaluator.picture_tiles", draw)
  normal = normal_images.draw(config, f"folder:{root}", examples)
  maps_folder = tmp_path / "maps"
  result = evaluator.run(*params, examples, 9, maps_folder, normal)
  plain = AnomalyDetector(config, trainable, backbone)
  detectors = {
    name: plain.with_normal_images([root / path for path in paths], "2x3")
    for name, paths in result.normal_images.items()
  }
  drawn = {
    picture.image.path: shown[int(picture.tiles["map"])]
    for picture in result.pictures
  }
  assert len(drawn) == len(result.images) == 9
  for image in result.images:
    found = detectors[image.category](root / image.path, tiles="2x3")
    assert image.image_score == pytest.approx(found.image_score, abs=1e-6)
    if found.anomaly_map.shape == (48, 48):
      with np.load(maps_folder / f"{image.category}.npz") as maps:
        saved = maps[image.path]  # float16
      np.testing.assert_allclose(saved, found.anomaly_map, atol=1e-3)
      np.testing.assert_allclose(
        drawn[image.path], found.anomaly_map, atol=1e-6
      )
  one, three, two = np.split(scores(result), 3)
  np.testing.assert_allclose(one, two, atol=1e-6)
  assert len({*one, *three}) == 6


def test_reference_images_depend_on_seed_and_id_only(
  evaluate, unseen, data_dir, clip_folder
):
  """The order of the examples does not matter; too few images are an error."""
  config = make_config(clip_folder, data_dir)
  config.evaluation.num_normal_images = 2

  def draw(examples):
    return normal_images.draw(config, "demo_unseen", examples)

  class Listed(Chosen):
    categories_and_labels = datasets.schema.Examples.categories_and_labels

  indices = range(0, 612, 80)
  drawn = draw(Listed(unseen, indices))
  again = draw(Listed(unseen, indices[::-1]))
  assert again.paths == drawn.paths and again.sha256 == drawn.sha256
  assert drawn.pixels["biscuit"].shape == (2, 48, 48, 3)
  assert all("/train/good/" in path for path in drawn.paths["biscuit"])
  want = evaluate(Listed(unseen, indices), batch_size=8, normal=drawn)
  got = evaluate(Listed(unseen, indices[::-1]), batch_size=8, normal=again)
  assert [row.path for row in got.images] == [row.path for row in want.images]
  np.testing.assert_allclose(scores(got), scores(want), rtol=1e-5)
  assert got.normal_images == drawn.paths
  config.seed = 1
  other = draw(Listed(unseen, indices))
  assert other.paths != drawn.paths and other.sha256 != drawn.sha256
  config.evaluation.num_normal_images = 9
  with pytest.raises(InputError, match="has 8 normal images of 'biscuit'"):
    draw(Listed(unseen, indices))


def test_best_and_worst_pictures_are_furthest_from_the_threshold():
  found = findings.Findings("binned")
  scores = {0.1: 0, 0.3: 0, 0.9: 0, 0.8: 1, 0.05: 1}
  for index, (score, label) in enumerate(scores.items()):
    image = results.ImageResult("made", "part", "a.png", label, score)
    found.images.append(findings.Scored(image, index, 0.0, 1.0))
  category = results.CategoryResult({}, image_threshold=0.5)
  chosen = found.choose({"part": category}, 2)
  assert [(kind, row.image.image_score) for kind, row in chosen[:4]] == [
    *(("best", 0.1), ("best", 0.8), ("worst", 0.05), ("worst", 0.9))
  ]


@pytest.mark.parametrize(
  "level, reason", (("pixel", "no masks"), ("image", "no normal images"))
)
def test_undefined_metrics_have_a_reason(
  evaluate, unseen, examples, level, reason
):
  if level == "image":
    given = Chosen(unseen, [i for i in range(0, 612, 15) if unseen[i]["label"]])
  else:
    blind = [{**example, "has_mask": False} for example in examples]
    given = Chosen(blind, range(len(blind)))
  result = evaluate(given, batch_size=8)
  for name, value in result.mean.items():
    assert np.isnan(value) == name.startswith(level), name
  assert len(result.pictures) == 6
  for row in result.categories.values():
    assert set(row.undefined.values()) == {reason}
    assert set(row.undefined) == {
      name for name in row.metrics if name.startswith(level)
    }


def test_saved_maps_give_the_reported_metrics(
  evaluate, examples, base, tmp_path
):
  result = evaluate(
    examples, batch_size=16, pixel_metrics="exact", maps=tmp_path
  )
  assert result.mean == pytest.approx(base.mean, abs=1e-3)
  masks = {
    example["path"]: read_mask(example["mask"]).fit(48).pixels
    for example in examples
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
      assert row.num_masks == sum(masks[path].any() for path in maps.files) > 0
    for name, value in state.count().compute().items():
      assert value == pytest.approx(row.metrics[name], abs=0.01)


def test_a_score_that_is_not_finite_is_reported(evaluate, examples):
  with pytest.raises(InputError, match=f"{examples[0]['path']} .* not finite"):
    evaluate(examples, batch_size=8, scale=np.nan)
