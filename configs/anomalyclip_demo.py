"""AnomalyCLIP on the demo's generated data and toy CLIP, no download.

python train.py --config=configs/anomalyclip_demo.py --workdir=runs/a_demo
python eval.py --workdir=runs/a_demo
"""

from cops_jax.config import recipe


def get_config():
  """The default at a tiny size."""
  return recipe("anomalyclip_demo")
