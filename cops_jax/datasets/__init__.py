"""Opens data sets by name.

Importing this package registers the published data sets and the demo's in TFDS.
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
      f"unknown data set {name!r}{suggest(name, NAMES)}; the known data sets"
      f" are {', '.join(NAMES)}. For your own images, use folder:PATH or"
      " meta_json:PATH"
    )


def load(
  name: str,
  split: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  by_contents: bool = False,
) -> PreparedExamples | custom.FileExamples:
  """Opens a split of a data set.

  Args:
    name: a registered name from `NAMES`, which is prepared on first use;
      "folder:PATH" for folders of normal and anomalous images; or
      "meta_json:PATH" for a folder with a meta.json. The last two are read from
      their files every time.
    split: "test", which contains anomalies, or "train" if the data set has it.
    data_dir: folder of prepared data sets; None for TFDS's default.
    manual_dir: folder of the original files, which contains a folder NAME for
      each data set; None for downloads/manual in data_dir.
    by_contents: if True, the fingerprint of a folder or meta.json is computed
      from the bytes of all files instead of their sizes and times.

  Returns:
    A sequence of undecoded examples. Each is a dict of image and mask (bytes or
    path of a file; several masks are a list of paths), has_mask, label (0
    normal, 1 anomaly), category, anomaly_kind, dataset, path and id. The
    sequence has a `name` for examples and results; an `identity` (version or
    folder), which distinguishes data sets of the same name; `notes` on skipped
    files and guesses; `is_published`, True for a prepared published data set;
    and `fingerprint()`, a SHA-256 that changes with the contents.

  Raises:
    InputError: if the name or split is unknown, the split is empty, or the data
      set is not prepared and its original files are missing or not as expected.
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
