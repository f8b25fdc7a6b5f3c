"""The .cops file compared with the detector that it was exported from."""

import contextlib
import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

from cops_jax import export
from cops_jax.commands.export import main
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.thresholds import Thresholds
from helpers.images import make_image


@pytest.fixture(scope="module")
def detector(trained):
  """A detector with two reference images; the file contains their patches."""
  normal = [make_image(seed) for seed in (10, 11)]
  plain = AnomalyDetector.from_workdir(trained[0])
  plain.origin = "cops-visa, the authors' prompts"
  detector = plain.with_normal_images(normal)
  images = detector.normal_images_sha256
  detector.thresholds = [
    Thresholds(0.5, 0.25, "by hand", normal_images_sha256=images)
  ]
  return detector


@pytest.fixture(scope="module")
def path(detector, tmp_path_factory):
  path = tmp_path_factory.mktemp("export") / "made.cops"
  export.export(detector, path)
  return path


def test_the_file_scores_any_number_of_images_like_the_detector(detector, path):
  loaded = export.load(path)
  decoded = [detector.decode(make_image(seed, 48, 48)) for seed in range(3)]
  want = list(detector.detect(decoded))
  assert len({detection.image_score for detection in want}) == 3
  for number in (1, 3):
    outputs = loaded(np.stack([image.pixels for image in decoded[:number]]))
    for row in range(number):
      assert outputs["image_score"][row] == pytest.approx(
        want[row].image_score, abs=1e-5
      )
      np.testing.assert_allclose(
        outputs["anomaly_map"][row], want[row].anomaly_map, atol=1e-5
      )


def test_thresholds_for_tiles_are_not_exported(detector, tmp_path, monkeypatch):
  """An exported file scores whole images only."""
  monkeypatch.setattr(
    detector, "thresholds", [Thresholds(0.5, 0.25, "by hand", tiles="2x3")]
  )
  monkeypatch.setattr("cops_jax.export.onnx.write_onnx", lambda *_: None)
  metadata = export.export(detector, tmp_path / "made.onnx")
  assert metadata["thresholds"] is None


def test_metadata_describe_the_file_and_the_detector(path):
  metadata = export.load(path).metadata
  with zipfile.ZipFile(path) as archive:
    for platform in metadata["platforms"]:
      function = bytearray(archive.read(f"function-{platform}"))
      exported = jax.export.deserialize(function)
      assert exported.platforms == (platform,)
      kernel = "tpu_custom_call" in exported.mlir_module()
      assert kernel == (platform == "tpu")
  assert metadata["platforms"] == ["cpu", "cuda", "tpu"]
  assert metadata["cuda_attention"] == "xla"  # Exported without a GPU.
  assert metadata["readable_by"] == (
    f"jaxlib up to six months newer than {metadata['jaxlib']}"
  )
  assert metadata["image_size_pixels"] == 48
  assert metadata["num_normal_images"] == 2
  assert metadata["thresholds"]["image"] == 0.5
  assert metadata["origin"] == "cops-visa, the authors' prompts"
  assert len(metadata["backbone_sha256"]) == 64
  assert [file.name for file in path.parent.iterdir()] == [path.name]


RUN_WITHOUT_THE_MODEL = """
import sys
import numpy as np
from cops_jax import export

detector = export.load(sys.argv[1])
outputs = detector(np.zeros((2, 48, 48, 3), np.uint8))
print(outputs["anomaly_map"].shape)
heavy = [name for name in sys.modules if name.startswith("cops_jax.backbones")]
assert not heavy and "transformers" not in sys.modules, heavy
"""


def test_the_file_runs_without_the_models_code(path):
  result = subprocess.run(
    [sys.executable, "-c", RUN_WITHOUT_THE_MODEL, path],
    capture_output=True,
    text=True,
  )
  assert result.stdout == "(2, 48, 48)\n", result.stderr


def test_bad_images_are_refused(path):
  loaded = export.load(path)
  for shape, dtype in (
    ((1, 32, 48, 3), np.uint8),
    ((48, 48, 3), np.uint8),
    ((1, 48, 48, 3), np.float32),
    ((0, 48, 48, 3), np.uint8),
  ):
    with pytest.raises(InputError, match=r"expected uint8 \(batch, 48, 48, 3"):
      loaded(np.zeros(shape, dtype))


def rewrite(path, target, metadata=None, **changes):
  """Writes a copy of a file with other metadata or contents."""
  with zipfile.ZipFile(path) as archive:
    contents = {name: archive.read(name) for name in archive.namelist()}
  changed = json.loads(contents["metadata.json"]) | (metadata or {})
  contents["metadata.json"] = json.dumps(changed).encode()
  with zipfile.ZipFile(target, "w") as archive:
    for name, content in (contents | changes).items():
      archive.writestr(name, content)


def test_bad_files_are_refused(path, tmp_path):
  bad = tmp_path / "bad.cops"
  with pytest.raises(InputError, match="bad.cops cannot be read .*No such"):
    export.load(bad)
  content = path.read_bytes()

  def flip(place, bit):
    flipped = bytearray(content)
    flipped[place] ^= bit
    return bytes(flipped)

  for damaged in (b"", b"no zip", content[:-100], flip(len(content) // 2, 1)):
    bad.write_bytes(damaged)
    with pytest.raises(
      InputError, match="bad.cops cannot be read as an exported det"
    ):
      export.load(bad)
  # Flip bits in all headers of the archive.
  with zipfile.ZipFile(path) as archive:
    starts = [part.header_offset for part in archive.infolist()]
    starts += [archive.start_dir]
  places = [start + index for start in starts for index in range(0, 64, 3)]
  for place in (*places, *range(len(content) - 200, len(content), 3)):
    bad.write_bytes(flip(place, 1 << place % 8))
    with contextlib.suppress(InputError):  # Some bits have no effect.
      export.load(bad)
  with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("metadata.json", bytes(10**7))
  with pytest.raises(InputError, match="cannot be read .*an entry is com"):
    export.load(bad)
  for changes in (
    {"weights.safetensors": b"other"},
    {"weights.safetensors": safetensors.numpy.save({})},
    {"metadata": {"image_size_pixels": None}},
  ):
    rewrite(path, bad, **changes)
    with pytest.raises(InputError, match="bad.cops cannot be read as an"):
      export.load(bad)
  rewrite(path, bad, {"format": 9})
  with pytest.raises(InputError, match="bad.cops has format 9, .* format 3"):
    export.load(bad)
  rewrite(path, bad, {"platforms": ["tpu"]})
  with pytest.raises(InputError, match="was exported for tpu, .* on cpu here"):
    export.load(bad)
  rewrite(path, bad, **{"function-cpu": b"other"})
  with pytest.raises(InputError, match="six months .* JAX .* cannot read"):
    export.load(bad)


def test_the_command_writes_a_file_or_reports_why_not(
  trained, tmp_path, capsys
):
  out = tmp_path / "made.cops"
  main([f"--workdir={trained[0]}", f"--out={out}"])
  text = capsys.readouterr().out
  assert text.startswith(f"{out}: ") and "for cpu, cuda, tpu" in text
  assert export.load(out).metadata["thresholds"] is None
  for workdir, place, expected in (
    (trained[0], out / "made.cops", "made.cops cannot be written: "),
    (tmp_path, out, "holds no training run"),
  ):
    with pytest.raises(SystemExit, match=f"^error: .*{expected}"):
      main([f"--workdir={workdir}", f"--out={place}"])
