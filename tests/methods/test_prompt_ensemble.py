"""The prompt ensemble: scores, files of texts, and commands with only CLIP."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import pytest

from cops_jax import publish, thresholds, training
from cops_jax.backbones.features import join_params
from cops_jax.commands import calibrate, export, predict
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.evaluation import many
from cops_jax.evaluation.step import detect_anomalies
from cops_jax.images.finding import find_images
from cops_jax.methods import prompt_ensemble
from cops_jax.methods.prompt_ensemble import fill_templates, read_texts
from cops_jax.thresholds import Thresholds
from cops_jax.weights.clip import PretrainedCLIP, load_clip
from helpers import golden
from helpers.config import make_config
from helpers.golden import assert_close
from helpers.images import make_image, write_folder

SOURCE = "anomalyclip"
NUM_NORMAL = 245


@pytest.fixture(scope="module")
def expected():
  return golden.load(SOURCE)


@pytest.fixture(scope="module")
def sentences(expected):
  """Token ids of the stored sentences, in OpenAI's vocabulary."""
  rows = []
  for row in expected["ens.tokens"]:
    rows.append(row[: list(row).index(49407) + 1].tolist())
  return rows


def test_scores_and_maps_match_the_stored_ones(expected, sentences):
  ids = list(expected["clip.token_embedding.ids"])
  rows = [tuple(ids.index(number) for number in row) for row in sentences]
  model = prompt_ensemble.PromptEnsemble(
    golden.config("prompt_ensemble"),
    golden.tower(SOURCE),
    (tuple(rows[:NUM_NORMAL]), tuple(rows[NUM_NORMAL:])),
  )
  backbone_params = golden.backbone_params(SOURCE)
  tree = model.init_trainable(jax.random.key(0), backbone_params)
  text_features = tree["ensemble"]["text_features"]
  assert_close(text_features, expected["ens.text_features"])
  batch = {
    f"{name}_features": jnp.asarray(expected[f"enc.{name}_features"])
    for name in ("image", "patch")
  }
  outputs = detect_anomalies(model, join_params(tree, backbone_params), batch)
  assert_close(outputs["image_score"], expected["ens.image_score"])
  # The stored map is a sum over feature layers.
  num_layers = len(model.config.model.feature_layers)
  maps = num_layers * outputs["anomaly_map"]
  assert_close(maps[:1], expected["ens.anomaly_map"])


def test_texts_for_photographs_match_the_authors(sentences):
  *states, templates = read_texts("photos")
  texts = [
    text
    for names in states
    for text in fill_templates(templates, names, "object")
  ]
  assert len(texts) == len(sentences)
  # This digest is that of the authors' sentences, compared word by word.
  digest = hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()
  assert digest.startswith("bbff99e4782dc830")


FILE = """# My parts.
[normal]
{}
[anomalous]
{} with a crack
broken {}
[templates]
a photo of the {}.
{}
"""


def test_a_users_own_texts_are_read(tmp_path):
  path = tmp_path / "mine.txt"
  path.write_text(FILE)
  *states, templates = read_texts(str(path))
  normal, anomalous = (
    fill_templates(templates, names, "weld") for names in states
  )
  assert normal == ["a photo of the weld.", "weld"]
  assert anomalous == [
    *("a photo of the weld with a crack.", "weld with a crack"),
    *("a photo of the broken weld.", "broken weld"),
  ]
  own = ["a clean weld", "the {}"], [" An odd  one"]
  normal, anomalous, _ = read_texts(str(path), *own)
  assert (normal, anomalous) == (["clean weld", "{}"], ["odd one"])
  with pytest.raises(InputError, match="normal_texts has an empty text: "):
    read_texts("photos", ["  "])


@pytest.mark.parametrize(
  "text, expected",
  (
    (FILE.replace("a photo of the {}.\n{}\n", ""), "no texts under .templates"),
    (FILE.replace("a photo of the {}.", "a photo."), "line 8 of .* 'a photo.'"),
    (FILE.replace("[normal]", "[good]"), r"line 2 of .* is '\[good\]': exp"),
    ("a photo", "line 1 of"),
    (None, "the file cannot be read .* or to one of demo, photos"),
  ),
  ids=("section", "blank", "heading", "first", "absent"),
)
def test_an_invalid_file_of_texts_is_rejected(tmp_path, text, expected):
  path = tmp_path / "mine.txt"
  if text is not None:
    path.write_text(text)
  with pytest.raises(InputError, match=expected):
    read_texts(str(path))


