"""Evaluates trained prompts on data sets they have never seen.

  cops evaluate --workdir=runs/demo
  cops evaluate --workdir=runs/visa --datasets=all
  cops evaluate --pretrained=OWNER/visa --workdir=runs/published

Prints a table; writes report.html, results.json and scores.csv into the work
directory. The config is the run's own, and fields can be set:
--config.evaluation.batch_size=4. The same command again resumes an interrupted
evaluation.
"""

from __future__ import annotations

import functools
import logging
import sys

from absl import flags

from cops_jax.commands import config_flags
from cops_jax.errors import InputError

_logger = logging.getLogger(__name__)

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "Trained prompts: a work directory, the authors' epoch_N.pth, which needs a"
  " --config, or exported prompts. By default the work directory's own.",
)
_PRETRAINED = flags.DEFINE_string(
  "pretrained",
  None,
  "Published prompts, in place of --checkpoint: OWNER/NAME or"
  " OWNER/NAME@REVISION on the Hugging Face hub, or a folder that `cops weights"
  " publish` wrote.",
)
_DATASETS = flags.DEFINE_list(
  "datasets",
  [],
  "Names, separated by commas; all for those of the thirteen published ones"
  " that are prepared. By default config.evaluation.datasets.",
)
_SAVE_MAPS = flags.DEFINE_bool(
  "save_maps", False, "Write the anomaly maps too: maps/DATASET/CATEGORY.npz."
)


@functools.cache
def _find_checkpoint():
  """The prompts that the flags name; None for the work directory's own."""
  if _PRETRAINED.value is None:
    return _CHECKPOINT.value
  if _CHECKPOINT.value is not None:
    raise InputError("give --pretrained or --checkpoint, not both")
  from cops_jax.weights import pretrained

  return pretrained.find(_PRETRAINED.value) / pretrained.PROMPTS


def _recorded_config():
  from cops_jax.weights import prompts

  return prompts.recorded_config(_find_checkpoint() or flags.FLAGS.workdir)


def _evaluate(config, workdir, allow_other_clip):
  import jax

  from cops_jax import reporting
  from cops_jax.evaluation import many

  found = many.evaluate(
    config,
    workdir,
    names=_DATASETS.value,
    checkpoint=_find_checkpoint(),
    save_maps=_SAVE_MAPS.value,
    allow_other_clip=allow_other_clip,
  )
  is_written = True
  if jax.process_index() == 0:
    if found.results:
      page = reporting.write(workdir, found)
      is_written = page is not None
      print(reporting.format_table(found.results))
      if page:
        print(f"report: {page}")
    for name, reason in found.failed.items():
      print(f"{name} failed: {reason}", file=sys.stderr)
  if not found.results:
    sys.exit("error: no data set was evaluated")
  if found.failed or (found.results and not is_written):
    sys.exit(1)
  _logger.info("the evaluation is finished: %s", ", ".join(found.results))


def main() -> None:
  """The command line."""
  config_flags.run(
    _evaluate, "cops evaluate", __name__, __doc__, _recorded_config
  )
