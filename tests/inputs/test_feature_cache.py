"""The cache of vision features: exact, shared, resumable, never stale."""

import collections
import concurrent.futures
import logging
import os
import shutil
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from cops_jax import config as configuration
from cops_jax import datasets, evaluation, training, weights
from cops_jax.config import Role
from cops_jax.errors import InputError
from cops_jax.evaluation import many
from cops_jax.inputs import feature_cache as features
from cops_jax.inputs import feature_files
from cops_jax.inputs import pipeline as input_pipeline
from cops_jax.inputs.configured import features_of
from cops_jax.runs.metrics_log import read_metrics
from cops_jax.runtime import mesh as sharding
from helpers.compiled import AS_FOR_USERS
from helpers.images import write_folder


@pytest.fixture
def encoded(monkeypatch):
  """Counts the images that are encoded to be stored."""
  counts = collections.Counter()
  store = feature_files.FeatureCache.to_record

  def to_record(self, *args):
    counts["images"] += 1
    return store(self, *args)

  monkeypatch.setattr(feature_files.FeatureCache, "to_record", to_record)
  return counts


def forbid_vision_tower(monkeypatch):
  """The one way to it normalises images first."""

  def fail(images):
    raise AssertionError("the vision tower was compiled")

  monkeypatch.setattr("cops_jax.clip.features.normalize_images", fail)


def outcome(workdir, step=6):
  """Loss terms, and the last checkpoint as bytes."""
  folder = workdir / "checkpoints" / str(step)
  leaves = [
    leaf.tobytes()
    for part in ("params", "opt_state")
    for leaf in jax.tree.leaves(
      jax.device_get(ocp.StandardCheckpointer().restore(folder / part))
    )
  ]
  return read_metrics(workdir), leaves


def test_training_is_the_same_and_runs_share_a_cache(
  config, tmp_path, encoded, monkeypatch, caplog
):
  """Two epochs in random order, the last batch of each padded."""
  caplog.set_level(logging.INFO, "cops_jax")
  config.train.num_epochs = 2
  config.train.batch_size = 10
  config.train.dataset = write_folder(tmp_path / "nuts", 27)
  config.features_dir = str(tmp_path / "features")
  training.train(config, tmp_path / "without")
  assert not encoded
  want_rows, want_leaves = outcome(tmp_path / "without")

  config.feature_cache.dtype = "float32"
  training.train(config, tmp_path / "filling")
  assert encoded["images"] == 27
  from_cache = outcome(tmp_path / "filling")
  if AS_FOR_USERS:
    assert from_cache == (want_rows, want_leaves)
    return  # The rest does not hang on how programs are compiled.
  for row, want in zip(from_cache[0], want_rows, strict=True):
    assert row["loss"] == pytest.approx(want["loss"], rel=1e-4)
  # An image feature and 2 x 9 patch features of width 24.
  gigabytes = f"{27 * (1 + 2 * 9) * 24 * 4 / 1e9:.3g} GB"
  assert f"{gigabytes} as float32, of " in caplog.text
  assert "computing features of nuts: 27/27 images" in caplog.text

  config.feature_cache.dtype = "bfloat16"
  training.train(config, tmp_path / "rounded")
  rows, leaves = outcome(tmp_path / "rounded")
  assert encoded["images"] == 2 * 27
  assert leaves != want_leaves
  for row, want in zip(rows, want_rows, strict=True):
    assert row["loss"] == pytest.approx(want["loss"], rel=1e-2)

  forbid_vision_tower(monkeypatch)
  config.feature_cache.dtype = "float32"
  training.train(config, tmp_path / "reading")
  assert encoded["images"] == 2 * 27
  assert outcome(tmp_path / "reading") == from_cache

  config.evaluation.datasets = (config.train.dataset,)
  config.evaluation.batch_size = 10  # As many for each device.
  results = many.evaluate(config, tmp_path / "reading").results
  assert len(results["nuts"].images) == 27
  assert encoded["images"] == 2 * 27


@pytest.fixture
def images(tmp_path):
  """A folder of 12 images, and the data set in it."""
  rng = np.random.default_rng(0)
  root = tmp_path / "made"
  for index in range(12):
    path = root / "test" / ("good", "bad")[index % 2] / f"{index:02}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
  return root


def load(root):
  return datasets.load(f"folder:{root}", "test")