@pytest.fixture
def config(clip_folder, data_dir, tmp_path):
  config = make_config(clip_folder, data_dir, "prompt_ensemble_demo")
  config.evaluation.datasets = (write_folder(tmp_path / "data", 4),)
  return config


def test_results_follow_the_texts(config, tmp_path):
  """Saved prompts keep their texts; an edited file changes the results."""
  path = tmp_path / "mine.txt"
  path.write_text("[normal]\n{}\n[anomalous]\nbroken {}\n[templates]\na {}.\n")
  config.model.texts = str(path)
  found = []
  for word in ("broken", "faulty"):
    path.write_text(path.read_text().replace("broken", word))
    found.append(many.evaluate(config, tmp_path / "run"))
  source = "the prompt ensemble, which is not trained"
  assert {row.provenance["checkpoint"] for row in found} == {source}
  first, second = found
  hashes = {row.provenance["prompts_sha256"] for row in found}
  assert len(hashes) == 2 and first.results != second.results
  again = many.evaluate(config, tmp_path / "run")
  assert again.results == second.results
  detector = AnomalyDetector.from_workdir(tmp_path / "run")
  publish.write_detector(detector, tmp_path / "kept", Thresholds(1.0, 1.0, ""))
  path.write_text(path.read_text().replace("faulty", "flawed"))
  kept = tmp_path / "kept" / "prompts.safetensors"
  again = many.evaluate(config, tmp_path / "run", checkpoint=kept)
  assert again.results == second.results
  config.model.normal_texts = ("a clean object",)
  with pytest.raises(InputError, match="another config: model.normal_texts is"):
    many.evaluate(config, tmp_path / "run")


def test_texts_contain_the_name_of_each_category(config, tmp_path):
  """The same images are scored as plates, as tiles and as objects."""
  for name in ("tile", "metal_plate"):
    write_folder(tmp_path / "parts" / name, 4)
  config.evaluation.datasets = (f"folder:{tmp_path / 'parts'}",)
  config.evaluation.batch_size = 3

  def scores(**fields):
    config.model.update(fields)
    found = many.evaluate(config, tmp_path / f"{fields}")
    rows = {"tile": [], "metal_plate": []}
    for image in found.results["parts"].images:
      rows[image.category].append(image.image_score)
    return rows

  objects = scores()
  assert objects["tile"] == pytest.approx(objects["metal_plate"], abs=1e-6)
  tiles, plates = (scores(object_name=n) for n in ("tile", "metal plate"))
  both = scores(object_name="object", use_category_names=True)
  assert both["tile"] == pytest.approx(tiles["tile"], abs=1e-6)
  assert both["metal_plate"] == pytest.approx(plates["metal_plate"], abs=1e-6)
  assert both["tile"] != pytest.approx(both["metal_plate"], abs=1e-4)


def test_the_prompt_ensemble_cannot_be_trained(config, tmp_path):
  with pytest.raises(InputError, match="x.pth holds no training run"):
    many.evaluate(config, tmp_path / "run", checkpoint="x.pth")
  with pytest.raises(
    InputError, match="'prompt_ensemble' has nothing to train"
  ):
    training.train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_config_of_a_clip_has_its_sizes(clip_folder):
  from cops_jax.config import ensemble_of, recipe

  backbone = load_clip(str(clip_folder)).config
  config = ensemble_of(str(clip_folder), backbone)
  assert config.model.image_size_pixels == 37 * 16
  assert config.model.feature_layers == (3,)
  backbone.vision_config.num_hidden_layers = 24
  backbone.vision_config.patch_size = 14
  config = ensemble_of("openai/clip-vit-large-patch14-336", backbone)
  assert config.to_dict() == recipe("prompt_ensemble").to_dict()


