"""Lists, checks and prepares data sets.

cops datasets list
cops datasets check visa --manual_dir=DIR
cops datasets prepare visa mvtec_ad --manual_dir=DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cops_jax.commands import command_line, make_parser
from cops_jax.errors import InputError
from cops_jax.progress import show_messages
from cops_jax.tables import align, shorten_list


def _state(name, options):
  from cops_jax.datasets import preparation

  builder = preparation.make_builder(name, options.data_dir)
  if builder.data_path.exists():
    return "prepared"
  if builder.find_original_files(options.manual_dir):
    return "original files found"
  if builder.specification.url:
    return "can be downloaded"
  return "no original files"


_COPIES = """
The polyp sets (cvc_colondb, cvc_clinicdb, kvasir, endo) as CoPS's authors use
them: https://doi.org/10.6084/m9.figshare.21221579. The README of their code has
Google Drive links to their copies of the other data sets."""


def _list(options):
  from cops_jax.datasets import FURTHER, SPECIFICATIONS

  lines = [("name", "state", "test images", "licence", "where to get it")]
  for name, row in (SPECIFICATIONS | FURTHER).items():
    size = row.size or str(row.num_test_images)
    source = f"pip install {row.package}" if row.package else row.homepage
    cells = (size, row.licence, source)
    lines.append((name, _state(name, options), *cells))
  lines = align(lines, num_text_columns=len(lines[0]))
  lines.insert(
    -len(FURTHER), "\nFurther data sets, which are not part of the paper:"
  )
  print("\n".join(lines))
  print(_COPIES)
  return 0


def _check(options):
  from cops_jax.datasets import checking

  is_sound = True
  for name in options.names:
    result = checking.check(
      name, options.data_dir, options.manual_dir, options.deep
    )
    print(result, end="\n\n")
    is_sound &= not result.problems
  return 0 if is_sound else 1


def _prepare(options):
  from cops_jax.datasets import SPECIFICATIONS, preparation
  from cops_jax.datasets.prepared import read_contents

  names = options.names
  if options.all:
    for name in SPECIFICATIONS:
      if _state(name, options) == "no original files":
        print(f"{name}: skipped; no original files, see `cops datasets list`")
      else:
        names.append(name)
  rows, notes = [("name", "train images", "test images")], []
  errors = []
  for name in names:
    try:
      builder = preparation.prepare(name, options.data_dir, options.manual_dir)
    except InputError as error:
      errors.append(f"error: {error}")
      continue
    splits = builder.info.splits
    counts = (
      str(splits[split].num_examples) if split in splits else "-"
      for split in ("train", "test")
    )
    rows.append((name, *counts))
    found = read_contents(builder)["notes"]
    notes += (f"{name}: {note}" for note in shorten_list(found))
  print("\n".join([*align(rows, num_text_columns=1), *notes]))
  if errors:
    sys.exit("\n".join(errors))
  return 0


def _parser():
  parser = make_parser("datasets", __doc__)
  directories = argparse.ArgumentParser(add_help=False)
  directories.add_argument(
    "--data_dir",
    help="use this folder for prepared data sets; default:"
    " ~/tensorflow_datasets",
  )
  directories.add_argument(
    "--manual_dir",
    help="read original files from this folder, which has a subfolder named"
    " after each data set; default: downloads/manual in --data_dir",
  )
  commands = parser.add_subparsers(dest="command", required=True)
  commands.add_parser(
    "list", parents=[directories], help="list the published data sets"
  )
  check = commands.add_parser(
    "check",
    parents=[directories],
    help="read and count every file of data sets",
  )
  prepare = commands.add_parser(
    "prepare", parents=[directories], help="prepare data sets for training"
  )
  check.add_argument(
    "names",
    nargs="+",
    metavar="NAME",
    help="data sets to check: names, folder:PATH or meta_json:PATH",
  )
  check.add_argument(
    "--deep",
    action="store_true",
    help="also compare every byte of the prepared copy with its recorded hashes"
    " and with the original files",
  )
  prepare.add_argument(
    "names", nargs="*", metavar="NAME", help="names of data sets to prepare"
  )
  prepare.add_argument(
    "--all",
    action="store_true",
    help="prepare every data set with original files on this computer",
  )
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
  parser = _parser()
  options = parser.parse_args(arguments)
  if options.command == "prepare" and options.all == bool(options.names):
    parser.error("prepare needs either names of data sets or --all")
  show_messages()
  if options.command == "list":
    return _list(options)
  from cops_jax.datasets import custom, require_known

  for name in options.names:
    if options.command == "prepare" or not custom.locate(name):
      require_known(name)
  return {"check": _check, "prepare": _prepare}[options.command](options)
