"""Flags that several commands share, and the detector that they select."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cops_jax.commands import end_soon
from cops_jax.errors import UsageError
from cops_jax.weights.published import AUTHORS_FILES

if TYPE_CHECKING:
  from cops_jax.detector import AnomalyDetector


def _parse_bool(text):
  values = {"true": True, "1": True, "false": False, "0": False}
  if text.lower() not in values:
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
  return values[text.lower()]


# Accepts --flag, --flag=true and --flag=false. It suits only commands without
# positional arguments, because --flag would read one as its value.
_OPTIONAL_BOOL = dict(type=_parse_bool, nargs="?", const=True, metavar="BOOL")
BOOL = dict(action="store", default=False, **_OPTIONAL_BOOL)

_SHARED = {
  "--workdir": dict(help="use the trained prompts of this run directory"),
  "--pretrained": dict(
    metavar="NAME",
    help=f"use pretrained prompts: {', '.join(AUTHORS_FILES)} (published by"
    " their authors; see `cops weights list`), OWNER/NAME or"
    " OWNER/NAME@REVISION on the Hugging Face hub, or a folder that `cops"
    " weights publish` wrote",
  ),
  "--clip": dict(
    help="use hand-written texts with this CLIP instead of trained prompts: a"
    ' Hugging Face name or folder, a .pt file from OpenAI, or "demo"',
  ),
  "--normal": dict(
    action="append",
    default=[],
    metavar="TEXT",
    help='add a text for normal images, such as "a clean weld"; needs --clip;'
    " can be repeated; default: built-in texts",
  ),
  "--anomalous": dict(
    action="append",
    default=[],
    metavar="TEXT",
    help='add a text for anomalous images, such as "a weld with a crack"; needs'
    " --clip; can be repeated; default: built-in texts",
  ),
  "--allow_other_backbone": dict(
    action="store_true",
    help="accept backbone weights that differ from those that the prompts were"
    " trained on",
  ),
  "--normal_images": dict(
    action="append",
    default=[],
    metavar="IMAGES",
    help="compare each image with these reference images, a few normal images"
    " of the same product: a file, folder or pattern; can be repeated",
  ),
  "--tiles": dict(
    default="",
    help="also score overlapping tiles of each image, to find small defects:"
    ' "auto" for a number that suits the size of the image, or rows x columns'
    " such as 2x3; t tiles take t times as long as the whole image; default: no"
    " tiles",
  ),
  "--distributed": dict(
    **BOOL,
    help="join the cluster that JAX recognizes from the environment: a TPU pod,"
    " Slurm or Open MPI; for any other cluster, set the next three flags"
    " instead",
  ),
  "--coordinator_address": dict(
    metavar="HOST:PORT", help="set the address of the first process"
  ),
  "--num_processes": dict(
    type=int, help="set the number of processes in the cluster"
  ),
  "--process_id": dict(type=int, help="set the number of this process, from 0"),
  "--heartbeat_timeout_seconds": dict(
    type=int,
    default=30,
    help="set the seconds of silence after which a process counts as dead;"
    " default: %(default)s",
  ),
}


def add(parser: Any, *names: str, **options: Any) -> None:
  """Adds shared flags to a parser or to one of its groups.

  Options override the flags' own arguments of `add_argument`.
  """
  for name in names:
    parser.add_argument(name, **{**_SHARED[name], **options})


def add_prompts(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that select a detector; a source of prompts is required."""
  group = parser.add_mutually_exclusive_group(required=True)
  add(group, "--workdir", "--pretrained", "--clip")
  add(parser, "--allow_other_backbone", "--normal_images")


def open_detector(options: argparse.Namespace) -> AnomalyDetector:
  """Returns the detector that --workdir, --pretrained or --clip selects.

  Replaces the files, folders and patterns in `options.normal_images` by the
  images found there.

  Raises:
    InputError: if the detector cannot be loaded, or a reference image cannot be
      found or read.
  """
  from cops_jax.detector import AnomalyDetector
  from cops_jax.images.finding import find_images

  values = vars(options)  # Some commands lack some of these flags.
  options.normal_images = find_images(options.normal_images)
  if options.pretrained:
    detector = AnomalyDetector.from_pretrained(
      options.pretrained, allow_other_backbone=options.allow_other_backbone
    )
  elif options.workdir:
    detector = AnomalyDetector.from_workdir(
      options.workdir, allow_other_backbone=options.allow_other_backbone
    )
  else:
    detector = AnomalyDetector.from_clip(
      options.clip, normal=options.normal, anomalous=options.anomalous
    )
  if megapixels := values.get("max_megapixels"):
    detector.reading["max_pixels"] = int(megapixels * 1e6)
  if bits := values.get("bits_per_channel"):
    detector.reading["bits_per_channel"] = bits
  if options.normal_images:
    detector = detector.with_normal_images(
      options.normal_images, values.get("tiles", "")
    )
  return detector


