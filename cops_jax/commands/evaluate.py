"""Evaluates trained prompts on data sets that they were not trained on.

  cops evaluate --workdir=runs/demo
  cops evaluate --workdir=runs/visa --datasets=all
  cops evaluate --pretrained=cops-visa --workdir=runs/authors

Prints a table, and writes report.html, results.json and scores.csv into the run
directory. The config comes from the run. Flags override its fields:
--config.evaluation.batch_size=4. The same command resumes an interrupted
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
  text = "write the results to this run directory; use its prompts by default"
  flags.add(parser, "--workdir", required=True, help=text)
  flags.add(parser, "--allow_other_backbone", **flags.BOOL)
  group = parser.add_mutually_exclusive_group()
  group.add_argument(
    "--checkpoint",
    metavar="PROMPTS",
    help="evaluate these trained prompts: a run directory, a file of `cops"
    " weights save`, or an epoch_N.pth of the methods' authors, which needs"
    " --config; default: those in --workdir",
  )
  flags.add(group, "--pretrained")
  parser.add_argument(
    "--datasets",
    type=flags.comma_list,
    default=[],
    metavar="NAME,...",
    help="evaluate on these data sets, separated by commas; `all` means every"
    " prepared data set of the thirteen in the paper; default:"
    " config.evaluation.datasets",
  )
  parser.add_argument(
    "--save_maps",
    **flags.BOOL,
    help="also write the anomaly maps to maps/DATASET/CATEGORY.npz",
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
    sys.exit("error: no data set was evaluated; see above")
  if found.failed:
    total = len(found.failed) + len(found.results)
    sys.exit(
      f"error: {len(found.failed)} of {total} data sets failed; see above"
    )
  _logger.info("the evaluation is finished: %s", ", ".join(found.results))
  return 0
