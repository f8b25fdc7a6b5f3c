"""Thresholds are chosen on the pixels that the detector scores."""

import numpy as np
import pytest
from PIL import Image

from cops_jax import calibrate, datasets
from cops_jax.detector import AnomalyDetector, Detection
from helpers.images import make_image

SIDE = 32


class Recording(AnomalyDetector):
  """Has no model: bright pixels are anomalous."""

  max_batch_size = 4
  prompts_sha256 = ""

  def __init__(self):
    self.image_size = SIDE
    self.reading = {}
    self.seen = []

  def detect(self, images):
    for image in images:
      self.seen.append(image.pixels)
      values = image.pixels.mean(2, dtype=np.float32) / 255
      yield Detection(float(values.max()), values)


def deep_grey():
  """From 0 to 40000: its high byte goes from 0 to 156."""
  ramp = np.linspace(0, 40_000, SIDE * SIDE).astype(np.uint16)
  return Image.fromarray(ramp.reshape(SIDE, SIDE))


@pytest.mark.parametrize(
  "make, orientation",
  ((deep_grey, 6), *((lambda: make_image(0), turn) for turn in (1, 3, 6, 8))),
)
def test_normal_and_anomalous_images_are_decoded_alike(
  make, orientation, tmp_path, monkeypatch
):
  """The same file as either, its mask over the pixels as they are stored."""
  image = make()
  exif = Image.Exif()
  exif[0x112] = orientation
  for kind in ("good", "bad"):
    path = tmp_path / "parts" / "test" / kind / "0.png"
    path.parent.mkdir(parents=True)
    image.save(path, exif=exif)
  drawn = np.zeros(image.size[::-1], np.uint8)
  drawn[: image.height // 2, : image.width // 4] = 255
  path = tmp_path / "parts" / "ground_truth" / "bad" / "0_mask.png"
  path.parent.mkdir(parents=True)
  Image.fromarray(drawn).save(path)

  masks = []
  monkeypatch.setattr(
    calibrate.metrics.PixelMetrics,
    "add",
    lambda _, anomaly_map, mask: masks.append(mask),
  )
  detector = Recording()
  examples = datasets.load(f"folder:{tmp_path / 'parts'}", "test", None)
  calibrate.from_labelled_data(detector, examples)
  one, other = detector.seen
  np.testing.assert_array_equal(one, other)
  assert 100 < one.max() and len(np.unique(one)) > 20
  with Image.open(tmp_path / "parts" / "test" / "bad" / "0.png") as stored:
    np.testing.assert_array_equal(one, detector.decode(stored).pixels)

  turns = {1: 0, 3: 2, 6: -1, 8: 1}
  turned = Image.fromarray(np.rot90(drawn, turns[orientation]))
  want = np.asarray(turned.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
  (mask,) = (mask for mask in masks if mask.any())
  np.testing.assert_array_equal(mask, want > 127)
