"""Detection with a CLIP alone: no training, no file of prompts."""

import json

import numpy as np
import pytest

from cops_jax import export, reporting, training, weights
from cops_jax.commands import calibrate, predict
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.evaluation import many
from helpers.config import make_config
from helpers.images import make_image, write_folder
from helpers.scripts import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp("data") / "parts", 6)


@pytest.fixture
def config(clip_folder, data_dir, folder):
  config = make_config(clip_folder, data_dir, "prompt_ensemble_demo")
  config.evaluation.datasets = (folder,)
  return config


def evaluate(config, workdir):
  found = many.evaluate(config, workdir)
  assert not found.failed
  return found


def test_an_evaluation_makes_a_run(config, folder, tmp_path):
  """Which detector, calibration and export take as any other."""
  workdir = tmp_path / "run"
  found = evaluate(config, workdir)
  assert found.provenance["checkpoint"] == (
    "the prompt ensemble, which is not trained"
  )
  page = reporting.write(workdir, found)
  assert "Prompt ensemble: zero-shot" in page.read_text()
  root = folder.removeprefix("folder:")
  calibrate.main([f"--workdir={workdir}", "--normal", f"{root}/test/good"])
  detector = AnomalyDetector.from_workdir(workdir)
  assert detector.thresholds.prompts_sha256 == detector.prompts_sha256
  for image in found.results["parts"].images:
    detection = detector(f"{root}/{image.path}")
    assert detection.image_score == pytest.approx(image.image_score, abs=1e-5)
  decoded = [detector.decode(make_image(seed, 48, 48)) for seed in range(2)]
  export.export(detector, tmp_path / "made.cops")
  outputs = export.load(tmp_path / "made.cops")(
    np.stack([image.pixels for image in decoded])
  )
  want = [detection.image_score for detection in detector.detect(decoded)]
  np.testing.assert_allclose(outputs["image_score"], want, atol=1e-5)
  # A result is kept for the same texts only.
  assert evaluate(config, workdir).results == found.results
  config.model.normal_texts = ("a clean object",)
  with pytest.raises(InputError, match="another config: model.normal_texts is"):
    many.evaluate(config, workdir)


def test_edited_texts_are_other_prompts(config, tmp_path):
  path = tmp_path / "mine.txt"
  path.write_text("[normal]\n{}\n[anomalous]\nbroken {}\n[templates]\na {}.\n")
  config.model.texts = str(path)
  first = evaluate(config, tmp_path / "run")
  path.write_text(path.read_text().replace("broken", "faulty"))
  second = evaluate(config, tmp_path / "run")
  hashes = [row.provenance["prompts_sha256"] for row in (first, second)]
  assert hashes[0] != hashes[1]
  scores = [
    [image.image_score for image in found.results["parts"].images]
    for found in (first, second)
  ]
  assert scores[0] != scores[1]


def test_categories_have_their_names_in_the_texts(config, tmp_path):
  """The same images as plates and as tiles, beside all as objects."""
  for name in ("tile", "metal_plate"):
    write_folder(tmp_path / "parts" / name, 4)
  config.evaluation.datasets = (f"folder:{tmp_path / 'parts'}",)
  config.evaluation.batch_size = 3

  def scores(**fields):
    config.model.update(fields)
    images = evaluate(config, tmp_path / f"{fields}").results["parts"].images
    rows = {"tile": [], "metal_plate": []}
    for image in images:
      rows[image.category].append(image.image_score)
    return rows

  objects = scores()
  assert objects["tile"] == pytest.approx(objects["metal_plate"], abs=1e-6)
  tiles, plates = (scores(object_name=n) for n in ("tile", "metal plate"))
  both = scores(object_name="object", use_category_names=True)
  assert both["tile"] == pytest.approx(tiles["tile"], abs=1e-6)
  assert both["metal_plate"] == pytest.approx(plates["metal_plate"], abs=1e-6)
  assert both["tile"] != pytest.approx(both["metal_plate"], abs=1e-4)


def test_there_is_nothing_to_train(config, tmp_path):
  with pytest.raises(InputError, match="x.pth cannot be evaluated by .* leave"):
    many.evaluate(config, tmp_path / "run", checkpoint="x.pth")
  with pytest.raises(
    InputError, match="'prompt_ensemble' has nothing to train"
  ):
    training.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_demos_clip_needs_no_more_than_its_name(tmp_path, capsys):
  make_image(0).save(tmp_path / "photo.png")
  arguments = [str(tmp_path), "--clip=demo"]
  predict.main(arguments)
  own = [f"--{name}" for name in ("normal", "anomalous")]
  predict.main(
    [*arguments, own[0], "a clean tile", own[1], "a tile with a hole"]
  )
  rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
  assert rows[0]["image_score"] != rows[1]["image_score"]
  detector = AnomalyDetector.from_clip(
    "demo", normal=["a clean tile"], anomalous=["a tile with a hole"]
  )
  score = detector(tmp_path / "photo.png").image_score
  assert rows[1]["image_score"] == pytest.approx(score, abs=1e-6)
  assert AnomalyDetector.from_clip("demo").config.model.texts == "demo"


def test_sizes_fit_any_clip(clip_folder):
  from cops_jax.config import ensemble_of, recipe

  clip = weights.load_clip(str(clip_folder)).config
  config = ensemble_of(str(clip_folder), clip)
  assert config.model.image_size_pixels == 37 * 16
  assert config.model.feature_layers == (3,)
  clip.vision_config.num_hidden_layers = 24
  clip.vision_config.patch_size = 14
  config = ensemble_of("openai/clip-vit-large-patch14-336", clip)
  assert config.to_dict() == recipe("prompt_ensemble").to_dict()


@pytest.mark.parametrize(
  "arguments, expected",
  (
    (
      ["--clip=demo", "--normal", "a clean weld"],
      "not know the word 'weld' of",
    ),
    (
      ["--clip=demo", "--workdir=run"],
      "argument --workdir: not allowed with argument --clip",
    ),
    (["--workdir=run", "--normal=good"], "--anomalous need --clip"),
    ([], "one of the arguments --workdir --pretrained --clip is required"),
  ),
)
def test_bad_input_is_reported(arguments, expected, tmp_path):
  make_image(0).save(tmp_path / "photo.png")
  code, _, err = run("-m", "cops_jax", "predict", tmp_path, *arguments)
  assert code and expected in err and "Traceback" not in err


def test_texts_need_a_tokenizer_and_room(tmp_path):
  clip = weights.load_clip("demo")
  with pytest.raises(InputError, match="'a a.* has 82 tokens; CLIP reads at"):
    clip.tokenize(["a " * 80])
  bare = weights.PretrainedCLIP(clip.config, clip.params, clip.tokens, "")
  with pytest.raises(InputError, match="came without a tokenizer, which"):
    bare.tokenize(["a"])
