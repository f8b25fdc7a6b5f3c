"""Published data sets that are not in the paper; "all" excludes them."""

from __future__ import annotations

from cops_jax.datasets.lists import parse_elpv, read_real_iad
from cops_jax.datasets.specifications import (
  NC,
  SPECIFICATIONS,
  Specification,
  first,
  table,
)
from cops_jax.datasets.trees import read_tree
from cops_jax.tables import count_of

_ROWS = (
  Specification(
    name="mvtec_ad_2",
    title="MVTec AD 2",
    domain="industrial",
    categories=(
      *("can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial"),
      *("wallplugs", "walnuts"),
    ),
    read=first(read_tree),
    layout=(
      "CATEGORY/test_public/{good,bad} and"
      " CATEGORY/test_public/ground_truth/bad/*_mask.png"
    ),
    description=(
      "Eight products under several lights. Only test_public is read, because"
      " test_private and test_private_mixed have no ground truth."
    ),
    size="over 8,000 in all",
    licence=NC,
    homepage="https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
    citation=(
      "Heckler-Kram, Neudeck, Scheler, König, Steger: The MVTec AD 2 Dataset:"
      " Advanced Scenarios for Unsupervised Anomaly Detection. arXiv"
      " 2503.21622, 2025."
    ),
  ),
  Specification(
    name="mvtec_loco",
    title="MVTec LOCO AD",
    domain="industrial",
    categories=(
      *("breakfast_box", "juice_bottle", "pushpins", "screw_bag"),
      "splicing_connectors",
    ),
    read=first(read_tree),
    layout=(
      "CATEGORY/test/{good,logical_anomalies,structural_anomalies} and"
      " CATEGORY/ground_truth/KIND/NNN/*.png (several masks per image)"
    ),
    description=(
      "Five scenes with structural and logical anomalies. The masks of an image"
      " are united; the publisher's metric sPRO is not computed."
    ),
    licence=NC,
    homepage="https://www.mvtec.com/company/research/datasets/mvtec-loco",
    citation=(
      "Bergmann, Batzner, Fauser, Sattlegger, Steger: Beyond Dents and"
      " Scratches: Logical Constraints in Unsupervised Anomaly Detection and"
      " Localization. IJCV 2022."
    ),
    num_test_images=1568,
    num_test_anomalies=993,
  ),
  Specification(
    name="real_iad",
    title="Real-IAD",
    domain="industrial",
    categories=(
      *("audiojack", "bottle_cap", "button_battery", "end_cap", "eraser"),
      *("fire_hood", "mint", "mounts", "pcb", "phone_battery", "plastic_nut"),
      *("plastic_plug", "porcelain_doll", "regulator", "rolled_strip_base"),
      *("sim_card_set", "switch", "tape", "terminalblock", "toothbrush", "toy"),
      *("toy_brick", "transistor1", "u_block", "usb", "usb_adaptor", "vcpill"),
      *("wooden_beads", "woodstick", "zipper"),
    ),
    read=first(read_real_iad, read_tree),
    layout=(
      "realiad_jsons/CATEGORY.json and realiad_1024/CATEGORY/{OK,NG}, or only"
      " the latter"
    ),
    description="Thirty products, each seen by five cameras.",
    licence=NC,
    homepage="https://realiad4ad.github.io/Real-IAD/",
    citation=(
      "Wang, Zhu, Gao, Gan, Zhang, Gu, Qian, Chen, Ma: Real-IAD: A Real-World"
      " Multi-View Dataset for Benchmarking Versatile Industrial Anomaly"
      " Detection. CVPR 2024."
    ),
    num_test_images=114_585,
    num_test_anomalies=51_329,
  ),
  Specification(
    name="elpv",
    title="ELPV",
    domain="industrial",
    categories=("solar_cell",),
    read=first(table("labels.csv", parse_elpv)),
    layout="labels.csv and the images that it lists",
    description=(
      "Electroluminescence images of solar cells; no masks. Of 2,624 images,"
      " those with a defect probability between 0 and 1 are skipped."
    ),
    licence="CC BY-NC-SA 4.0",
    homepage="https://github.com/zae-bayern/elpv-dataset",
    citation=(
      "Buerhop-Lutz, Deitsch, Maier, Gallwitz, Berger, Doll, Hauch, Camus,"
      " Brabec: A Benchmark for Visual Identification of Defective Solar Cells"
      " in Electroluminescence Imagery. EU PVSEC 2018."
    ),
    num_test_images=2223,
    num_test_anomalies=715,
    package="elpv_dataset",
  ),
)
FURTHER = {row.name: row for row in _ROWS}
PUBLISHED = SPECIFICATIONS | FURTHER


def count_differences(
  name: str, num_images: int, num_anomalies: int
) -> list[str]:
  """Returns how a test split differs from the published numbers, if known."""
  row = PUBLISHED.get(name)
  if row is None:
    return []
  found = {
    "image": (num_images, row.num_test_images),
    "anomalous image": (num_anomalies, row.num_test_anomalies),
  }
  return [
    f"{count_of(number, noun)} in the test split, {abs(number - known)}"
    f" {'fewer' if number < known else 'more'} than the {known} of the"
    " published data set"
    for noun, (number, known) in found.items()
    if known not in (None, number)
  ]