@pytest.fixture
def open_cache(config, tmp_path):
  clip = weights.load_clip(config.clip.weights)
  model = weights.build_model(config, clip)

  options = features.CacheOptions(
    dtype="float32", folder=tmp_path / "caches", image_size=48, batch_size=8
  )

  def open_cache(examples, skipped=None):
    return features.open_features(
      examples, "test", model, clip, sharding.make_mesh(), options, skipped
    )

  return open_cache


def iterate(examples, num_workers=0, **kwargs):
  options = input_pipeline.BatchOptions(
    image_size=48,
    patch_size=16,
    batch_size=5,
    num_devices=2,
    num_workers=num_workers,
    shuffle_seed=0,
  )
  return list(
    input_pipeline.iterate_batches(examples, options, range(6), **kwargs)
  )


def test_batches_differ_in_the_features_alone(images, open_cache):
  """Order, padding, skipped files and worker processes."""
  broken = images / "test" / "good" / "02.png"
  broken.write_bytes(broken.read_bytes()[:40])
  examples = load(images)
  with pytest.raises(InputError, match=r"02\.png.*its image cannot be read"):
    open_cache(examples)
  skipped, skipped_before = {}, {}
  plain = iterate(examples, skipped=skipped_before)
  cache = open_cache(examples, skipped=skipped)
  assert skipped == skipped_before and list(skipped) == ["test/good/02.png"]
  for num_workers in (0, 1):
    batches = iterate(
      examples, features=cache, skipped={}, num_workers=num_workers
    )
    for batch, other in zip(batches, plain, strict=True):
      assert "image" not in batch
      assert batch["patch_features"].shape == (6, 2, 9, 24)
      assert (batch["image_features"][~batch["padding_mask"]] == 1).all()
      for name in other.keys() - {"image"}:
        np.testing.assert_array_equal(batch[name], other[name])


def test_an_interrupted_fill_goes_on(images, open_cache, encoded, monkeypatch):
  examples = load(images)
  monkeypatch.setattr(features, "_FILE_BYTES", 5 * 19 * 24 * 4)
  count = encoded.__getitem__

  class Killed(BaseException):
    pass

  real = os.replace

  def replace(source, target):
    if str(target).endswith("00002.array_record"):
      raise Killed  # The file is written, and not in place.
    real(source, target)

  monkeypatch.setattr(os, "replace", replace)
  with pytest.raises(Killed):
    open_cache(examples)
  assert count("images") == 10
  monkeypatch.setattr(os, "replace", real)
  cache = open_cache(examples)
  assert count("images") == 10 + 7 and len(cache) == 12
  whole = [cache.find(example) for example in examples]
  shutil.rmtree(cache.folder)
  again = open_cache(examples)
  for example, values in zip(examples, whole, strict=True):
    for name, array in again.find(example).items():
      np.testing.assert_array_equal(array, values[name])


def test_stale_and_damaged_caches(images, open_cache, encoded):
  examples = load(images)
  cache = open_cache(examples)
  (path,) = cache.folder.glob("*.array_record")

  # A changed file: known before the run, and where it changes during it.
  changed = images / "test" / "bad" / "03.png"
  Image.new("RGB", (20, 20), "red").save(changed)
  with pytest.raises(InputError, match=r"stale.*03\.png has changed"):
    iterate(examples, features=cache)
  cache = open_cache(load(images))
  assert encoded["images"] == 13
  iterate(examples, features=cache)

  good = path.read_bytes()
  stored = cache.find(examples[5])["patch_features"].tobytes()
  for damaged in (
    good[: len(good) // 2],
    good[:100] + bytes([good[100] ^ 1]) + good[101:],
    b"",
  ):
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=f"{path} are damaged.*Delete"):
      open_cache(examples)
  # In the features, not the index: noticed where they are read.
  place = good.index(stored)
  path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
  with pytest.raises(InputError, match=f"{path} are damaged.*Delete"):
    iterate(examples, features=open_cache(examples))
  path.unlink()
  iterate(examples, features=open_cache(examples))

  manifest = cache.folder / "manifest.json"
  text = manifest.read_text()
  manifest.write_text(text.replace('"float32"', '"float16"'))
  with pytest.raises(InputError, match="stored_as is 'float16' there and"):
    open_cache(examples)
  manifest.write_text(text[:-20])
  with pytest.raises(InputError, match="stale.*Delete that folder"):
    open_cache(examples)


