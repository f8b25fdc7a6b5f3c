"""Every command reports the same score for the same file, in any encoding."""

import importlib.util
import json

import jax
import numpy as np
import pytest
from PIL import Image

from cops_jax import detector as detector_module
from cops_jax import export, images, training
from cops_jax.commands import predict
from cops_jax.detector import AnomalyDetector
from cops_jax.evaluation import many
from helpers.config import make_config
from helpers.demo_pages import post, serve
from helpers.dino import write_golden
from helpers.images import make_image, write_folder


def _exif(orientation):
  exif = Image.Exif()
  exif[0x112] = orientation
  return exif


def _deep(bits, dtype=np.uint16):
  grey = np.asarray(make_image(1, mode="L")).astype(int)
  grey = grey * (2**bits - 1) // grey.max()
  return Image.fromarray(grey.astype(dtype))


def _clear(mode):
  """An image that is transparent on the left, over another colour."""
  image = make_image(2, mode="RGBA")
  alpha = Image.new("L", image.size, 255)
  alpha.paste(0, (0, 0, 30, 40))
  image.putalpha(alpha)
  return image.quantize(64) if mode == "P" else image.convert(mode)


# By bits per channel: the image of each file and its options of `save`.
ENCODINGS = {
  16: {
    "plain.png": (make_image(0), {}),
    "photograph.jpg": (make_image(0), {}),
    "page.bmp": (make_image(0), {}),
    "lossless.webp": (make_image(0), {"lossless": True}),
    "palette.png": (make_image(0).quantize(64), {}),
    "bilevel.png": (make_image(0, mode="1"), {}),
    "cmyk.jpg": (make_image(0, mode="CMYK"), {}),
    "deep.png": (_deep(16), {}),
    "deep.tif": (_deep(16), {}),
    "dark.png": (_deep(12), {}),
    "clear.png": (_clear("RGBA"), {}),
    "clear_grey.png": (_clear("LA"), {}),
    "clear_palette.png": (_clear("P"), {}),
    "mirrored.jpg": (make_image(0), {"exif": _exif(2)}),
    "turned.jpg": (make_image(0), {"exif": _exif(6)}),
    "turned_tiff.tif": (make_image(0, mode="L"), {"exif": _exif(6)}),
    "pages.tif": (
      make_image(0),
      {"save_all": True, "append_images": [make_image(1)]},
    ),
  },
  12: {
    "deep.png": (_deep(12), {}),
    "deep.tif": (_deep(12), {}),
    "integers.tif": (_deep(12, np.int32), {}),
  },
}


@pytest.mark.parametrize(
  "recipe, bits",
  (
    *(("demo", 16), ("anomalyclip_demo", 16), ("uniadet_demo", 16)),
    ("prompt_ensemble_demo", 12),
  ),
)
def test_all_commands_report_the_same_score(
  recipe, bits, clip_folder, data_dir, tmp_path, monkeypatch
):
  """The evaluation, `cops predict`, the page and an exported file agree."""
  # With one image at a time on each device, less is compiled.
  monkeypatch.setattr(detector_module, "_MAX_DEVICE_IMAGES", 1)
  monkeypatch.setattr("cops_jax.export.jax.PLATFORMS", ("cpu",))
  config = make_config(clip_folder, data_dir, recipe)
  if recipe == "uniadet_demo":  # This recipe also tests another backbone.
    config.backbone.kind = "dinov3"
    config.backbone.weights = str(write_golden("dinov3", tmp_path / "dinov3"))
  config.evaluation.batch_size = 8
  config.input.bits_per_channel = bits
  folder = tmp_path / "parts" / "test" / "good"
  folder.mkdir(parents=True)
  for name, (image, options) in ENCODINGS[bits].items():
    image.save(folder / name, **options)
  workdir = tmp_path / "run"
  name = f"folder:{tmp_path / 'parts'}"
  if recipe != "prompt_ensemble_demo":
    config.train.dataset = write_folder(tmp_path / "masked", 2)
    config.train.num_epochs = 0
    training.train(config, workdir)
  result = many.evaluate(config, workdir, names=[name]).results["parts"]
  evaluated = {
    image.path.removeprefix("test/good/"): image.image_score
    for image in result.images
  }
  assert evaluated.keys() == ENCODINGS[bits].keys()

  detector = AnomalyDetector.from_workdir(workdir)
  monkeypatch.setattr(predict.flags, "open_detector", lambda _: detector)
  out = tmp_path / "out"
  predict.main([str(folder), f"--workdir={workdir}", f"--out={out}"])
  lines = (out / "predictions.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  export.export(detector, tmp_path / "made.cops")
  exported = export.load(tmp_path / "made.cops")
  side, bits = (
    exported.metadata[name]
    for name in ("image_size_pixels", "bits_per_channel")
  )
  paths = [folder / name for name in evaluated]
  batch = np.stack(
    [images.read(path, bits_per_channel=bits).resize(side) for path in paths]
  )
  by_export = exported(batch)["image_score"]
  # tests/export compares the ONNX file of CoPS.
  if recipe != "demo" and importlib.util.find_spec("jax2onnx"):
    import onnxruntime

    with jax.numpy_rank_promotion("allow"):  # The converter promotes a bias.
      export.export(detector, tmp_path / "made.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "made.onnx")
    scores, _ = session.run(None, {"images": batch})
    np.testing.assert_allclose(scores, by_export, atol=1e-5)
  with serve(detector) as port:
    on_page = [post(port, path.read_bytes())[1] for path in paths]

  predicted = {row["path"].rpartition("/")[2]: row for row in rows}
  for path, score, answer in zip(paths, by_export, on_page, strict=True):
    want, row = evaluated[path.name], predicted[path.name]
    assert score == pytest.approx(want, abs=1e-6)
    # These two are rounded to six digits.
    assert row["image_score"] == pytest.approx(want, abs=1.5e-6)
    assert answer["image_score"] == pytest.approx(want, abs=1.5e-6)
    assert answer.get("note") == row.get("note")
  # All of them report the same assumptions.
  noted = {name for name, row in predicted.items() if "note" in row}
  assert noted == ({"dark.png", "pages.tif"} if bits == 16 else set())
  notes = [note for note in result.notes if "1 image:" in note]
  assert len(notes) == len(noted)
  for name in noted:
    assert any(f"test/good/{name}" in note for note in notes)
