"""Decoding bit for bit, and every example exactly once."""

import io

import numpy as np
import pytest
from PIL import Image

from cops_jax import input_pipeline
from cops_jax.errors import InputError


def encode(image, format="PNG"):
  file = io.BytesIO()
  image.save(file, format)
  return file.getvalue()


def noise_image(mode, size=(23, 17)):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
  return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ("RGB", "L", "RGBA", "P", "1"))
def test_images_are_resized_in_their_own_mode(mode):
  data = encode(noise_image(mode))
  actual = input_pipeline.decode_image(data, 16)
  image = Image.open(io.BytesIO(data))
  assert image.mode == mode
  want = image.resize((16, 16), Image.Resampling.BICUBIC).convert("RGB")
  np.testing.assert_array_equal(actual, np.asarray(want))


def test_masks_are_binary_before_and_after_resizing():
  values = np.zeros((20, 30), np.uint8)
  values[5:12, 8:20] = 1  # As dark as a mask can be.
  actual = input_pipeline.decode_mask(encode(Image.fromarray(values)), 16)
  full = Image.fromarray(values * 255).resize(
    (16, 16), Image.Resampling.BILINEAR
  )
  np.testing.assert_array_equal(actual, np.asarray(full) >= 128)
  assert 0 < actual.sum() < actual.size


def test_mask_counts_are_row_major():
  mask = np.zeros((4, 6), np.uint8)[:, :4]
  mask[0, 2:] = 1
  mask[3, 0] = 1
  np.testing.assert_array_equal(
    input_pipeline.count_mask_pixels(mask, 2), [0, 2, 1, 0]
  )


def make_examples(number):
  return [
    {
      "image": encode(Image.new("RGB", (8, 8), (index, 0, 0))),
      "mask": encode(Image.new("L", (8, 8), 255 * (index % 2))),
      "has_mask": True,
      "label": index % 2,
      "category": "x" * index,
      "dataset": "made",
      "path": f"{index}.png",
      "id": str(index),
    }
    for index in range(number)
  ]


def iterate(examples, batch_size, **kwargs):
  return list(
    input_pipeline.iterate_batches(
      examples, image_size=8, patch_size=4, batch_size=batch_size, **kwargs
    )
  )


def real(batches):
  """The examples' positions in the order of the batches."""
  return [
    int(path.removesuffix(".png"))
    for batch in batches
    for path in batch["path"][batch["padding_mask"]]
  ]


@pytest.mark.parametrize("batch_size", (1, 3, 7, 16))
@pytest.mark.parametrize("num_devices", (1, 4))
def test_every_example_once(batch_size, num_devices):
  examples = make_examples(7)
  steps = range(input_pipeline.num_batches(7, batch_size))
  batches = iterate(examples, batch_size, steps=steps, num_devices=num_devices)
  assert real(batches) == list(range(7))
  for batch in batches:
    assert len(batch["path"]) % num_devices == 0
    is_real = batch["padding_mask"]
    np.testing.assert_array_equal(
      batch["image"][is_real, 0, 0, 0],
      [len(category) for category in batch["category"][is_real]],
    )
    assert not batch["image"][~is_real].any()
    assert (batch["path"][~is_real] == "").all()
    want = np.where(batch["label"] == 1, 16, 0)[:, None] * np.ones(4)
    np.testing.assert_array_equal(batch["mask_counts"], want)


def test_epochs_are_shuffled_anew_and_whole():
  examples = make_examples(10)
  batches = iterate(examples, 4, steps=range(6), shuffle_seed=1)
  epochs = [real(batches[:3]), real(batches[3:])]
  assert [len(batch["path"]) for batch in batches] == [4] * 6
  assert [batch["padding_mask"].sum() for batch in batches] == [4, 4, 2] * 2
  assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
  assert epochs[0] != epochs[1]
  other = iterate(examples, 4, steps=range(3), shuffle_seed=2)
  assert real(other) != epochs[0]


def test_starting_later_gives_the_same_batches():
  examples = make_examples(10)
  whole = iterate(examples, 4, steps=range(7), shuffle_seed=1)
  rest = iterate(examples, 4, steps=range(5, 7), shuffle_seed=1)
  assert real(rest) == real(whole[5:])


def test_hosts_share_the_global_batches():
  examples = make_examples(10)
  kwargs = dict(steps=range(3), shuffle_seed=1, num_devices=2)
  whole = iterate(examples, 4, **kwargs)
  parts = [
    iterate(examples, 4, process_index=host, process_count=2, **kwargs)
    for host in range(2)
  ]
  for batch, *halves in zip(whole, *parts, strict=True):
    for name, array in batch.items():
      np.testing.assert_array_equal(
        array, np.concatenate([half[name] for half in halves])
      )


@pytest.mark.parametrize("field", ("image", "mask"))
def test_unreadable_files_are_named(field):
  examples = make_examples(3)
  examples[1][field] = examples[1][field][:20]
  with pytest.raises(InputError, match=f"{field} of 1.png in data set 'made'"):
    iterate(examples, 3, steps=range(1))


def test_example_ids_are_stable():
  """They key the noise of published results: never change them."""
  actual = input_pipeline.hash_example_id("visa", "candle/000")
  assert actual == 2815927013
  assert actual != input_pipeline.hash_example_id("btad", "candle/000")
