"""The papers' own results, shown beside a run's."""

from __future__ import annotations

from collections.abc import Mapping

_ALL = {
  "cops": ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap"),
  # AnomalyCLIP computes AUPRO from 200 thresholds.
  "anomalyclip": ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro_200"),
}
# By method and data set, in percent. Data sets without masks have the first two
# metrics, data sets without normal images the last two.
_PERCENT = {
  "cops": {
    "mvtec_ad": (95.0, 97.8, 93.4, 41.9),
    "visa": (85.4, 88.0, 95.7, 23.4),
    "btad": (93.6, 94.9, 94.6, 42.6),
    "mpdd": (78.6, 81.1, 97.5, 30.9),
    "dtd_synthetic": (95.2, 98.1, 98.4, 58.5),
    "head_ct": (96.1, 97.1),
    "brain_mri": (97.4, 97.6),
    "br35h": (98.7, 98.5),
    "isic": (93.8, 85.6),
    "cvc_colondb": (85.6, 37.2),
    "cvc_clinicdb": (88.8, 49.9),
    "kvasir": (85.8, 51.5),
    "endo": (90.0, 58.7),
  },
  "anomalyclip": {
    "mvtec_ad": (91.5, 96.2, 91.1, 81.4),
    "visa": (82.1, 85.4, 95.5, 87.0),
    "mpdd": (77.0, 82.0, 96.5, 88.7),
    "btad": (88.3, 87.3, 94.2, 74.8),
    "dtd_synthetic": (93.5, 97.0, 97.9, 92.3),
    "head_ct": (93.4, 91.6),
    "brain_mri": (90.3, 92.2),
    "br35h": (94.6, 94.7),
    "isic": (89.7, 78.4),
    "cvc_colondb": (81.9, 71.3),
    "cvc_clinicdb": (82.9, 67.8),
    "kvasir": (78.9, 45.6),
    "endo": (84.1, 63.6),
  },
}
_PIXELS_ONLY = ("isic", "cvc_colondb", "cvc_clinicdb", "kvasir", "endo")


def paper_results(method: str) -> dict[str, Mapping[str, float]]:
  """Returns a paper's metrics by data set, in [0, 1].

  Args:
    method: see `cops_jax.methods`; a method without a paper has no results.
  """
  found = {}
  for name, values in _PERCENT.get(method, {}).items():
    metrics = _ALL[method]
    if name in _PIXELS_ONLY:
      metrics = metrics[2:]
    found[name] = {
      metric: value / 100
      for metric, value in zip(metrics, values, strict=False)
    }
  return found
