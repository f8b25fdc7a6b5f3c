"""The config of a run, as it was recorded; eval.py's default.

python train.py --config=configs/recorded.py:runs/demo --workdir=runs/again
"""

from cops_jax.weights import prompts


def get_config(run):
  """Fields that the run did not know yet have today's defaults.

  Args:
    run: a work directory or a file of exported prompts.

  Raises:
    InputError: there is no record, or it has fields that are not known here.
  """
  return prompts.recorded_config(run)
