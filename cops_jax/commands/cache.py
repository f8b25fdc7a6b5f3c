"""Shows and removes the data stored on this computer.

  cops cache
  cops cache remove features
  cops cache remove visa openai/clip-vit-large-patch14-336

The data are prepared data sets, vision features, compiled programs, copies of
files in buckets, and downloads. All are created again when needed. Data sets
need their original files for this.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from cops_jax.commands import command_line, make_parser
from cops_jax.errors import UsageError, suggest
from cops_jax.files import delete, find_files
from cops_jax.paths import require_local, to_path
from cops_jax.tables import align

_OWN = {
  "compiled": "compiled programs",
  "copies": "copies of files in buckets",
  "prompts": "published prompts",
}


class _Kept(NamedTuple):
  what: str
  size: int
  folder: pathlib.Path


def find(data_dir: str | None = None) -> dict[str, _Kept]:
  """Returns a description, the bytes and the folder of stored data, by name."""
  import huggingface_hub
  import pooch
  import tensorflow_datasets as tfds

  from cops_jax.datasets import NAMES

  if data_dir:
    require_local(data_dir, "the folder of prepared data, --data_dir,")
  data = to_path(data_dir or tfds.core.constants.DATA_DIR)
  own = pathlib.Path(pooch.os_cache("cops_jax"))
  folders = {name: (data / name, "prepared data set") for name in NAMES}
  folders["features"] = data / "features", "vision features"
  for folder in sorted(own.glob("*/")):
    folders[folder.name] = folder, _OWN.get(folder.name, "downloads")
  kept = {
    name: _Kept(what, sum(find_files(folder).values()), folder)
    for name, (folder, what) in folders.items()
    if folder.is_dir()
  }
  try:
    repositories = huggingface_hub.scan_cache_dir().repos
  except huggingface_hub.CacheNotFound:
    repositories = ()
  for repository in sorted(repositories, key=lambda found: found.repo_id):
    kept[repository.repo_id] = _Kept(
      "from the Hugging Face hub", repository.size_on_disk, repository.repo_path
    )
  return kept


def _describe(kept):
  rows = [("name", "what", "where", "MB")]
  for name, (what, size, folder) in kept.items():
    rows.append((name, what, str(folder), f"{size / 1e6:,.1f}"))
  total = sum(one.size for one in kept.values())
  rows.append(("total", "", "", f"{total / 1e6:,.1f}"))
  return "\n".join(align(rows, num_text_columns=3))


def _confirm():
  try:
    return input("Remove these? [y/N] ").strip().lower() in ("y", "yes")
  except EOFError:
    return False


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("cache", __doc__)
  text = "include the data in this folder of prepared data sets; default:"
  text += " ~/tensorflow_datasets"
  parser.add_argument("--data_dir", help=text)
  commands = parser.add_subparsers(dest="command")
  remove = commands.add_parser("remove", help="remove the data of these names")
  remove.add_argument(
    "names", nargs="+", metavar="NAME", help="names that `cops cache` shows"
  )
  remove.add_argument(
    "--yes", action="store_true", help="remove without asking"
  )
  remove.add_argument("--data_dir", help=text, default=argparse.SUPPRESS)
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  options = _parser().parse_args(arguments)
  kept = find(options.data_dir)
  if options.command is None:
    print(_describe(kept))
    return
  for name in options.names:
    if name not in kept:
      raise UsageError(
        f"no stored data is named {name!r}{suggest(name, kept)}. Run `cops"
        " cache` to list the names."
      )
  chosen = {name: kept[name] for name in options.names}
  print(_describe(chosen))
  if not options.yes and not _confirm():
    sys.exit("nothing was removed")
  for one in chosen.values():
    delete(one.folder)
