"""Batches contain every example once, for any numbers of hosts and workers."""

import multiprocessing
import os

import numpy as np
import pytest
from PIL import Image

from cops_jax.errors import InputError
from cops_jax.inputs import load_examples, pipeline
from cops_jax.inputs.augmentation import make_augmentation
from cops_jax.losses import count_mask_pixels
from cops_jax.runtime.randomness import hash_example
from helpers.images import encode
from helpers.listings import Made


def test_mask_counts_are_row_major():
  mask = np.zeros((4, 6), np.uint8)[:, :4]
  mask[0, 2:] = 1
  mask[3, 0] = 1
  np.testing.assert_array_equal(count_mask_pixels(mask, 2), [0, 2, 1, 0])


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


def iterate(examples, batch_size, *, steps, skipped=None, **options):
  options = pipeline.BatchOptions(8, 4, batch_size, **options)
  return list(
    pipeline.iterate_batches(examples, options, steps, skipped=skipped)
  )


def real(batches):
  """Returns the positions of the examples in the order of the batches."""
  return [
    int(path.removesuffix(".png"))
    for batch in batches
    for path in batch["path"][batch["padding_mask"]]
  ]


@pytest.mark.parametrize("batch_size", (1, 3, 7, 16))
@pytest.mark.parametrize("process_count, devices", ((1, 1), (1, 4), (3, 2)))
@pytest.mark.parametrize("shuffle_seed", (None, 1))
def test_every_example_is_in_one_batch(
  batch_size, process_count, devices, shuffle_seed
):
  """This holds for any batch size and number of hosts and devices."""
  examples = make_examples(11)
  options = dict(
    steps=range(pipeline.num_batches(11, batch_size)),
    shuffle_seed=shuffle_seed,
    num_devices=process_count * devices,
  )
  parts = [
    iterate(
      examples,
      batch_size,
      process_index=index,
      process_count=process_count,
      **options,
    )
    for index in range(process_count)
  ]
  whole = iterate(examples, batch_size, **options)
  order = real(whole)
  assert sorted(order) == list(range(11))
  assert (order == sorted(order)) == (shuffle_seed is None)
  for batch, *hosts in zip(whole, *parts, strict=True):
    assert len(batch["path"]) % (process_count * devices) == 0
    for name, array in batch.items():
      rows = [host[name] for host in hosts]
      assert len({row.shape for row in rows}) == 1
      np.testing.assert_array_equal(array, np.concatenate(rows))
    is_real = batch["padding_mask"]
    np.testing.assert_array_equal(
      batch["image"][is_real, 0, 0, 0],
      [len(category) for category in batch["category"][is_real]],
    )
    assert not batch["image"][~is_real].any()
    assert (batch["path"][~is_real] == "").all()
    want = np.where(batch["label"] == 1, 16, 0)[:, None] * np.ones(4)
    np.testing.assert_array_equal(batch["mask_counts"], want)


def test_every_epoch_has_its_own_order_and_can_start_at_any_step():
  examples = make_examples(10)
  batches = iterate(examples, 4, steps=range(6), shuffle_seed=1)
  epochs = [real(batches[:3]), real(batches[3:])]
  assert [len(batch["path"]) for batch in batches] == [4] * 6
  assert [batch["padding_mask"].sum() for batch in batches] == [4, 4, 2] * 2
  assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
  assert epochs[0] != epochs[1]
  other = iterate(examples, 4, steps=range(3), shuffle_seed=2)
  assert real(other) != epochs[0]
  rest = iterate(examples, 4, steps=range(4, 6), shuffle_seed=1)
  assert real(rest) == real(batches[4:])


def test_worker_processes_load_the_same_batches():
  """The augmentation needs images of other rows."""
  examples = Made(make_examples(10))
  examples[7]["image"] = b"no image"
  kwargs = dict(
    steps=range(1, 6),
    shuffle_seed=3,
    full_masks=True,
    augmentation=make_augmentation("class_agnostic", 3, examples),
  )
  skipped, skipped_before = {}, {}
  for batch, other in zip(
    iterate(examples, 4, skipped=skipped, num_workers=2, **kwargs),
    iterate(examples, 4, skipped=skipped_before, **kwargs),
    strict=True,
  ):
    assert batch.keys() == other.keys()
    for name, array in batch.items():
      np.testing.assert_array_equal(array, other[name])
  assert skipped == skipped_before and list(skipped) == ["7.png"]


@pytest.mark.parametrize("field", ("image", "mask", "missing"))
def test_unreadable_files_are_named_or_skipped(field, tmp_path, caplog):
  examples, reason = make_examples(4), ""
  if field == "missing":
    field, reason = "image", "No such file"
    examples[1]["image"] = tmp_path / "deleted.png"
  else:
    examples[1][field] = examples[1][field][:50]
  with pytest.raises(InputError) as error:
    iterate(examples, 3, steps=range(2))
  message = f"its {field} cannot be read: "
  assert str(error.value).startswith(f"1.png of data set 'made': {message}")
  assert reason in str(error.value)
  assert "unreadable_files=skip" in str(error.value)
  skipped = {}
  batches = iterate(examples, 3, steps=range(4), skipped=skipped)
  assert real(batches) == [0, 2, 3] * 2
  assert list(skipped) == ["1.png"] and skipped["1.png"].startswith(message)
  # The file is reported once, although both epochs read it.
  assert caplog.text.count("skipping 1.png") == 1
  assert not batches[0]["image"][1].any()


class DamagedInWorkers(list):
  """Examples of which worker processes cannot read the first."""

  def __getitem__(self, index):
    if index == 0 and multiprocessing.parent_process():
      raise InputError("data set 'made' is damaged at record 0")
    return super().__getitem__(index)


def test_errors_in_workers_are_raised_unchanged():
  examples = DamagedInWorkers(make_examples(3))
  assert real(iterate(examples, 3, steps=range(1))) == [0, 1, 2]
  with pytest.raises(InputError, match="^data set 'made' is damaged at record"):
    iterate(examples, 3, steps=range(1), num_workers=1)


def test_too_many_worker_processes_are_refused(config):
  config.input.num_workers = 4 * os.cpu_count() + 1
  with pytest.raises(InputError, match="must be at most .* machine's cores$"):
    load_examples(config, "demo_auxiliary", "test")


def test_example_ids_are_stable():
  """Published trainings use them as keys of the noise: never change them."""
  example = {"dataset": "visa", "id": "candle/000", "image": b""}
  assert hash_example(example) == 2815927013
