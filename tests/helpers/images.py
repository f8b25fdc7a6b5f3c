"""Small images, their files and folders of them."""

import io

import numpy as np
from PIL import Image


def make_image(seed, width=70, height=40, mode="RGB"):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
  return Image.fromarray(pixels).resize((width, height)).convert(mode)


def write_images(root, *names):
  """Writes an image to each path below a folder."""
  for index, name in enumerate(names):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(index).save(path)


def encode(image, format="PNG", **options):
  """Returns the bytes of an image file of a PIL image or an array."""
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def write_folder(root, number, has_masks=True, suffix=".png"):
  """Writes small images, every other one anomalous; returns the data set."""
  rng = np.random.default_rng(0)
  for index in range(number):
    kind = ("good", "bad")[index % 2]
    path = root / "test" / kind / f"{index:02}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    if kind == "bad" and has_masks:
      mask = Image.new("L", (20, 20))
      left = int(rng.integers(0, 14))
      mask.paste(255, (left, 2, left + 5, 9))
      path = root / "ground_truth" / kind / f"{index:02}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      mask.save(path)
  return f"folder:{root}"
