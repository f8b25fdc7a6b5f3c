r"""Hand-written prompts and no training, on all that is prepared.

  python eval.py --config=configs/prompt_ensemble.py --workdir=runs/ensemble \
    --datasets=all

There is no published result of exactly this: AnomalyCLIP's vision tower and
maps with WinCLIP's kind of texts. No time is given here, as this code has not
been run with the real data yet.
"""

from cops_jax.config import recipe


def get_config():
  """The default with the recipe's overrides."""
  return recipe("prompt_ensemble")