def test_a_full_disk_is_noticed_before_and_during(
  images, open_cache, encoded, monkeypatch
):
  examples = load(images)
  with monkeypatch.context() as context:
    usage = types.SimpleNamespace(free=1000)
    context.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="need 2.19e-05 GB.* 1e-06 GB free"):
      open_cache(examples)
  assert not encoded

  def replace(source, target):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as context:
    context.setattr(feature_files.os, "replace", replace)
    message = "No space left on device.*config.features_dir"
    with pytest.raises(InputError, match=message):
      open_cache(examples)


def test_numbers_that_do_not_fit_are_refused(tmp_path):
  cache = feature_files.FeatureCache(tmp_path, "float16", (1, 2, 3))
  patches = np.ones((1, 2, 3), np.float32)
  cache.to_record(np.full(3, 65504, np.float32), patches, "a.png")
  with pytest.raises(InputError, match="a.png reach 7e.04, more than float16"):
    cache.to_record(np.full(3, 70000, np.float32), patches, "a.png")
  with pytest.raises(InputError, match="weights are damaged"):
    cache.to_record(np.full(3, np.nan, np.float32), patches, "a.png")


def test_bfloat16_holds_all_that_a_bfloat16_clip_says(config):
  config.clip.dtype = "bfloat16"
  clip = weights.load_clip(config.clip.weights)
  model = weights.build_model(config, clip)
  encode = features.make_encode_step(model, sharding.make_mesh())
  images = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), np.uint8)
  for array in encode(clip.params, {"image": images}):
    np.testing.assert_array_equal(array, array.astype("bfloat16"))


def test_evaluation_is_the_same(config, images, open_cache, monkeypatch):
  examples = load(images)
  clip = weights.load_clip(config.clip.weights)
  config.evaluation.update(num_samples=2, alpha=0.3, beta=0.5)
  model = weights.build_model(config, clip)
  trainable = model.init_trainable(jax.random.key(0))
  mesh = sharding.make_mesh()
  batches = input_pipeline.BatchOptions(
    image_size=48,
    patch_size=16,
    batch_size=8,
    num_devices=mesh.size,
    full_masks=True,
  )
  cache = open_cache(examples)

  def evaluate(cache):
    step = evaluation.make_predict_step(model, mesh)
    return evaluation.evaluate_dataset(
      examples,
      lambda batch: step(trainable, clip.params, batch),
      mesh,
      evaluation.EvaluationOptions(batches, num_pictures=2),
      name="made",
      features=cache,
    )

  want = evaluate(None)
  forbid_vision_tower(monkeypatch)
  result = evaluate(cache)
  assert result.images == want.images
  assert len(want.pictures) == 6 and result.pictures == want.pictures


def test_a_cache_depends_on_the_fields_that_say_so(config, images):
  config.features_dir = str(images.parent / "features")
  config.feature_cache.dtype = "float32"
  clip, mesh = weights.clip_of(config), sharding.make_mesh()

  def num_caches(name, value):
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict({name: value})
    model = weights.build_model(changed, clip)
    folder = features_of(
      changed,
      load(images),
      "test",
      model,
      clip,
      mesh,
      batch_size=8,
      skipped=None,
    ).folder
    return len(list(folder.parent.iterdir()))

  assert num_caches("seed", 1) == 1
  for name, value in (
    ("model.temperature", 0.1),
    ("model.num_state_words", 0),
    ("train.learning_rate", 0.1),
    ("evaluation.alpha", 0.1),
    ("clip.split_over_devices", True),
  ):
    assert not configuration.decides(name, Role.FEATURES)
    assert num_caches(name, value) == 1
  changes = {
    "feature_cache.dtype": "bfloat16",
    "clip.dtype": "bfloat16",
    "model.image_size_pixels": 32,
    "model.feature_layers": (3,),
    "model.num_value_layers": 1,
  }
  assert changes.keys() == {
    name
    for name in configuration.FIELDS
    if configuration.decides(name, Role.FEATURES)
  }
  for number, (name, value) in enumerate(changes.items(), start=2):
    assert num_caches(name, value) == number, name


def test_one_fills_and_the_others_wait(images, open_cache, encoded):
  examples = load(images)
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    caches = list(pool.map(open_cache, [examples] * 3))
  assert encoded["images"] == 12
  for cache in caches:
    assert not cache.missing(examples)
