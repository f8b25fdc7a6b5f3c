"""The config of a run, as it was recorded; eval.py's default.

python train.py --config=configs/recorded.py:runs/demo --workdir=runs/again
"""

from configs import default
from cops_jax.errors import InputError
from cops_jax.weights import prompts


def get_config(run):
  """Fields that the run did not know yet have today's defaults.

  Args:
    run: a work directory or a file of exported prompts.

  Raises:
    InputError: there is no record, or it has fields that are not known here.
  """
  record = prompts.find_record(run)
  if record is None:
    raise InputError(
      f"{run} does not say with which config it was trained; add --config"
    )
  config = default.get_config()
  try:
    config.update(record.config)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(
      f"{run} was made by version {record.version}, whose config does not fit"
      f" this version: {error}"
    ) from error
  return config
