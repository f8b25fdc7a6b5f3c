"""What the methods' papers report, to stand beside a run's own numbers."""

from __future__ import annotations

from collections.abc import Mapping

_COPS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap")
# AnomalyCLIP's paper has AUPRO from 200 thresholds.
_ANOMALYCLIP = ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro_200")
_IMAGE, _PIXEL = _ANOMALYCLIP[:2], _ANOMALYCLIP[2:]

# In percent, by data set; those that this project has of the paper's.
_ANOMALYCLIP_ROWS = {
  "mvtec_ad": (_ANOMALYCLIP, (91.5, 96.2, 91.1, 81.4)),
  "visa": (_ANOMALYCLIP, (82.1, 85.4, 95.5, 87.0)),
  "mpdd": (_ANOMALYCLIP, (77.0, 82.0, 96.5, 88.7)),
  "btad": (_ANOMALYCLIP, (88.3, 87.3, 94.2, 74.8)),
  "dtd_synthetic": (_ANOMALYCLIP, (93.5, 97.0, 97.9, 92.3)),
  "head_ct": (_IMAGE, (93.4, 91.6)),
  "brain_mri": (_IMAGE, (90.3, 92.2)),
  "br35h": (_IMAGE, (94.6, 94.7)),
  "isic": (_PIXEL, (89.7, 78.4)),
  "cvc_colondb": (_PIXEL, (81.9, 71.3)),
  "cvc_clinicdb": (_PIXEL, (82.9, 67.8)),
  "kvasir": (_PIXEL, (78.9, 45.6)),
  "endo": (_PIXEL, (84.1, 63.6)),
}


def published(method: str) -> dict[str, Mapping[str, float]]:
  """The paper's metrics by data set, in percent; none of an unknown method.

  Args:
    method: see `cops_jax.methods`.
  """
  if method == "anomalyclip":
    return {
      name: dict(zip(metrics, values, strict=True))
      for name, (metrics, values) in _ANOMALYCLIP_ROWS.items()
    }
  if method != "cops":
    return {}
  from cops_jax.datasets.specifications import SPECIFICATIONS

  return {
    name: {
      metric: value
      for metric, value in zip(_COPS, row.published, strict=True)
      if value is not None
    }
    for name, row in SPECIFICATIONS.items()
  }
