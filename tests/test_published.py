"""Published data sets, from tiny trees in their original layouts."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from cops_jax import datasets
from cops_jax.datasets import layouts
from cops_jax.errors import InputError


def write_image(path, mode="RGB", value=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.new("L", (6, 5), value).convert(mode)
  image.save(path)
  return path


def read_back(examples):
  return {example["path"]: example for example in examples}


@pytest.fixture
def mvtec(tmp_path):
  """MVTec AD's fifteen categories, two defective images in each."""
  from cops_jax.datasets.published import SPECIFICATIONS

  root = tmp_path / "mvtec_ad"
  specification = next(row for row in SPECIFICATIONS if row.name == root.name)
  for category in specification.categories:
    folder = root / category
    write_image(folder / "train" / "good" / "000.png", value=10)
    write_image(folder / "test" / "good" / "000.PNG", value=20)
    write_image(folder / "test" / "._000.png")
    for index in range(2):
      name = f"00{index}"
      write_image(folder / "test" / "crack" / f"{name}.png", "RGBA", index)
      mask = folder / "ground_truth" / "crack" / f"{name}_mask.png"
      write_image(mask, "L", 100 + index)
    (folder / "test" / "crack" / "Thumbs.db").write_bytes(b"no image")
    (folder / "test" / "crack" / "._000.png").write_bytes(b"no image")
  return root


def load(root, split="test"):
  return datasets.load(
    root.name, split, str(root.parent / "prepared"), str(root.parent)
  )


def test_mvtec_is_read_back_byte_for_byte(mvtec):
  examples = read_back(load(mvtec))
  assert len(examples) == 15 * 3
  for path, example in examples.items():
    assert example["image"] == (mvtec / path).read_bytes()
    category, split, kind, name = path.split("/")
    assert split == "test"
    assert example["category"] == category
    assert example["anomaly_kind"] == kind
    assert example["label"] == (kind == "crack")
    assert example["has_mask"] and example["dataset"] == "mvtec_ad"
    if kind == "crack":
      mask = mvtec / category / "ground_truth" / kind / f"{name[:3]}_mask.png"
      assert example["mask"] == mask.read_bytes()
    else:
      assert not np.asarray(Image.open(io.BytesIO(example["mask"]))).any()
  train = load(mvtec, "train")
  assert len(train) == 15 and not any(example["label"] for example in train)


def test_mvtec_without_a_category(mvtec):
  (mvtec / "bottle").rename(mvtec / "bottles")
  with pytest.raises(InputError, match="bottle/test has no images; expected"):
    load(mvtec)
  assert not list(mvtec.parent.glob("prepared/mvtec_ad/1*"))


def test_mvtec_without_a_mask(mvtec):
  (mvtec / "pill" / "ground_truth" / "crack" / "001_mask.png").unlink()
  with pytest.raises(InputError, match="pill/ground_truth/crack holds 1 masks"):
    load(mvtec)


def test_missing_manual_directory(tmp_path):
  with pytest.raises(InputError, match="nowhere does not exist or is empty"):
    datasets.load("visa", "test", str(tmp_path), str(tmp_path / "nowhere"))


def test_missing_root(tmp_path):
  (tmp_path / "mvtec_ad").mkdir()
  with pytest.raises(InputError, match="original files are not in .*/visa"):
    load(tmp_path / "visa")


@pytest.fixture
def visa(tmp_path):
  from cops_jax.datasets.published import SPECIFICATIONS

  root = tmp_path / "visa"
  specification = next(row for row in SPECIFICATIONS if row.name == root.name)
  rows = []
  for category in specification.categories:
    for label, split in (
      ("normal", "train"),
      ("normal", "test"),
      ("anomaly", "test"),
    ):
      image = f"{category}/Data/Images/{label}/{split}.JPG"
      write_image(root / image)
      mask = ""
      if label == "anomaly":
        mask = f"{category}/Data/Masks/Anomaly/{split}.png"
        write_image(root / mask, "L", 3)  # A class index.
      rows.append((category, split, label, image, mask))
  write_table(root, ("object", "split", "label", "image", "mask"), rows)
  return root


def test_the_published_recipe_runs_on_original_files(visa, clip_folder):
  """configs/visa.py, but for the sizes of CLIP and of the images."""
  from configs import visa as recipe
  from cops_jax import evaluation, training

  config = recipe.get_config()
  config.data_dir = str(visa.parent / "prepared")
  config.manual_dir = str(visa.parent)
  config.clip.weights = str(clip_folder)
  config.clip.dtype = "float32"
  config.model.image_size_pixels = 32
  config.model.feature_layers = (3,)
  config.model.num_value_layers = 3
  config.model.deep_prompt_depth = 2
  config.train.num_epochs = 1
  config.evaluation.datasets = ("visa",)
  workdir = visa.parent / "run"
  state = training.train(config, workdir)
  assert int(state.step) == 3
  results, _ = evaluation.evaluate(config, workdir)
  assert len(results["visa"].images) == 24
  assert 0 <= results["visa"].mean["pixel_auroc"] <= 1


def write_table(root, header, rows):
  table = root / "split_csv" / "1cls.csv"
  table.parent.mkdir(parents=True, exist_ok=True)
  with table.open("w", newline="") as file:
    csv.writer(file).writerows([header, *rows])


def test_visa_is_read_back_byte_for_byte(visa):
  examples = read_back(load(visa))
  assert len(examples) == 12 * 2
  for path, example in examples.items():
    assert example["image"] == (visa / path).read_bytes()
    assert example["label"] == ("anomaly" in path)
    if example["label"]:
      mask = visa / example["category"] / "Data/Masks/Anomaly/test.png"
      assert example["mask"] == mask.read_bytes()
  assert len(load(visa, "train")) == 12


def test_visa_with_a_missing_file(visa):
  (visa / "pcb1" / "Data" / "Masks" / "Anomaly" / "test.png").unlink()
  with pytest.raises(InputError, match="Anomaly/test.png does not exist"):
    load(visa)


def test_visa_with_missing_columns(visa):
  write_table(visa, ("object", "split", "image"), [])
  with pytest.raises(InputError, match="lacks the columns label, mask"):
    load(visa)


def test_visa_without_a_category(visa):
  write_table(visa, ("object", "split", "label", "image", "mask"), [])
  with pytest.raises(InputError, match="no rows for candle, capsules"):
    load(visa)


def test_masks_pair_by_stem_then_by_order(tmp_path):
  images = [write_image(tmp_path / "images" / f"{n}.png") for n in "AB"]
  by_stem = [write_image(tmp_path / "stems" / f"{n}_mask.png") for n in "ab"]
  write_image(tmp_path / "stems" / "c_mask.png")
  assert layouts.pair_masks(images, tmp_path / "stems") == dict(
    zip(images, by_stem, strict=True)
  )
  by_order = [write_image(tmp_path / "order" / f"{n}.bmp") for n in "12"]
  assert layouts.pair_masks(images, tmp_path / "order") == dict(
    zip(images, by_order, strict=True)
  )