def require_clip_for_texts(
  parser: argparse.ArgumentParser, options: argparse.Namespace
) -> None:
  """Ends the program if --normal or --anomalous is given without --clip."""
  if (options.normal or options.anomalous) and not options.clip:
    parser.error("--normal and --anomalous need --clip")


def add_cluster(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of a program that can run in several processes."""
  add(parser, "--distributed", "--coordinator_address", "--num_processes")
  add(parser, "--process_id", "--heartbeat_timeout_seconds")


@contextlib.contextmanager
def cluster(options: argparse.Namespace) -> Iterator[None]:
  """Joins the cluster that the flags describe, if any.

  If the cluster loses a process, this process ends with `signals.EXIT_CODE`.
  """
  from cops_jax.runtime import processes, signals

  place = options.coordinator_address, options.num_processes, options.process_id
  if not options.distributed and place == (None, None, None):
    yield
    return
  processes.start(*place, options.heartbeat_timeout_seconds)
  try:
    yield
  except Exception as error:
    if reason := processes.find_lost_peer(error):
      signals.end_process(
        "the connection to another process is lost; it may have ended"
        f" ({reason}). This process ends too; the same command resumes from"
        f" the newest checkpoint (exit code {signals.EXIT_CODE})"
      )
    end_soon()  # An orderly exit would wait for the other processes.
    raise


def comma_list(text: str) -> list[str]:
  """Returns the comma-separated values of a flag."""
  return text.split(",") if text else []


def add_config(parser: argparse.ArgumentParser) -> None:
  """Adds --config and a flag for each field of a config."""
  from cops_jax.config import recipe_names
  from cops_jax.fields import FIELDS

  parser.usage = "%(prog)s [--FLAG=VALUE ...]"
  parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(
    prog, max_help_position=8
  )
  parser.add_argument(
    "--config",
    help="use the config of a recipe, of a Python file with a function"
    " get_config, or of a run directory; recipes:"
    f" {', '.join(recipe_names())}",
  )
  group = parser.add_argument_group(
    "fields of the config", "These flags override values of the config."
  )
  values = {
    bool: _OPTIONAL_BOOL,
    tuple: dict(type=_parse_tuple, metavar="TUPLE"),
  }
  for name, field in FIELDS.items():
    kind = type(field.default)
    comment = field.comment.replace("%", "%%")
    group.add_argument(
      f"--config.{name}",
      default=argparse.SUPPRESS,
      help=f"{comment} Default: {field.default!r}.",
      **values.get(kind, dict(type=kind, metavar=kind.__name__.upper())),
    )


def _parse_tuple(text):
  """Parses a tuple; (24,) and 24 are equal, and so are ('visa',) and visa."""
  import ast

  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError) as error:
    if text.startswith(("(", "[")):
      message = f"{text!r} is not a list such as (12, 24) or ('visa', 'btad')"
      raise argparse.ArgumentTypeError(message) from error
    value = text
  return tuple(value) if isinstance(value, list | tuple) else (value,)


def set_fields(options: argparse.Namespace) -> dict[str, Any]:
  """Returns the values of the fields that flags set, by dotted name."""
  return {
    name.removeprefix("config."): value
    for name, value in vars(options).items()
    if name.startswith("config.")
  }


def read_config(
  options: argparse.Namespace, default: Callable[[], Any] | None = None
) -> Any:
  """Returns the ConfigDict that --config names, with the fields' flags applied.

  Without --config, calls `default`, or raises UsageError if it is None.

  Raises:
    InputError: if the config does not exist or cannot be read.
  """
  from cops_jax.config import recipe, recipe_names
  from cops_jax.files import exists

  source = options.config
  if source is None and default is None:
    raise UsageError(
      f"--config is missing; the recipes are {', '.join(recipe_names())}"
    )
  name = re.sub(r":\w+$", "", source or "")
  if source is None:
    config = default()
  elif name in recipe_names() or name.endswith(".py") or not exists(source):
    config = recipe(source)
  else:
    from cops_jax.weights import prompts

    config = prompts.recorded_config(source)
  config.update_from_flattened_dict(set_fields(options))
  return config
