"""Data sets by name: `load` gives their examples.

Importing this registers the published data sets, and the demo's, with TFDS.
"""

from __future__ import annotations

from cops_jax.datasets import custom, preparation
from cops_jax.datasets.builders import BUILDERS
from cops_jax.datasets.further import FURTHER
from cops_jax.datasets.preparation import why_unprepared
from cops_jax.datasets.prepared import PreparedExamples
from cops_jax.datasets.specifications import SPECIFICATIONS
from cops_jax.errors import InputError, UsageError, suggest

__all__ = [
  "FURTHER",
  "NAMES",
  "SPECIFICATIONS",
  "load",
  "require_known",
  "why_unprepared",
]

NAMES = tuple(BUILDERS)


def require_known(name: str) -> None:
  """Raises UsageError if no data set has that name."""
  if name not in NAMES:
    raise UsageError(
      f"unknown data set {name!r}{suggest(name, NAMES)}; known are"
      f" {', '.join(NAMES)}, and for your own images folder:PATH and"
      " meta_json:PATH"
    )


def load(
  name: str,
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  by_contents: bool = False,
) -> PreparedExamples | custom.FileExamples:
  """Opens a data set's split.

  Args:
    name: one of `NAMES`, prepared the first time; or "folder:PATH", folders of
      normal and anomalous images, or "meta_json:PATH", a folder with a
      meta.json, read from their files every time.
    split: "test", which has anomalies, or "train" where there is one.
    data_dir: where TFDS keeps prepared data; None for TFDS's default.
    manual_dir: where the original files are, a folder of its name for each
      data set; None for downloads/manual in data_dir.
    by_contents: whether the fingerprint of files that are read every time is of
      their bytes, all of which are then read, instead of sizes and times.

  Returns:
    Undecoded examples, dicts of image and mask (a file's bytes or its path;
    several masks are a list of paths), has_mask, label (0 normal, 1 anomaly),
    category, anomaly_kind, dataset, path and id. The sequence's `name` is the
    data set's, in examples and results; its `identity` tells it from others of
    that name: a version or a folder; `fingerprint()` is a SHA-256 that changes
    with all that it holds; `notes` are what was left out or guessed when the
    files were listed; `is_published` says whether it is a prepared one of the
    published sets.

  Raises:
    InputError: unknown name or split, no examples in it, or original files
      that are needed and missing or not as expected.
  """
  location = custom.locate(name)
  if location:
    examples = custom.load_custom(*location, split, by_contents)
  else:
    require_known(name)
    examples = preparation.load_prepared(name, split, data_dir, manual_dir)
  if not len(examples):
    raise InputError(f"split {split!r} of data set {name!r} has no images")
  return examples
