"""Published prompts: the folder, its card, and the commands that use it."""

import dataclasses
import importlib
import json
import logging
import os
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard

from cops_jax import publish, thresholds, training
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.evaluation.results import Evaluated, mean_metrics
from cops_jax.reporting.tables import results_json
from cops_jax.reporting.tables import write_results as write_files
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.record import Record, claim_workdir, read_record
from cops_jax.thresholds import Thresholds
from cops_jax.weights import pretrained
from helpers import hub
from helpers.images import make_image
from helpers.made_results import FIRST, SECOND, make_result


@pytest.fixture(autouse=True)
def _messages(monkeypatch):
  """Lets pytest capture the messages that commands print."""
  monkeypatch.setattr(logging.getLogger("cops_jax"), "propagate", True)


@pytest.fixture
def workdir(published, tmp_path):
  """A copy of the published run's directory."""
  return shutil.copytree(published.parent / "run", tmp_path / "run")


def call(command, *arguments):
  module = importlib.import_module(f"cops_jax.commands.{command}")
  return module.main([str(argument) for argument in arguments])


def newest_step(workdir):
  return max(int(path.name) for path in (workdir / "checkpoints").iterdir())


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def provenance(workdir):
  record = read_record(workdir)
  return {
    "version": "1.2",
    "checkpoint": "step 3 of /secret/run",
    "prompts_sha256": thresholds.read_thresholds(workdir)[0].prompts_sha256,
    "backbone_sha256": record.backbone_sha256,
    "config": record.to_config("").to_dict(),
    "versions": {"jax": "0.0"},
    "device": "1 x cpu",
  }


def write_results(workdir, names=("made",), **changes):
  results = {name: make_result(FIRST, SECOND) for name in names}
  values = provenance(workdir) | changes
  failed = {"folder:/secret/x": "broken"}
  write_files(workdir, Evaluated(results, {"btad": "absent"}, failed, values))


def test_published_prompts_detect_what_the_run_detects(
  workdir, published, tmp_path
):
  assert set(contents(published)) == set(pretrained.FILES)
  images = [make_image(seed) for seed in range(3)]
  detector = AnomalyDetector.from_pretrained(published)
  wanted = AnomalyDetector.from_workdir(workdir)
  assert detector.thresholds == wanted.thresholds != []
  for got, want in zip(detector(images), wanted(images), strict=True):
    assert got.image_score == want.image_score
    np.testing.assert_array_equal(got.anomaly_map, want.anomaly_map)


def test_publishing_again_replaces_the_earlier_files(
  workdir, published, clip_folder, tmp_path, caplog
):
  """The run has no thresholds, no results and a local CLIP."""
  out = shutil.copytree(published, tmp_path / "tiny")
  (out / ".gitattributes").write_text("kept")
  (workdir / "thresholds.json").unlink()
  assert publish.publish(workdir, out) == (
    f"wrote the prompts of step {newest_step(workdir)} of {workdir} to {out}\n"
    f"Check {out}/README.md, above all the licence, and then run"
    f" `hf upload OWNER/tiny {out}`"
  )
  assert not (out / "thresholds.json").exists()
  assert (out / ".gitattributes").read_text() == "kept"
  assert AnomalyDetector.from_pretrained(out).thresholds == []
  text = (out / "README.md").read_text()
  for part in (
    "These prompts were not evaluated.",
    "so their accuracy is unknown.",
    "No thresholds were chosen, so there are scores and anomaly maps but no v",
  ):
    assert part in text
  assert "no results because the run was not evaluated" in caplog.text
  warning = f"the folder names the backbone {clip_folder}, which other"
  assert warning in caplog.text


