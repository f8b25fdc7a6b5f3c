"""The feature cache is exact, shared, resumable and never stale."""

import ast
import concurrent.futures
import dataclasses
import logging
import os
import shutil
import types
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from cops_jax import datasets, training
from cops_jax.errors import InputError
from cops_jax.evaluation import many
from cops_jax.inputs import feature_cache, features, pipeline
from cops_jax.runs.metrics_log import read_metrics
from cops_jax.runtime.mesh import make_mesh
from cops_jax.weights.clip import load_clip
from cops_jax.weights.model import build_model
from helpers.compiled import AS_FOR_USERS
from helpers.images import write_folder
from helpers.runs import leaves


@pytest.fixture
def encoded():
  """Yields a mock whose call count is the number of encoded images."""
  encode = feature_cache.FeatureCache.encode
  with mock.patch.object(
    feature_cache.FeatureCache, "encode", autospec=True, side_effect=encode
  ) as encoded:
    yield encoded


def test_training_and_evaluation_share_a_cache(
  config, tmp_path, encoded, monkeypatch, caplog
):
  """The run has two epochs in random order with padded last batches."""
  caplog.set_level(logging.INFO, "cops_jax")
  config.train.num_epochs = 2
  config.train.batch_size = config.evaluation.batch_size = 10
  config.train.dataset = write_folder(tmp_path / "nuts", 27)
  config.evaluation.datasets = (config.train.dataset,)
  config.features_dir = str(tmp_path / "features")
  without, filling = tmp_path / "without", tmp_path / "filling"
  training.train(config, without)
  want = many.evaluate(config, without).results["nuts"]
  assert not encoded.called

  config.feature_cache.dtype = "float32"
  training.train(config, filling)
  assert encoded.call_count == 27
  if AS_FOR_USERS:
    for item in ("params", "opt_state"):
      assert leaves(filling, 6, item) == leaves(without, 6, item)
    assert read_metrics(filling) == read_metrics(without)
  losses, wanted = (
    [row["loss"] for row in read_metrics(run)] for run in (filling, without)
  )
  assert losses == pytest.approx(wanted, rel=1e-4)
  # An image feature, 2 x 9 patch features of width 24, and how it was read.
  gigabytes = f"{27 * ((1 + 2 * 9) * 24 * 4 + 512) / 1e9:.3g} GB"
  assert f"{gigabytes} as float32, and " in caplog.text
  assert "computing features of nuts: 27/27 images" in caplog.text

  # The vision tower would call this for each image.
  fail = mock.Mock(side_effect=AssertionError("the tower was compiled"))
  monkeypatch.setattr("cops_jax.backbones.features.normalize_images", fail)
  found = many.evaluate(config, tmp_path / "other", checkpoint=without)
  found = found.results["nuts"]
  assert found.images == want.images and len(want.images) == 27
  assert found.pictures == want.pictures != []


@pytest.fixture
def images(tmp_path):
  """Writes a folder of 12 BMP images of the same size."""
  write_folder(tmp_path / "made", 12, has_masks=False, suffix=".bmp")
  return tmp_path / "made"


def load(root, **kwargs):
  return datasets.load(f"folder:{root}", "test", **kwargs)


@pytest.fixture
def examples(images):
  return load(images)


@pytest.fixture(scope="module")
def backbone(clip_folder):
  return load_clip(str(clip_folder))


@pytest.fixture
def cache_config(config, tmp_path):
  config.feature_cache.dtype = "float32"
  config.features_dir = str(tmp_path / "caches")
  return config


@pytest.fixture
def open_cache(cache_config, backbone):
  def open_cache(
    examples, config=cache_config, skipped=None, backbone=backbone
  ):
    return features.open_features(
      config,
      examples,
      "test",
      build_model(config, backbone),
      backbone,
      make_mesh(),
      batch_size=8,
      skipped=skipped,
    )

  return open_cache


@pytest.fixture
def fake_tower(monkeypatch):
  """Encodes an image as its first pixels, which needs no compilation."""

  def encode(batch):
    flat = batch["image"].reshape(len(batch["image"]), -1).astype(np.float32)
    return flat[:, :24], flat[:, 24 : 19 * 24].reshape(-1, 2, 9, 24)

  monkeypatch.setattr(features, "_make_encode", lambda *_: encode)


def iterate(examples, num_workers=0, **kwargs):
  options = pipeline.BatchOptions(
    image_size=48,
    patch_size=16,
    batch_size=5,
    num_devices=2,
    num_workers=num_workers,
    shuffle_seed=0,
  )
  return list(pipeline.iterate_batches(examples, options, range(6), **kwargs))


