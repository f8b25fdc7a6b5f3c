"""Checks all files of a data set and counts them."""

from __future__ import annotations

import collections
import concurrent.futures
import os

from cops_jax.datasets import custom, preparation
from cops_jax.datasets.further import PUBLISHED, count_differences
from cops_jax.datasets.prepared import read_contents
from cops_jax.datasets.schema import file_example
from cops_jax.errors import InputError
from cops_jax.files import digest_file
from cops_jax.images import read
from cops_jax.images.masks import RECIPES_SIDE, example_mask
from cops_jax.progress import Progress
from cops_jax.tables import align, count_notes, shorten_list


class Check:
  """The result of a check; its text is a report.

  Attributes:
    name: name of the data set.
    source: description of the checked files.
    counts: numbers by (category, split, "normal" or "anomalous" or "masks").
    formats: numbers of image files by format and mode.
    problems: faults that must be fixed before the data set can be used.
    warnings: differences from the published data set.
    notes: skipped files, guesses, and unusual facts that can be correct.
  """

  def __init__(self, name: str, source: str):
    self.name, self.source = name, source
    self.counts: collections.Counter = collections.Counter()
    self.formats: collections.Counter = collections.Counter()
    self.problems: list[str] = []
    self.warnings: list[str] = []
    self.notes: list[str] = []

  def __str__(self) -> str:
    lines = [f"{self.name}: {self.source}"]
    if self.counts:
      lines += ["", *self._table(), ""]
      formats = (f"{n} {name}" for name, n in self.formats.most_common())
      lines.append(f"image files: {', '.join(formats)}")
    for title in ("problems", "warnings", "notes"):
      found = getattr(self, title)
      lines.append(f"{title}: {len(found) or 'none'}")
      lines += [f"  {line}" for line in shorten_list(found)]
    return "\n".join(lines)

  def _table(self):
    kinds = ("normal", "anomalous", "masks")
    places = sorted({(category, split) for category, split, _ in self.counts})
    rows = [("category", "split", *kinds)]
    for category, split in places:
      numbers = (self.counts[category, split, kind] for kind in kinds)
      rows.append((category, split, *map(str, numbers)))
    for split in sorted({split for _, split in places}):
      numbers = (self.total(split, kind) for kind in kinds)
      rows.append(("total", split, *map(str, numbers)))
    return align(rows, num_text_columns=2)

  def total(self, split: str, kind: str) -> int:
    """Returns the number of images or masks of a kind in a split."""
    return sum(
      number
      for (_, *place), number in self.counts.items()
      if place == [split, kind]
    )


def check(
  name: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  is_deep: bool = False,
) -> Check:
  """Checks the original files of a data set or, without them, its copy.

  Args:
    name, data_dir, manual_dir: the arguments of `cops_jax.datasets.load`.
    is_deep: if True, also checks the SHA-256 of the prepared copy's files and
      compares its images with the original files.

  Raises:
    InputError: if the path of custom data is not a folder, or the prepared data
      set is damaged.
  """
  location = custom.locate(name)
  if location:
    reader, root = location
    listing = custom.read_listing(reader, root)
    name = custom.name_of(*location)
  else:
    row = PUBLISHED.get(name)
    builder = preparation.make_builder(name, data_dir)
    root = row and builder.find_original_files(manual_dir)
    listing = root and row.read(root, row.categories)
  if listing:
    root = listing.root or root
    result = Check(name, f"original files in {root}")
    result.problems += listing.problems
    result.notes += listing.notes

    def load(index):
      image = listing.images[index]
      return image.split, file_example(image, root, name)

    _inspect_all(result, load, len(listing.images))
  elif builder.data_path.exists():
    result = Check(name, f"prepared copy in {builder.data_dir}")
    for split in sorted(builder.info.splits):
      examples = preparation.load_prepared(name, split, data_dir, manual_dir)
      _inspect_all(
        result,
        lambda index, split=split, examples=examples: (split, examples[index]),
        len(examples),
      )
  else:
    result = Check(name, "neither original files nor a prepared copy")
    result.problems.append(
      builder.MANUAL_DOWNLOAD_INSTRUCTIONS
      or f"prepare the data set first: cops datasets prepare {name}"
    )
    return result
  anomalous = result.total("test", "anomalous")
  number = anomalous + result.total("test", "normal")
  result.warnings += count_differences(name, number, anomalous)
  if is_deep and not location and builder.data_path.exists():
    images = listing.images if listing else ()
    _compare_bytes(result, builder, root, images, data_dir, manual_dir)
  return result


def _compare_bytes(result, builder, root, images, data_dir, manual_dir):
  """Adds damage of the prepared copy and changes of the original files."""
  try:
    read_contents(builder, is_deep=True)
  except InputError as error:
    result.problems.append(str(error))
    return
  originals = {
    file_example(image, root, builder.name)["id"]: image.image
    for image in images
  }
  changed = [
    row["id"]
    for split in (builder.info.splits if originals else ())
    for row in preparation.load_prepared(
      builder.name, split, data_dir, manual_dir
    )
    if digest_file(originals.pop(row["id"], b"")) != digest_file(row["image"])
  ]
  if changed := [*changed, *originals]:
    result.warnings.append(
      f"images in {root} that differ from the prepared copy: {len(changed)},"
      f" such as {changed[0]}"
    )


def _inspect_all(result, load, number):
  """Reads examples in parallel threads; adds their counts and faults.

  `load` returns the split and the example at a position.
  """
  progress, notes = Progress(number, "images"), {}
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    found = pool.map(lambda index: _inspect(*load(index)), range(number))
    for index, (counts, format_, problems, path, lines) in enumerate(found):
      result.counts.update(counts)
      result.formats.update([format_])
      result.problems += problems
      notes[path] = "\n".join(lines)
      progress.update(index + 1, f"checking {result.name}")
  result.notes += count_notes(notes)


def _inspect(split, example):
  """Returns the counts, format, problems, path and notes of an example."""
  path, place = example["path"], (example["category"], split)
  counts = [(*place, "anomalous" if example["label"] else "normal")]
  if example["label"] and example["has_mask"]:
    counts.append((*place, "masks"))
  problems, format_, notes = [], "unreadable", ()
  form = 1, (1, 1)  # Used to read the mask if the image cannot be read.
  try:
    image = read(example["image"], name="its image")
    form, format_ = (image.orientation, image.size), image.stored_as
    notes = image.notes
  except InputError as error:
    problems.append(f"{path}: {error}")
  try:
    notes += example_mask(example, *form, {}).fit(RECIPES_SIDE).notes
  except InputError as error:
    problems.append(f"{path}: {error}")
  return counts, format_, problems, path, () if problems else notes
