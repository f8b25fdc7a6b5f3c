"""The commands, a module each; here what they share: flags, and how they end.

A command's module loads JAX, data sets and models only where it uses them,
after it has read its arguments: help and mistakes are shown at once.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cops_jax.errors import (
  DamagedRunError,
  InputError,
  MissingRunError,
  shorten,
)

if TYPE_CHECKING:
  from cops_jax.detector import AnomalyDetector

_EXIT_SECONDS = 20
_ADVICE = {
  MissingRunError: "Train first: cops train --config=... --workdir={}",
  DamagedRunError: "To see what is wrong: cops train --workdir={} --verify",
}


def describe(error: InputError) -> str:
  """What is wrong and, where that is a run, the command that helps."""
  advice = _ADVICE.get(type(error))
  return f"{error} {advice.format(error.workdir)}" if advice else str(error)


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
  """A command's parser of arguments, without any yet.

  Args:
    name: of the command.
    description: its module's docstring, shown as it is.
  """
  return argparse.ArgumentParser(
    prog=f"cops {name}",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def add_allow_other_clip(parser: argparse.ArgumentParser) -> None:
  """Adds the flag of the commands that open a run."""
  parser.add_argument(
    "--allow_other_clip",
    action="store_true",
    help="accept other CLIP weights than the run's own",
  )


def add_prompts(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that name trained prompts; one of them is to be given."""
  group = parser.add_mutually_exclusive_group(required=True)
  group.add_argument("--workdir", help="of a training run")
  add_pretrained(group)


def add_pretrained(parser: Any, **options: Any) -> None:
  """Adds the flag of published prompts to a parser or a group of its flags.

  Args:
    parser: an `argparse.ArgumentParser` or a group of one.
    **options: of its `add_argument`.
  """
  parser.add_argument(
    "--pretrained",
    metavar="NAME",
    help="published prompts: OWNER/NAME or OWNER/NAME@REVISION on the Hugging"
    " Face hub, or a folder that `cops weights publish` wrote",
    **options,
  )


def open_detector(options: argparse.Namespace) -> AnomalyDetector:
  """The detector that --workdir or --pretrained names.

  Raises:
    InputError: it cannot be loaded.
  """
  from cops_jax.detector import AnomalyDetector

  if options.pretrained:
    return AnomalyDetector.from_pretrained(
      options.pretrained, allow_other_clip=options.allow_other_clip
    )
  return AnomalyDetector.from_workdir(
    options.workdir, allow_other_clip=options.allow_other_clip
  )


def add_tiles(parser: argparse.ArgumentParser) -> None:
  """Adds the flag of the commands that look at large photographs."""
  parser.add_argument(
    "--tiles",
    default="",
    help='look at overlapping tiles too, for small defects: "auto" for as many'
    " as an image's size takes, or rows x columns such as 2x3; t tiles take t"
    " times as long as the whole image, which alone is looked at by default",
  )


def end_soon() -> None:
  """Ends the program even if its threads wait for a server that is gone."""
  ending = threading.Timer(_EXIT_SECONDS, os._exit, [1])
  ending.daemon = True
  ending.start()


def add_clip(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of a CLIP and texts, which take the place of training."""
  parser.add_argument(
    "--clip",
    help="use this CLIP with hand-written texts, without training: a Hugging"
    ' Face name or folder, OpenAI\'s own .pt, or "demo"',
  )
  for name, example in (
    ("normal", "a clean weld"),
    ("anomalous", "a weld with a crack"),
  ):
    parser.add_argument(
      f"--{name}",
      action="append",
      default=[],
      metavar="TEXT",
      help=f'with --clip, what is {name}, such as "{example}"; may be repeated',
    )


def load_clip_detector(
  options: argparse.Namespace, parser: argparse.ArgumentParser
) -> AnomalyDetector | None:
  """The detector that the flags of `add_clip` name; None without --clip.

  Raises:
    InputError: it cannot be loaded.
  """
  if options.clip:
    from cops_jax.detector import AnomalyDetector

    return AnomalyDetector.from_clip(
      options.clip, normal=options.normal, anomalous=options.anomalous
    )
  if options.normal or options.anomalous:
    parser.error("--normal and --anomalous need --clip")
  return None


def command_line(
  main: Callable[[Sequence[str] | None], int | None],
) -> Callable[..., int | None]:
  """Decorates the main of a command, which may be given its arguments.

  An `InputError`, or the system's about a file, ends the program with its
  message and exit status 1. Output that is closed early, as by `... | head`,
  ends it with status 1 and without a message, and Ctrl-C with status 130.
  """

  @functools.wraps(main)
  def run(arguments: Sequence[str] | None = None) -> int | None:
    try:
      for text in sys.argv[1:] if arguments is None else arguments:
        if re.fullmatch(r"--\w+=--", str(text)):  # argparse makes a list of it.
          raise InputError(f"{text}: expected a value")
      status = main(arguments)
      sys.stdout.flush()
      return status
    except InputError as error:
      # An interactive session, which sets ps1, outlives the command.
      if arguments is None and not hasattr(sys, "ps1"):
        end_soon()
      sys.exit(f"error: {describe(error)}")
    except KeyboardInterrupt:
      print("interrupted", file=sys.stderr, flush=True)
      children = multiprocessing.active_children()
      for process in children:
        process.terminate()
      if arguments is None and not children:
        # Threads that compile would crash an orderly exit.
        os._exit(130)
      sys.exit(130)
    except BrokenPipeError:
      # The interpreter flushes the rest when it exits: discard it.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(1)
    except OSError as error:
      if error.filename is None:
        raise
      # Such as a name that is too long, wherever a path is first looked at.
      sys.exit(f"error: {shorten(error.filename)}: {error.strerror}")

  return run