def test_batches_from_the_cache_differ_only_in_the_features(
  images, open_cache, fake_tower, cache_config
):
  """The order, padding, skipped files and other fields are the same."""
  deep, exif = np.full((20, 16), 4095, np.uint16), Image.Exif()
  exif[0x112] = 6
  path = images / "test" / "bad" / "12.tiff"
  Image.fromarray(deep).save(path, exif=exif)
  broken = images / "test" / "good" / "02.bmp"
  broken.write_bytes(broken.read_bytes()[:40])
  examples = load(images)
  with pytest.raises(InputError, match=r"02\.bmp.*its image cannot be read"):
    open_cache(examples)
  skipped, skipped_before = {}, {}
  plain = iterate(examples, skipped=skipped_before)
  for _ in range(2):  # A finished cache reports skipped files too.
    cache = open_cache(examples, skipped=skipped)
    assert skipped == skipped_before and list(skipped) == ["test/good/02.bmp"]
    skipped.clear()
  for num_workers in (0, 1):
    batches = iterate(
      examples, features=cache, skipped={}, num_workers=num_workers
    )
    for batch, other in zip(batches, plain, strict=True):
      assert "image" not in batch
      is_real = batch["padding_mask"]
      pixels = other["image"][is_real].reshape(is_real.sum(), -1)
      np.testing.assert_array_equal(
        batch["image_features"][is_real], pixels[:, :24]
      )
      assert batch["patch_features"].shape == (6, 2, 9, 24)
      assert (batch["image_features"][~is_real] == 1).all()
      for name in other.keys() - {"image"}:
        rows = is_real if name == "size" else slice(None)
        np.testing.assert_array_equal(batch[name][rows], other[name][rows])
  row = cache.find(6)
  assert (row["orientation"], *row["size"]) == (6, 20, 16)
  assert row["notes"].endswith(": 12 bits")
  assert (row["image_features"] == 15).all()
  cache_config.input.bits_per_channel = 12
  other = open_cache(examples, skipped={})
  assert other.folder != cache.folder and not other.find(6)["notes"]
  assert (other.find(6)["image_features"] == 255).all()
  subset = pipeline.Subset(examples, [9, 1])
  options = pipeline.BatchOptions(48, 16, batch_size=2)
  (batch,) = pipeline.iterate_batches(subset, options, range(1), features=cache)
  found = [cache.find(index)["image_features"] for index in subset.indices]
  np.testing.assert_array_equal(batch["image_features"], found)


def test_an_interrupted_fill_resumes(
  examples, open_cache, fake_tower, encoded, monkeypatch
):
  monkeypatch.setattr(feature_cache, "_SHARD_IMAGES", 5)
  real = os.replace

  def replace(source, target):
    if str(target).endswith("000001.npy"):
      raise KeyboardInterrupt  # The file is written but not in place.
    real(source, target)

  with monkeypatch.context() as context:
    context.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
      open_cache(examples)
  num_before = encoded.call_count
  cache = open_cache(examples)
  assert encoded.call_count == num_before + 7 and not cache.missing()
  names = sorted(path.name for path in cache.folder.glob("*.npy"))
  assert names == ["000000.npy", "000001.npy", "000002.npy"]
  shards = [(cache.folder / name).read_bytes() for name in names]
  shutil.rmtree(cache.folder)
  open_cache(examples)
  assert shards == [(cache.folder / name).read_bytes() for name in names]


def change(path, is_touched):
  """Changes the bytes of a file but not its length, and optionally its time."""
  stat = path.stat()
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  time = stat.st_mtime_ns + is_touched
  os.utime(path, ns=(stat.st_atime_ns, time))


def test_changed_files_of_equal_length_get_another_cache(
  images, open_cache, fake_tower, encoded
):
  """A file changes with its time or, with compare_bytes, with its bytes."""
  by_times, by_bytes = (
    open_cache(load(images, by_contents=flag)).folder for flag in (False, True)
  )
  assert by_times != by_bytes and encoded.call_count == 24
  changed = images / "test" / "bad" / "03.bmp"
  change(changed, is_touched=False)
  assert open_cache(load(images)).folder == by_times
  other = open_cache(load(images, by_contents=True))
  assert other.folder != by_bytes and encoded.call_count == 36
  change(changed, is_touched=True)
  assert open_cache(load(images)).folder != by_times
  assert encoded.call_count == 48
  assert open_cache(load(images, by_contents=True)).folder == by_bytes
  assert encoded.call_count == 48


@pytest.mark.parametrize(
  "module, name", ((features, "_acquire"), (pipeline, "read"))
)
def test_an_image_that_changes_while_it_is_read_is_reported(
  module, name, images, examples, open_cache, fake_tower, monkeypatch
):
  real = getattr(module, name)

  def touch_and_call(*args, **kwargs):
    os.utime(images / "test" / "bad" / "03.bmp", (0, 0))
    return real(*args, **kwargs)

  monkeypatch.setattr(module, name, touch_and_call)
  with pytest.raises(InputError, match="03.bmp of .*has changed since"):
    open_cache(examples)


