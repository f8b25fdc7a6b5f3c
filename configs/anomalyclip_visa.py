"""AnomalyCLIP's published recipe trained on VisA, for MVTec AD only.

  python train.py --config=configs/anomalyclip_visa.py --workdir=runs/a_visa
  python eval.py --workdir=runs/a_visa

Published result on MVTec AD, in percent: image AUROC 91.5, image AP 96.2, pixel
AUROC 91.1, PRO (AUPRO from 200 thresholds) 81.4. No time is given here, as this
code has not been run with the real data yet.
"""

from cops_jax.config import recipe


def get_config():
  """The default with the recipe's overrides."""
  return recipe("anomalyclip_visa")