@pytest.mark.parametrize(
  "arguments, expected",
  (
    (
      ["--clip=demo", "--normal", "a scratched tile"],
      "not know the word 'scratched' in 'a photo of a scratched tile .';"
      " choose words of its captions, such as scratch, ",
    ),
    (
      ["--clip=demo", "--workdir=run"],
      "argument --workdir: not allowed with argument --clip",
    ),
    (["--workdir=run", "--normal=good"], "--anomalous need --clip"),
    ([], "one of the arguments --workdir --pretrained --clip is required"),
  ),
)
def test_wrong_arguments_are_reported(arguments, expected, tmp_path, capsys):
  make_image(0).save(tmp_path / "photo.png")
  with pytest.raises(SystemExit) as caught:
    predict.main([str(tmp_path), *arguments])
  assert expected in f"{caught.value} {capsys.readouterr().err}"


def test_texts_need_a_tokenizer_and_at_most_77_tokens():
  backbone = load_clip("demo")
  with pytest.raises(InputError, match="'a a.* has 82 tokens, but CLIP reads"):
    backbone.tokenize(["a " * 80])
  bare = PretrainedCLIP(backbone.config, backbone.params, backbone.tokens, "")
  with pytest.raises(InputError, match="need a tokenizer, but this CLIP"):
    bare.tokenize(["a"])


def test_texts_have_verdicts_without_training(tmp_path, capsys, monkeypatch):
  """Calibration writes texts and thresholds to a folder for other commands."""
  for index in range(4):
    folder = tmp_path / ("good", "bad")[index % 2]
    folder.mkdir(exist_ok=True)
    make_image(index).save(folder / f"{index}.png")
  out, normal, anomalous = tmp_path / "tile", "a clean tile", "a tile, a hole"
  calibrate.main(
    [
      *("--clip=demo", f"--out={out}", "--normal", f"{tmp_path}/good", normal),
      *("--anomalous", f"{tmp_path}/bad/*", "--anomalous", anomalous),
    ]
  )
  text = capsys.readouterr().out
  assert f"used as normal texts (no such files): {normal}\n" in text
  assert "largest balanced accuracy on 2 normal and 2 anomalous images" in text
  assert f"written to {out}/thresholds.json\n" in text

  exported, file = [], tmp_path / "tile.cops"
  file.touch()
  monkeypatch.setattr(
    "cops_jax.export.export",
    lambda detector, out: exported.append(detector) or {"image_size_pixels": 1},
  )
  texts = (f"--normal={normal}", f"--anomalous={anomalous}")
  export.main(["--clip=demo", *texts, f"--out={file}"])
  photos = find_images([str(tmp_path)])
  want = exported[0](photos)

  # The folder must not depend on encoding the texts again, because text
  # features differ in the last digits between machines.
  monkeypatch.setattr(
    prompt_ensemble.PromptEnsemble,
    "_encode_states",
    lambda *_: [jnp.zeros((2, 128))],
  )
  capsys.readouterr()
  predict.main([*map(str, photos), f"--pretrained={out}"])
  rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
  for row, detection in zip(rows, want, strict=True):
    assert row["image_score"] == round(detection.image_score, 6)
    assert row["verdict"] in ("normal", "anomaly")
    assert row["threshold_method"] in text

  (chosen,) = thresholds.read_thresholds(out)
  tiled = dataclasses.replace(chosen, tiles="2x3")
  sentence = publish.write_detector(exported[0], out, tiled)
  assert sentence.endswith("thresholds.json, next to those without tiles")
  assert thresholds.read_thresholds(out) == [chosen, tiled]


@pytest.mark.parametrize(
  "arguments, expected",
  (
    (["--normal", "nowhere"], "needs a folder for its thresholds"),
    (["--out=x", "--normal", "nowhere"], "set either --data or --normal"),
    (["--out=x", "--anomalous", "."], "--anomalous needs normal images too"),
  ),
)
def test_wrong_arguments_of_a_calibration_are_reported(
  arguments, expected, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  make_image(0).save("photo.png")
  with pytest.raises(SystemExit) as ended:
    calibrate.main(["--clip=demo", *arguments])
  assert ended.value.code == 2
  assert expected in capsys.readouterr().err
