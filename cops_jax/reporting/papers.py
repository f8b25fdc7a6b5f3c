"""Published results of the methods, to compare a run's results with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ALL = {
  "cops": ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap"),
  # AnomalyCLIP computes AUPRO from 200 thresholds.
  "anomalyclip": ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro_200"),
  "uniadet": ("image_auroc", "pixel_ap"),
}
# Percentages by method and data set. Data sets without masks have the first two
# metrics only, and data sets without normal images have the last two only.
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

# UniADet's image AUROC and pixel AP in percent on the data sets below, by
# backbone and number of reference images for each category.
_UNIADET_DATASETS = ("mvtec_ad", "visa", "real_iad")
_UNIADET_PERCENT = {
  ("clip", 0): ((92.4, 42.8), (88.0, 28.0), (78.6, 33.6)),
  ("dinov2", 0): ((93.5, 50.9), (91.3, 32.7), (82.5, 43.1)),
  ("dinov3", 0): ((94.0, 52.7), (91.9, 32.5), (81.2, 41.6)),
  ("clip", 1): ((95.9, 54.6), (91.3, 32.5)),
  ("clip", 4): ((97.7, 58.8), (93.3, 36.7), (84.3, 37.2)),
  ("dinov2", 1): ((97.6, 63.1), (95.2, 42.1), (88.7, 48.4)),
  ("dinov2", 2): ((98.0, 64.1), (96.1, 44.2), (89.0, 46.7)),
  ("dinov2", 4): ((98.7, 65.4), (96.9, 45.2), (90.3, 48.5)),
  ("dinov3", 4): ((98.2, 69.0), (97.1, 45.5), (88.5, 49.8)),
}
# UniADet's authors have published no code. These are reproductions by others,
# by backbone and data set, without reference images.
_UNIADET_REPRODUCED = {
  ("clip", "mvtec_ad"): "image AUROC 90.0 to 91.4 and pixel AP 43.3 to 44.2 on"
  " MVTec AD, with CLIP without its projection",
  ("dinov2", "visa"): "image AUROC 89.6 to 90.9 and pixel AP 32.2 to 33.1 on"
  " VisA",
}


def paper_results(config: Mapping[str, Any]) -> dict[str, dict[str, float]]:
  """Returns the metrics of a method's paper by data set, in [0, 1].

  The result is empty for a method without a paper. Only UniADet's paper has
  results with reference images. Its results depend on the backbone.

  Args:
    config: nested dictionaries. Only method, backbone.kind and
      evaluation.num_normal_images are read.
  """
  method = config["method"]
  percent = {} if num_normal_images(config) else _PERCENT.get(method, {})
  if method == "uniadet":
    values = _UNIADET_PERCENT.get(_uniadet_key(config), ())
    percent = dict(zip(_UNIADET_DATASETS, values, strict=False))
  found = {}
  for name, values in percent.items():
    metrics = _ALL[method]
    if name in _PIXELS_ONLY:
      metrics = metrics[2:]
    found[name] = {
      metric: value / 100
      for metric, value in zip(metrics, values, strict=False)
    }
  return found


def reproduced_results(config: Mapping[str, Any], name: str) -> str:
  """Returns a text with reproductions by others; empty if there are none."""
  if config["method"] != "uniadet" or _uniadet_key(config)[1]:
    return ""
  return _UNIADET_REPRODUCED.get((config["backbone"]["kind"], name), "")


def _uniadet_key(config):
  return config["backbone"]["kind"], num_normal_images(config)


def num_normal_images(config: Mapping[str, Any]) -> int:
  """Returns the number of reference images; older configs have none."""
  return config.get("evaluation", {}).get("num_normal_images", 0)
