"""Probabilities, images and pixels of mosaics and crops."""

import collections
import io
import logging

import numpy as np
import pytest
from PIL import Image

from cops_jax import datasets
from cops_jax.errors import InputError
from cops_jax.inputs import pipeline
from cops_jax.inputs.augmentation import make_augmentation
from cops_jax.training import setup
from cops_jax.weights.clip import load_clip
from cops_jax.weights.model import build_model
from helpers.images import encode, write_folder
from helpers.listings import Made

SIDE = 40


def make_examples(number=12):
  """Returns dark noise of several sizes and two categories, anomalies white.

  One anomalous image and its mask are stored rotated.
  """
  rng, examples = np.random.default_rng(0), Made()
  for index in range(number):
    label, options = index // 2 % 2, {}
    height, width = rng.integers(50, 130, 2)
    pixels = rng.integers(0, 50, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    if label:
      top, left = rng.integers(0, (height - 30, width - 30))
      mask[top : top + 30, left : left + 30] = 255
      pixels[mask > 0] = 255
    if index == 3:
      options["exif"] = Image.Exif()
      options["exif"][0x112] = 6
    examples.append(
      {
        "image": encode(pixels, **options),
        "mask": encode(mask),
        "has_mask": True,
        "label": label,
        "category": "ab"[index % 2],
        "dataset": "made",
        "path": f"{index}.png",
        "id": str(index),
      }
    )
  return examples


def iterate(examples, steps, kind="class_aware", skipped=None, **options):
  options = pipeline.BatchOptions(
    SIDE,
    8,
    batch_size=5,
    shuffle_seed=0,
    full_masks=True,
    augmentation=make_augmentation(kind, 0, examples),
    **options,
  )
  return list(
    pipeline.iterate_batches(examples, options, steps, skipped=skipped)
  )


@pytest.mark.parametrize("kind", ("class_aware", "class_agnostic"))
def test_changes_are_drawn_with_their_probabilities(kind):
  examples = Made(
    {
      "image": b"",
      "category": "abc"[place % 3],
      "label": int(place % 4 == 0),
      "dataset": "made",
      "id": str(place),
    }
    for place in range(60)
  )
  augmentation = make_augmentation(kind, 7, examples)
  number, counts, slots, drawn = 3000, collections.Counter(), [], []
  for index in range(number):
    place, step = index % 60, index
    change = augmentation.draw(examples[place], place, step)
    if change is None:
      counts["whole"] += 1
      continue
    counts["mosaic" if change.places else "crop", change.number] += 1
    if change.places:
      assert len(change.places) == change.number**2
      slots.append(change.places.index(place) / change.number**2)
      others = collections.Counter(change.places) - collections.Counter([place])
      drawn += [(examples[place], examples[other]) for other in others]
  assert counts.pop("whole") == pytest.approx(number / 2, rel=0.08)
  assert counts.keys() == {(k, n) for k in ("mosaic", "crop") for n in (2, 3)}
  for share in counts.values():
    assert share == pytest.approx(number / 8, rel=0.2)
  assert 0.35 < np.mean(slots) < 0.45  # Slots are 0, 1/4, ... or 0, 1/9, ...
  found = {
    label: {
      (other["category"] == example["category"], other["label"])
      for example, other in drawn
      if example["label"] == label
    }
    for label in (0, 1)
  }
  of_category = (True,) if kind == "class_aware" else (True, False)
  assert found[0] == {(same, 0) for same in of_category}
  assert found[1] == {(same, state) for same in of_category for state in (0, 1)}
  share = np.mean([other["label"] for one, other in drawn if one["label"]])
  assert share == pytest.approx(1 / 4, abs=0.05)  # Drawn evenly from all.


def cells(size, number):
  across, down = (
    [round(k * length / number) for k in range(number + 1)] for length in size
  )
  return [
    (across[j], down[i], across[j + 1], down[i + 1])
    for i in range(number)
    for j in range(number)
  ]


def upright(example):
  """Returns an image and its mask as upright PIL images."""
  image, mask = (
    Image.open(io.BytesIO(example[name])) for name in ("image", "mask")
  )
  if image.getexif().get(0x112) == 6:
    image, mask = image.rotate(-90, expand=True), mask.rotate(-90, expand=True)
  return image, mask


def resize(pair, size):
  image, mask = pair
  mask = np.asarray(mask.resize(size, Image.Resampling.BILINEAR))
  return np.asarray(image.resize(size, Image.Resampling.BICUBIC)), mask > 127.5


def variants(example, change, examples):
  """Returns all possible results of a change."""
  whole = upright(example)
  if change is None:
    return [resize(whole, (SIDE, SIDE))]
  if not change.places:
    boxes = cells(whole[0].size, change.number)
    parts = [[part.crop(box) for part in whole] for box in boxes]
    return [
      resize(pair, (SIDE, SIDE))
      for pair in parts
      if not example["label"] or np.any(pair[1])
    ]
  pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
  mask = np.zeros((SIDE, SIDE), bool)
  boxes = cells((SIDE, SIDE), change.number)
  for place, (left, top, right, bottom) in zip(
    change.places, boxes, strict=True
  ):
    tile = resize(upright(examples[place]), (right - left, bottom - top))
    pixels[top:bottom, left:right], mask[top:bottom, left:right] = tile
  return [(pixels, mask)]


def test_images_and_masks_have_the_expected_pixels():
  """One of the images is stored rotated."""
  examples, kinds = make_examples(), collections.Counter()
  augmentation = make_augmentation("class_aware", 0, examples)
  plain = iterate(examples, range(24), "none")
  for step, batch in enumerate(iterate(examples, range(24))):
    for name in batch.keys() - {"image", "mask"}:
      np.testing.assert_array_equal(batch[name], plain[step][name])
    for row in np.flatnonzero(batch["padding_mask"]):
      place = int(batch["index"][row])
      change = augmentation.draw(examples[place], place, step)
      image, mask = batch["image"][row], batch["mask"][row]
      expected = variants(examples[place], change, examples)
      assert any(
        (image == pixels).all() and (mask == wanted).all()
        for pixels, wanted in expected
      )
      assert mask.any() == examples[place]["label"]
      places = change.places if change else ()
      kinds[change and change.number, 3 in places, len(expected) > 1] += 1
  assert {(2, True, False), (3, True, False), (2, False, True)} <= kinds.keys()


def test_images_without_suitable_cells_are_not_cropped():
  """These are anomalous images with an empty mask, and tiny images."""
  examples = make_examples(4)
  examples[2]["mask"] = encode(np.zeros((9, 9), np.uint8))
  examples[0]["image"] = encode(np.full((1, 2, 3), 9, np.uint8))
  examples[1]["image"] = encode(np.full((2, 2, 3), 8, np.uint8))
  augmentation = make_augmentation("class_aware", 0, examples)
  num_crops = 0
  plain = iterate(examples, range(40), "none")
  for step, batch in enumerate(iterate(examples, range(40))):
    for row, place in enumerate(batch["index"][:4].tolist()):
      change = augmentation.draw(examples[place], place, step)
      if place in (0, 1, 2) and change and not change.places:
        num_crops += 1
        for name in ("image", "mask"):
          np.testing.assert_array_equal(
            batch[name][row], plain[step][name][row]
          )
  assert num_crops > 20


def test_parts_of_batches_and_resumed_batches_are_the_same():
  examples = make_examples()
  options = {"num_devices": 2, "example_ids": True}
  whole = iterate(examples, range(6), **options)
  rest = iterate(examples, range(4, 6), **options)
  halves = [
    iterate(examples, range(6), process_index=index, process_count=2, **options)
    for index in range(2)
  ]
  assert any((whole[0]["image"] != rest[0]["image"]).ravel())
  for step, batch in enumerate(whole):
    for name, array in batch.items():
      parts = [half[step][name] for half in halves]
      np.testing.assert_array_equal(array, np.concatenate(parts))
      if step >= 4:
        np.testing.assert_array_equal(array, rest[step - 4][name])


def test_an_unreadable_tile_is_reported_or_replaced():
  examples = make_examples(12)
  examples[8]["image"] = examples[8]["image"][:90]  # Category a, normal.
  augmentation = make_augmentation("class_aware", 0, examples)
  skipped, batches = set(), iterate(examples, range(30), skipped={})
  for step, batch in enumerate(batches):
    for row, place in enumerate(batch["index"][:5].tolist()):
      change = augmentation.draw(examples[place], place, step)
      if batch["padding_mask"][row] and change and 8 in change.places:
        others = [place if k == 8 else k for k in change.places]
        change.places[:] = others
        ((pixels, mask),) = variants(examples[place], change, examples)
        np.testing.assert_array_equal(batch["image"][row], pixels)
        np.testing.assert_array_equal(batch["mask"][row], mask)
        skipped.add(step)
  assert len(skipped) > 3
  step = next(step for step in skipped if 8 not in batches[step]["index"])
  with pytest.raises(InputError, match="^8.png of data set 'made': its image"):
    iterate(examples, range(step, step + 1))
  found = {}
  iterate(examples, range(step, step + 1), skipped=found)
  assert list(found) == ["8.png"]


def test_training_on_augmented_images_does_not_cache_features(
  config, tmp_path, caplog
):
  caplog.set_level(logging.INFO, "cops_jax")
  config.train.augmentation = "class_agnostic"
  config.feature_cache.dtype = "float32"
  config.features_dir = str(tmp_path / "features")
  examples = datasets.load(write_folder(tmp_path / "nuts", 8), "test")
  backbone = load_clip(config.backbone.weights)
  batches, errors = setup.open_batches(
    *(config, tmp_path, examples, backbone),
    build_model(config, backbone),
    range(1),
  )
  assert "image" in next(batches) and not errors
  assert not (tmp_path / "features").exists()
  assert "the feature cache is used in evaluations only" in caplog.text
