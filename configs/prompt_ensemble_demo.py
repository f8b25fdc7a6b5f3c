"""Hand-written prompts on the demo's data, in words that its toy CLIP knows.

python eval.py --config=configs/prompt_ensemble_demo.py --workdir=runs/e_demo
"""

from cops_jax.config import recipe


def get_config():
  """The default at a tiny size."""
  return recipe("prompt_ensemble_demo")
