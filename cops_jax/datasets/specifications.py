"""The paper's thirteen published data sets, and how their files are read."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

from cops_jax.datasets.layouts import Listing
from cops_jax.datasets.lists import parse_head_ct, parse_visa, read_table
from cops_jax.datasets.trees import read_first, read_folders, read_tree

NC = "CC BY-NC-SA 4.0, not for commercial use"
_SEE_HOMEPAGE = "see the home page"


def _folders(images, masks=None, normal=(), kinds=()):
  """Returns `read_folders` for one layout."""
  return functools.partial(
    read_folders, images=images, masks=masks, normal=normal, kinds=kinds
  )


def first(*readers):
  """Returns `read_first` for several readers, the publisher's layout first."""
  return functools.partial(read_first, readers=readers)


def table(path, parse):
  """Returns `read_table` for one list of images."""
  return functools.partial(read_table, table=path, parse=parse)


_IMAGES_AND_MASKS = _folders("images", "masks")
_YES_AND_NO = _folders("{kind}", normal=("no",), kinds=("no", "yes"))


def _test_folder(name, masks=None):
  """Returns a reader of medical data that scripts wrote in MVTec's layout."""
  return _folders(f"{name}/test/{{kind}}", masks, ("good",))


@dataclasses.dataclass(frozen=True)
class Specification:
  """A published data set.

  Attributes:
    name: name of the data set in TFDS and of the folder of original files.
    title: name that the publishers use.
    domain: "industrial" or "medical".
    categories: names of the products or organs.
    read: reader of the original files.
    layout: description of the folder of original files.
    licence: licence that the publishers state, or where to find it.
    homepage: address to get the data set from.
    num_test_images: published number of test images; None if unknown.
    num_test_anomalies: the same for anomalous images.
    size: description of the size if num_test_images is unknown.
    url, sha256: address and hash of a tar file of the original files, if there
      is one.
    package: Python package that contains the original files.
  """

  name: str
  title: str
  domain: str
  categories: Sequence[str]
  read: Callable[[pathlib.Path, Sequence[str]], Listing]
  layout: str
  description: str
  licence: str
  homepage: str
  citation: str
  num_test_images: int | None = None
  num_test_anomalies: int | None = None
  size: str = ""
  url: str = ""
  sha256: str = ""
  package: str = ""


_MVTEC_LAYOUT = (
  "CATEGORY/train/good, CATEGORY/test/{good,DEFECT} and"
  " CATEGORY/ground_truth/DEFECT/NNN_mask.png"
)
_POLYP_LAYOUT = "images/* and masks/*"