def test_damage_is_detected(
  images, examples, open_cache, fake_tower, monkeypatch
):
  monkeypatch.setattr(feature_cache, "_SHARD_IMAGES", 6)
  cache = open_cache(examples)
  whole = [cache.find(index) for index in range(12)]
  path = cache.folder / "000000.npy"
  good = path.read_bytes()

  def read_all():
    assert not cache.missing()
    for index, values in enumerate(whole):
      for name, array in cache.find(index).items():
        np.testing.assert_array_equal(array, values[name])

  num_noticed = 0
  for place in range(0, len(good), 37):
    damaged = bytearray(good)
    damaged[place] ^= 1
    path.write_bytes(damaged)
    try:
      read_all()
    except InputError as error:
      assert f"{path} are damaged" in str(error) and "Delete" in str(error)
      num_noticed += 1
  # Damage in the padding of the header has no effect.
  assert num_noticed >= (len(good) - 128) // 37
  path.write_bytes(good)
  foreign = open_cache(load(images, by_contents=True)).folder
  for damaged in (
    *(good[: len(good) // 2], good[:100], b""),
    (cache.folder / "000001.npy").read_bytes(),
    (foreign / "000000.npy").read_bytes(),
  ):
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=f"{path} are damaged.*Delete"):
      iterate(examples, features=open_cache(examples))
  path.unlink()
  open_cache(examples)
  read_all()


def test_features_are_read_without_parsing_text(
  examples, open_cache, fake_tower
):
  """CPython 3.11's parser can fail in threads although files are intact."""
  cache = open_cache(examples)

  error = SystemError("AST constructor recursion depth mismatch")
  with mock.patch.object(ast, "parse", side_effect=error):
    assert len(iterate(examples, features=cache)) == 6


def test_a_full_disk_is_reported_before_and_while_writing(
  examples, open_cache, fake_tower, encoded
):
  usage = types.SimpleNamespace(free=1000)
  with mock.patch.object(shutil, "disk_usage", return_value=usage):
    with pytest.raises(InputError, match="need 2.8e-05 GB.* 1e-06 GB free"):
      open_cache(examples)
  assert not encoded.called
  error = OSError(28, "No space left on device")
  with mock.patch.object(np, "save", side_effect=error):
    with pytest.raises(InputError, match="No space left.*config.features_dir"):
      open_cache(examples)


def test_numbers_that_do_not_fit_are_refused(tmp_path):
  cache = feature_cache.FeatureCache(tmp_path, "float16", (3,), (1, 2, 3), 1)
  patches = np.ones((1, 2, 3), np.float32)
  row = dict(path="a.png", orientation=1, size=(4, 4), notes="")
  cache.encode(np.full(3, 65504, np.float32), patches, row)
  for value, message in ((70000, "reach 7e.04, more"), (np.nan, "damaged")):
    with pytest.raises(InputError, match=f"a.png .*{message}"):
      cache.encode(np.full(3, value, np.float32), patches, row)


def test_bfloat16_holds_all_that_a_bfloat16_clip_computes(
  examples, open_cache, cache_config
):
  cache_config.backbone.dtype = "bfloat16"
  exact = open_cache(examples)
  cache_config.feature_cache.dtype = "bfloat16"
  half = open_cache(examples)
  for index in range(12):
    for name in ("image_features", "patch_features"):
      array, stored = (cache.find(index)[name] for cache in (exact, half))
      assert stored.nbytes == array.nbytes // 2
      np.testing.assert_array_equal(array, stored.astype(np.float32))


def test_fields_that_change_the_features_change_the_cache(
  examples, open_cache, cache_config, backbone, monkeypatch
):
  monkeypatch.setattr(features, "_fill", lambda *_: None)

  def num_caches(name, value):
    changed = cache_config.copy_and_resolve_references()
    changed.update_from_flattened_dict({name: value})
    folder = open_cache(examples, changed, backbone=backbone).folder
    return len(list(folder.parent.iterdir()))

  for name, value in {"seed": 1, "backbone.split_over_devices": True}.items():
    assert num_caches(name, value) == 1
  changes = {
    "feature_cache.dtype": "bfloat16",
    "backbone.dtype": "bfloat16",
    "input.bits_per_channel": 12,
    "model.image_size_pixels": 32,
    "model.feature_layers": (3,),
    "model.num_value_layers": 1,
  }
  for number, name in enumerate(changes, start=2):
    assert num_caches(name, changes[name]) == number, name
  monkeypatch.setattr(features, "_VERSION", 0)
  assert num_caches("seed", 0) == number + 1
  backbone = dataclasses.replace(backbone, sha256="0" * 64)
  assert num_caches("seed", 0) == number + 2


def test_one_process_computes_and_the_other_processes_wait(
  examples, open_cache, fake_tower, encoded
):
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    caches = list(pool.map(open_cache, [examples] * 3))
  assert encoded.call_count == 12
  assert not any(cache.missing() for cache in caches)