def test_a_folder_with_other_files_is_not_overwritten(workdir, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  (out / "config.json").write_text('{"model_type": "clip"}')
  with pytest.raises(InputError, match="out contains files other .* folder$"):
    publish.publish(workdir, out)
  with pytest.raises(InputError, match="json is not a folder .* Not a dir"):
    publish.publish(workdir, out / "config.json")
  assert set(contents(out)) == {"config.json"}


def test_a_failed_write_changes_nothing(workdir, published, tmp_path):
  out = shutil.copytree(published, tmp_path / "tiny")
  (out / "README.md").unlink()
  (out / "README.md").mkdir()  # A file cannot replace a folder.
  (workdir / "thresholds.json").unlink()
  before = sorted(os.listdir(out)), (out / "thresholds.json").read_bytes()
  with pytest.raises(InputError, match="README.md cannot be written"):
    publish.publish(workdir, out)
  after = sorted(os.listdir(out)), (out / "thresholds.json").read_bytes()
  assert after == before


def test_unpublishable_runs_are_refused(workdir, config, tmp_path):
  with pytest.raises(SystemExit) as ended:
    call("weights", "publish", f"--workdir={tmp_path}", "--out=x")
  assert "Train first: cops train" in str(ended.value)
  with pytest.raises(InputError, match="run was trained on weights with"):
    publish.publish(workdir, tmp_path / "out", "demo")
  shutil.rmtree(workdir / "checkpoints")
  with pytest.raises(InputError, match="run has no checkpoint yet"):
    publish.publish(workdir, tmp_path / "out")
  with config.unlocked():
    config.method = "prompt_ensemble"
  record = Record(config.to_dict(), "0" * 64)
  claim_workdir(tmp_path / "ensemble", record)
  with pytest.raises(InputError, match="no prompts to publish: .* trains noth"):
    publish.publish(tmp_path / "ensemble", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_the_card_describes_the_run_and_its_results(workdir, tmp_path, caplog):
  write_results(workdir)
  publish.publish(workdir, tmp_path / "tiny")
  card = ModelCard.load(tmp_path / "tiny" / "README.md")
  assert card.data.to_dict() == {
    "license": "apache-2.0",
    "library_name": "cops_jax",
    "pipeline_tag": "image-segmentation",
    "tags": ["anomaly-detection", "zero-shot", "clip", "jax", "cops"],
  }
  text = card.text
  means = mean_metrics([FIRST, SECOND])
  assert f"| made | 1 | 1 | {100 * means['image_auroc']:.1f} |" in text
  assert "They were computed by cops_jax 1.2 on 1 x cpu." in text
  values = provenance(workdir)
  for part in (
    *(values["prompts_sha256"], values["backbone_sha256"]),
    *(read_record(workdir).data_sha256, "generated for cops_jax, free to use"),
    'AnomalyDetector.from_pretrained("OWNER/tiny", backbone="BACKBONE")',
    "| seed | 0 |",
    f"| checkpoint | step {newest_step(workdir)} |",
    "An image with a score of 0.5000 or higher is called an anomaly. Pixels of"
    " 0.2500 or higher in the anomaly map form regions. How these thresholds"
    " were chosen: by hand.",
    "evaluated only on made. Their accuracy on other images is unknown.",
    "Not evaluated: btad, x.",
    "Images of made that could not be read and were skipped: 1.",
  ):
    assert part in text, part
  assert "secret" not in text


def test_thresholds_and_results_of_other_prompts_are_not_published(
  workdir, tmp_path, caplog
):
  write_results(workdir, prompts_sha256="0" * 64)
  (workdir / "thresholds.json").unlink()
  chosen = Thresholds(0.4, 0.2, "for others", "0" * 64)
  thresholds.write_thresholds(workdir, chosen)
  publish.publish(workdir, tmp_path / "tiny")
  assert set(contents(tmp_path / "tiny")) == (
    set(pretrained.FILES) - {"thresholds.json"}
  )
  text = (tmp_path / "tiny" / "README.md").read_text()
  assert "These prompts were not evaluated." in text
  assert "for others" not in text
  assert "results.json comes from other prompts" in caplog.text
  assert "do not apply: they were chosen for other prompts" in caplog.text


def test_thresholds_of_other_prompts_are_not_used(published, tmp_path, caplog):
  folder = shutil.copytree(published, tmp_path / "folder")
  (folder / "thresholds.json").unlink()
  thresholds.write_thresholds(
    folder, Thresholds(0.4, 0.2, "for others", "0" * 64)
  )
  assert AnomalyDetector.from_pretrained(folder).thresholds == []
  assert "do not apply: they were chosen for other prompts" in caplog.text
  (folder / "thresholds.json").write_text("{}")
  with pytest.raises(InputError, match="thresholds.json is damaged"):
    AnomalyDetector.from_pretrained(folder)


def change_record(workdir, init_from="", **fields):
  record = read_record(workdir)
  config = record.to_config("")
  config.update_from_flattened_dict(fields)
  changed = dataclasses.replace(
    record, config=config.to_dict(), init_from=init_from
  )
  (workdir / "run.json").write_text(changed.to_json())


def test_local_paths_are_not_published(
  workdir, clip_folder, tmp_path, monkeypatch, caplog
):
  hub.fill_cache(tmp_path, "some/clip", {"main": clip_folder}, monkeypatch)
  places = {
    "data_dir": "/secret/data",
    "manual_dir": "/secret/manual",
    "features_dir": "gs://secret/features",
    "train.dataset": "folder:/secret/screws/",
    "evaluation.datasets": ("meta_json:/secret/nuts", "visa"),
  }
  change_record(workdir, "gs://secret/start", **places)
  publish.publish(workdir, tmp_path / "tiny", "some/clip")
  assert "which other people do not have" not in caplog.text
  for name, content in contents(tmp_path / "tiny").items():
    for place in (b"secret", bytes(clip_folder.parent)):
      assert place not in content, name
  detector = AnomalyDetector.from_pretrained(tmp_path / "tiny")
  assert detector.config.backbone.weights == "some/clip"
  assert detector.config.train.dataset == "folder:screws"
  assert detector.config.evaluation.datasets == ("meta_json:nuts", "visa")
  card = ModelCard.load(tmp_path / "tiny" / "README.md")
  assert card.data.base_model == "some/clip"
  assert card.data.license == "other"
  assert "other trained prompts, start. The data of" in card.text


@pytest.mark.parametrize(
  "dataset, licence, text",
  (
    ("visa", "cc-by-4.0", "| licence of the data | CC BY 4.0 |"),
    ("mvtec_ad", "cc-by-nc-sa-4.0", "CC BY-NC-SA 4.0, not for commercial use"),
    ("head_ct", "other", "| licence of the data | see the home page |"),
  ),
)
def test_the_card_states_the_licence_of_the_data(
  workdir, dataset, licence, text
):
  change_record(workdir, **{"train.dataset": dataset})
  record = read_record(workdir)
  results = {name: make_result(FIRST) for name in ("btad", dataset, "endo")}
  notes = ["2 images fewer", "/secret/a.txt is no image"]
  results["btad"] = dataclasses.replace(results["btad"], notes=notes)
  values = provenance(workdir)
  values["config"]["evaluation"]["beta"] = 0.25
  card = ModelCard(
    publish.make_card(
      record,
      name="tiny",
      step=3,
      prompts_sha256="0" * 64,
      hub_backbone="openai/clip",
      results=results_json(Evaluated(results, {}, {}, values)),
    )
  )
  assert (card.data.license, card.data.datasets) == (licence, [dataset])
  assert card.data.base_model == "openai/clip"
  assert card.data.base_model_relation == "adapter"
  assert text in card.text
  assert f"were trained on {dataset}, so its row says nothing" in card.text
  assert "- btad: 2 images fewer." in card.text and "secret" not in card.text
  assert "with evaluation.beta = 0.25, unlike `config.json`" in card.text
  assert "| overall mean | " in card.text


def test_published_prompts_and_their_run_predict_the_same(
  published, workdir, tmp_path, capsys
):
  make_image(0).save(tmp_path / "a.png")
  lines = []
  for flag in (f"--pretrained={published}", f"--workdir={workdir}"):
    call("predict", tmp_path / "a.png", flag)
    lines.append(json.loads(capsys.readouterr().out))
  assert lines[0] == lines[1] and lines[0]["threshold"] == 0.5


def test_calibrate_adds_thresholds_to_a_folder_or_a_copy(
  published, tmp_path, capsys, monkeypatch
):
  images = tmp_path / "photos"
  images.mkdir()
  for seed in range(3):
    make_image(seed).save(images / f"{seed}.png")
  folder = shutil.copytree(published, tmp_path / "here")
  hub.fill_cache(tmp_path, "some/tiny", {"main": published}, monkeypatch)
  for name, out in ((folder, ()), ("some/tiny", (f"--out={tmp_path}/copy",))):
    call("calibrate", f"--pretrained={name}", "--normal", images, *out)
    shown = capsys.readouterr().out
    place = tmp_path / "copy" if out else folder
    assert f"written to {place / 'thresholds.json'}" in shown
    (found,) = AnomalyDetector.from_pretrained(place).thresholds
    assert "reached by 0 of 3 normal images" in found.method
    text = (place / "README.md").read_text()
    assert f"were chosen: {found.method}." in text and "by hand" not in text
  assert contents(folder) == contents(tmp_path / "copy")
  assert (
    pretrained.find("some/tiny").with_name("README.md").read_bytes()
    == (published / "README.md").read_bytes()
  )
  for flags, expected in (
    (("--pretrained=some/tiny",), "some/tiny is not a local folder: set"),
    ((f"--workdir={tmp_path}", "--out=x"), "--out does not apply to --workdir"),
  ):
    with pytest.raises(SystemExit) as ended:
      call("calibrate", *flags, "--normal", images)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_the_page_loads_published_prompts(published, tmp_path):
  from cops_jax.commands import demo

  make_image(0).save(tmp_path / "good.png")
  options = demo._parser().parse_args(
    [f"--pretrained={published}", f"--normal_images={tmp_path}"]
  )
  ((detector, about),) = demo._load_models(options)
  assert detector.thresholds[0].method == "by hand"
  assert detector.num_normal_images == 1
  assert about.startswith(
    f"Prompts of {published}, with reference images (1), on CLIP"
  )


def test_training_can_start_from_published_prompts(
  published, config, tmp_path, monkeypatch
):
  hub.fill_cache(tmp_path, "some/tiny", {"main": published}, monkeypatch)
  config.train.num_epochs = 0
  digest = thresholds.read_thresholds(published)[0].prompts_sha256
  for index, name in enumerate(("some/tiny", published)):
    workdir = tmp_path / str(index)
    training.train(config, workdir, init_from=name)
    assert read_record(workdir).init_from == str(name)
    with Checkpoints(workdir) as saved:
      _, trained = saved.restore_params()
    assert publish.prompts.hash_prompts(trained) == digest
  shutil.rmtree(tmp_path / "models--some--tiny")  # It is not read again.
  training.train(config, tmp_path / "0", init_from="some/tiny")
  with pytest.raises(
    InputError, match="'some/no' is neither a file or folder here nor"
  ):
    training.train(config, tmp_path / "new", init_from="some/no")
  assert not (tmp_path / "new").exists()