_ROWS = (
  Specification(
    name="mvtec_ad",
    title="MVTec AD",
    domain="industrial",
    categories=(
      *("carpet", "grid", "leather", "tile", "wood", "bottle", "cable"),
      *("capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush"),
      *("transistor", "zipper"),
    ),
    read=first(read_tree),
    layout=_MVTEC_LAYOUT,
    description="Ten objects and five textures with 73 kinds of defects.",
    licence=NC,
    homepage="https://www.mvtec.com/company/research/datasets/mvtec-ad",
    citation=(
      "Bergmann, Fauser, Sattlegger, Steger: MVTec AD - A Comprehensive"
      " Real-World Dataset for Unsupervised Anomaly Detection. CVPR 2019."
    ),
    num_test_images=1725,
    num_test_anomalies=1258,
  ),
  Specification(
    name="visa",
    title="VisA",
    domain="industrial",
    categories=(
      *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1"),
      *("macaroni2", "pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
    ),
    read=first(table("split_csv/1cls.csv", parse_visa), read_tree),
    layout="split_csv/1cls.csv and the images and masks that it lists",
    description="Twelve objects: circuit boards, single and multiple items.",
    licence="CC BY 4.0",
    homepage="https://github.com/amazon-science/spot-diff",
    citation=(
      "Zou, Jeong, Pemula, Zhang, Dabeer: SPot-the-Difference Self-Supervised"
      " Pre-training for Anomaly Detection and Segmentation. ECCV 2022."
    ),
    num_test_images=2162,
    num_test_anomalies=1200,
    url=(
      "https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/"
      "VisA_20220922.tar"
    ),
    sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
  ),
  Specification(
    name="btad",
    title="BTAD",
    domain="industrial",
    categories=("01", "02", "03"),
    read=first(read_tree),
    layout="CATEGORY/{train,test}/{ok,ko} and CATEGORY/ground_truth/ko/*",
    description="Three industrial products with body and surface defects.",
    licence=NC,
    homepage="https://github.com/pankajmishra000/VT-ADL",
    citation=(
      "Mishra, Verk, Fornasier, Piciarelli, Foresti: VT-ADL: A Vision"
      " Transformer Network for Image Anomaly Detection and Localization. ISIE"
      " 2021."
    ),
    num_test_images=741,
    num_test_anomalies=290,
  ),
  Specification(
    name="mpdd",
    title="MPDD",
    domain="industrial",
    categories=(
      *("bracket_black", "bracket_brown", "bracket_white", "connector"),
      *("metal_plate", "tubes"),
    ),
    read=first(read_tree),
    layout=_MVTEC_LAYOUT,
    description="Six kinds of painted metal parts.",
    licence=NC,
    homepage="https://github.com/stepanje/MPDD",
    citation=(
      "Jezek, Jonak, Burget, Dvorak, Skotak: Deep Learning-Based Defect"
      " Detection of Metal Parts: Evaluating Current Methods in Complex"
      " Conditions. ICUMT 2021."
    ),
    num_test_images=458,
  ),
  Specification(
    name="dtd_synthetic",
    title="DTD-Synthetic",
    domain="industrial",
    categories=(
      *("Woven_001", "Woven_127", "Woven_104", "Stratified_154"),
      *("Blotchy_099", "Woven_068", "Woven_125", "Marbled_078"),
      *("Perforated_037", "Mesh_114", "Fibrous_183", "Matted_069"),
    ),
    read=first(read_tree),
    layout=_MVTEC_LAYOUT,
    description="Twelve textures of DTD with synthetic anomalies.",
    licence=_SEE_HOMEPAGE,
    homepage=(
      "https://drive.google.com/drive/folders/10OyPzvI3H6llCZBxKxFlKWt1Pw1tkMK1"
    ),
    citation=(
      "Aota, Tong, Okatani: Zero-Shot versus Many-Shot: Unsupervised Texture"
      " Anomaly Detection. WACV 2023."
    ),
    num_test_images=1304,
    num_test_anomalies=947,
  ),
  Specification(
    name="head_ct",
    title="HeadCT",
    domain="medical",
    categories=("brain",),
    read=first(
      _test_folder("brain"),
      table("labels.csv", parse_head_ct),
      _test_folder("headct"),
    ),
    layout="brain/test/{good,ANOMALY}",
    description="Slices of head CT with and without haemorrhage; no masks.",
    licence=_SEE_HOMEPAGE,
    homepage="https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
    citation="Kitamura: Head CT - hemorrhage. Kaggle, 2018.",
    num_test_images=200,
    num_test_anomalies=100,
  ),
  Specification(
    name="brain_mri",
    title="BrainMRI",
    domain="medical",
    categories=("brain",),
    read=first(
      _folders(
        "brain_tumor_dataset/{kind}", normal=("no",), kinds=("no", "yes")
      ),
      _YES_AND_NO,
      _test_folder("brain"),
    ),
    layout="brain_tumor_dataset/{yes,no}",
    description="Slices of brain MRI with and without tumours; no masks.",
    licence=_SEE_HOMEPAGE,
    homepage=(
      "https://www.kaggle.com/datasets/navoneel/"
      "brain-mri-images-for-brain-tumor-detection"
    ),
    citation=(
      "Chakrabarty: Brain MRI Images for Brain Tumor Detection. Kaggle, 2019."
    ),
    num_test_images=253,
  ),
  Specification(
    name="br35h",
    title="Br35H",
    domain="medical",
    categories=("brain",),
    read=first(_YES_AND_NO, _test_folder("brain")),
    layout="{yes,no}",
    description="Slices of brain MRI with and without tumours; no masks.",
    licence=_SEE_HOMEPAGE,
    homepage="https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
    citation="Hamada: Br35H :: Brain Tumor Detection 2020. Kaggle, 2020.",
    num_test_images=3000,
    num_test_anomalies=1500,
  ),
  Specification(
    name="isic",
    title="ISIC",
    domain="medical",
    categories=("skin",),
    read=first(
      _test_folder("skin", "skin/ISBI2016_ISIC_Part1_Test_GroundTruth"),
      _folders(
        "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"
      ),
      _test_folder("isic", "isic/ground_truth/{kind}"),
    ),
    layout=(
      "skin/test/{good,ANOMALY} and skin/ISBI2016_ISIC_Part1_Test_GroundTruth/*"
    ),
    description="Skin lesions, the test images of ISIC 2016, part 1.",
    licence="CC0",
    homepage="https://challenge.isic-archive.com/data/#2016",
    citation=(
      "Gutman, Codella, Celebi, Helba, Marchetti, Mishra, Halpern: Skin Lesion"
      " Analysis toward Melanoma Detection. arXiv 1605.01397, 2016."
    ),
    num_test_images=379,
  ),
  Specification(
    name="cvc_colondb",
    title="CVC-ColonDB",
    domain="medical",
    categories=("colon",),
    read=first(_IMAGES_AND_MASKS),
    layout=_POLYP_LAYOUT,
    description="Polyps in frames of colonoscopy videos.",
    licence=_SEE_HOMEPAGE,
    homepage="http://mv.cvc.uab.es/projects/colon-qa/cvccolondb",
    citation=(
      "Tajbakhsh, Gurudu, Liang: Automated Polyp Detection in Colonoscopy"
      " Videos Using Shape and Context Information. IEEE TMI 2015."
    ),
    num_test_images=380,
  ),
  Specification(
    name="cvc_clinicdb",
    title="CVC-ClinicDB",
    domain="medical",
    categories=("colon",),
    read=first(_IMAGES_AND_MASKS, _folders("Original", "Ground Truth")),
    layout=_POLYP_LAYOUT,
    description="Polyps in frames of colonoscopy videos.",
    licence=_SEE_HOMEPAGE,
    homepage="https://polyp.grand-challenge.org/CVCClinicDB/",
    citation=(
      "Bernal, Sanchez, Fernandez-Esparrach, Gil, Rodriguez, Vilarino: WM-DOVA"
      " Maps for Accurate Polyp Highlighting in Colonoscopy. CMIG 2015."
    ),
    num_test_images=612,
  ),
  Specification(
    name="kvasir",
    title="Kvasir",
    domain="medical",
    categories=("colon",),
    read=first(_IMAGES_AND_MASKS),
    layout=_POLYP_LAYOUT,
    description="Kvasir-SEG: polyps in endoscopic images.",
    licence="for research and education only",
    homepage="https://datasets.simula.no/kvasir-seg/",
    citation=(
      "Jha, Smedsrud, Riegler, Halvorsen, de Lange, Johansen, Johansen:"
      " Kvasir-SEG: A Segmented Polyp Dataset. MMM 2020."
    ),
    num_test_images=1000,
  ),
  Specification(
    name="endo",
    title="Endo",
    domain="medical",
    categories=("colon",),
    read=first(
      _folders("{kind}", "masks", ("good",)),
      _IMAGES_AND_MASKS,
      _test_folder("endo", "endo/ground_truth/{kind}"),
    ),
    layout="a folder for each kind of image, good for normal ones, and masks/*",
    description="Polyps in the test images of the EndoTect challenge.",
    licence=_SEE_HOMEPAGE,
    homepage="https://endotect.com/",
    citation=(
      "Hicks, Jha, Thambawita, Halvorsen, Hammer, Riegler: The EndoTect 2020"
      " Challenge: Evaluation and Comparison of Classification, Segmentation"
      " and Inference Time for Endoscopy. ICPR 2020."
    ),
    num_test_images=200,
  ),
)

SPECIFICATIONS = {row.name: row for row in _ROWS}
