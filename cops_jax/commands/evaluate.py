"""Evaluates trained prompts on data sets they have never seen.

  cops evaluate --workdir=runs/demo
  cops evaluate --workdir=runs/visa --datasets=all
  cops evaluate --pretrained=cops-visa --workdir=runs/authors

Prints a table; writes report.html, results.json and scores.csv into the work
directory. The config is the run's own, and fields can be set:
--config.evaluation.batch_size=4. The same command again resumes an interrupted
evaluation.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from cops_jax.commands import command_line, flags, make_parser
from cops_jax.progress import show_messages

_logger = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("evaluate", __doc__)
  flags.add(parser, "--workdir", required=True)
  flags.add(parser, "--allow_other_backbone", **flags.BOOL)
  group = parser.add_mutually_exclusive_group()
  group.add_argument(
    "--checkpoint",
    help="trained prompts: a work directory, the authors' epoch_N.pth, which"
    " needs --config, or saved prompts; default: those in --workdir",
  )
  flags.add(group, "--pretrained")
  parser.add_argument(
    "--datasets",
    type=flags.comma_list,
    default=[],
    help="names, separated by commas; all stands for the prepared ones of the"
    " thirteen published; default: config.evaluation.datasets",
  )
  parser.add_argument(
    "--save_maps",
    **flags.BOOL,
    help="write the anomaly maps too: maps/DATASET/CATEGORY.npz",
  )
  flags.add_cluster(parser)
  flags.add_config(parser)
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> int:
  options = _parser().parse_args(arguments)
  show_messages()
  from cops_jax.weights import pretrained, prompts

  checkpoint = options.checkpoint
  if options.pretrained:
    checkpoint = pretrained.find(options.pretrained)
  config = flags.read_config(
    options, lambda: prompts.recorded_config(checkpoint or options.workdir)
  )
  with flags.cluster(options):
    return _evaluate(config, options, checkpoint)


def _evaluate(config, options, checkpoint):
  import jax

  from cops_jax.evaluation import many
  from cops_jax.reporting import report, tables

  found = many.evaluate(
    config,
    options.workdir,
    names=options.datasets,
    checkpoint=checkpoint,
    save_maps=options.save_maps,
    allow_other_backbone=options.allow_other_backbone,
  )
  if jax.process_index() == 0:
    if found.results:
      print(tables.format_table(found.results), flush=True)
      print(f"report: {report.write(options.workdir, found)}")
  if not found.results:
    sys.exit("error: no data set was evaluated")
  if found.failed:
    total = len(found.failed) + len(found.results)
    sys.exit(
      f"error: {len(found.failed)} of {total} data sets failed, see above"
    )
  _logger.info("the evaluation is finished: %s", ", ".join(found.results))
  return 0
