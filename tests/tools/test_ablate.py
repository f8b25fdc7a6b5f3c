"""Every ablation trained and evaluated: its part is gone, the rest is not."""

import csv
import json
import math
import pathlib
import shutil

import chex
import flax.traverse_util
import jax
import pytest
from matplotlib.figure import Figure

from configs import ablations
from cops_jax import reporting, training
from cops_jax.errors import InputError
from cops_jax.evaluation import many
from cops_jax.runs import metrics_log
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.weights import inspection, prompts
from helpers.images import write_folder
from helpers.scripts import run
from tools import ablate

TERMS = ("image", "patch", "gather", "scatter", "kl", "reconstruction")
# What is missing of the parameters and of the terms. Runs without smoothing are
# everywhere in these tests, and the weighting takes no part in training.
ABSENT = {
  "full": ((), ()),
  "no_prototypes": (("prototype_extractor",), ("gather", "scatter")),
  "no_vae": (("category_vae",), ("kl", "reconstruction")),
  "no_deep_prompts": (("prompt_learner.deep_prompts",), ()),
  "no_value_path": ((), ()),
}


@pytest.fixture(scope="module")
def base(clip_folder, data_dir, tmp_path_factory):
  from helpers.config import make_config

  config = make_config(clip_folder, data_dir)
  folder = tmp_path_factory.mktemp("images")
  config.train.dataset = write_folder(folder / "nuts", 15)
  config.evaluation.datasets = (write_folder(folder / "bolts", 15),)
  config.train.batch_size = 3
  config.model.smoothing_window_patches = 3
  config.train.reconstruction = "pairwise"
  config.feature_cache.dtype = "float32"
  config.features_dir = str(tmp_path_factory.mktemp("features"))
  return config.lock()


@pytest.fixture(scope="module")
def ablated(base, tmp_path_factory):
  """A directory of all ablations and their means; one fails at first."""
  workdir = tmp_path_factory.mktemp("ablations")
  in_the_way = workdir / "no_vae"
  in_the_way.write_text("no directory")
  names = list(ABSENT)
  means, failures = ablate.run_all(base, workdir, names, [0])
  assert means.pop("no_vae") == {}
  assert means.keys() == set(names) - {"no_vae"} and all(means.values())
  assert list(failures) == ["no_vae with seed 0"]
  assert "cannot be written: " in failures["no_vae with seed 0"]

  in_the_way.unlink()
  times = finished_times(workdir)
  assert len(times) == len(names) - 1
  again, failures = ablate.run_all(base, workdir, names, [0])
  assert not failures
  new = again.pop("no_vae")
  assert again == means and again["full"].keys() == new.keys() == {0}
  assert times.items() < finished_times(workdir).items()
  return workdir, {**again, "no_vae": new}


def finished_times(workdir):
  return {
    path.parent: path.stat().st_mtime_ns
    for path in workdir.glob("*/seed-0/finished.json")
  }


def parameters(workdir):
  with Checkpoints(workdir) as saved:
    params = jax.device_get(saved.restore_params()[1])
  return flax.traverse_util.flatten_dict(params, sep=".")


@pytest.mark.parametrize("name", ABSENT)
def test_a_part_is_neither_trained_nor_computed(ablated, name):
  workdir = ablated[0] / name / "seed-0"
  absent_params, absent_terms = ABSENT[name]
  full, rest = parameters(ablated[0] / "full" / "seed-0"), parameters(workdir)
  assert rest.keys() == {
    key for key in full if not key.startswith(absent_params)
  }
  # Two words of the context are the prototypes' or the VAE's.
  num_words = {"no_prototypes": 8, "no_vae": 12}.get(name, 14)
  assert rest["prompt_learner.context"].shape == (2, num_words, 24)

  rows = metrics_log.read_metrics(workdir)
  terms = [term for term in TERMS if term not in absent_terms]
  assert rows[-1]["step"] == 5
  for row in rows:
    assert row.keys() == {"step", "loss", *terms, "gradient_norm"}
    assert all(map(math.isfinite, row.values()))
    total = 3 * row["patch"] + sum(row[term] for term in terms)
    assert row["loss"] == pytest.approx(total, rel=1e-5)

  mean = ablated[1][name][0]["bolts"]
  assert mean.keys() >= {"image_auroc", "image_ap", "pixel_auroc", "pixel_ap"}
  assert all(0 < value < 1 for value in mean.values())
  if name != "full":
    assert mean != ablated[1]["full"][0]["bolts"]


def test_without_distance_weighting_alpha_has_no_effect(
  base, ablated, tmp_path
):
  full = ablated[0] / "full" / "seed-0"
  scores = [(full / "scores.csv").read_text()]
  config = ablations.ablate(base, "no_distance_weighting")
  config = config.copy_and_resolve_references()
  for alpha in (0.1, 0.9):
    config.evaluation.alpha = alpha
    evaluated = many.evaluate(config, tmp_path, checkpoint=full)
    reporting.write(tmp_path, evaluated)
    scores.append((tmp_path / "scores.csv").read_text())
  assert scores[0] != scores[1] == scores[2]


def test_features_are_computed_once_for_all_but_the_value_path(base, ablated):
  folders = [path.name for path in pathlib.Path(base.features_dir).iterdir()]
  names = sorted(folder.rpartition("-")[0] for folder in folders)
  assert names == 2 * ["bolts"] + 2 * ["nuts"]


@pytest.mark.parametrize("name", ("no_prototypes", "no_vae", "no_deep_prompts"))
def test_prompts_go_into_files_and_back(ablated, tmp_path, name):
  workdir = ablated[0] / name / "seed-0"
  path = tmp_path / "prompts.safetensors"
  prompts.export(str(workdir), str(path))
  assert "trained prompts in this project's names" in inspection.inspect(
    str(path)
  )
  with Checkpoints(workdir) as saved:
    params = jax.device_get(saved.restore_params()[1])
  actual, _ = prompts.load_prompts(path, params)
  chex.assert_trees_all_equal(actual, params)

  theirs = tmp_path / "prompts.pth"
  if name == "no_deep_prompts":
    prompts.export(str(workdir), str(theirs))
    actual, _ = prompts.load_prompts(theirs, params)
    chex.assert_trees_all_equal(actual, params)
    return
  with pytest.raises(
    InputError, match="authors' format has no prompts without"
  ):
    prompts.export(str(workdir), str(theirs))
  assert not theirs.exists()
  prompts.export(str(ablated[0] / "full" / "seed-0"), str(theirs))
  with pytest.raises(
    InputError, match="authors' format has no prompts without"
  ):
    prompts.load_prompts(theirs, params)


def test_another_model_is_refused(base, ablated, tmp_path):
  """As a run to go on with, and as prompts to begin from."""
  config = ablations.ablate(base, "no_vae")
  full = ablated[0] / "full" / "seed-0"
  with pytest.raises(InputError, match="num_category_words is 2 there and 0"):
    training.train(config, full)
  path = tmp_path / "prompts.safetensors"
  prompts.export(str(full), str(path))
  with pytest.raises(InputError, match="(?s)unexpected.*category_vae.decoder"):
    training.train(config, tmp_path / "run", init_from=path)
  config = ablations.ablate(base, "full")
  prompts.export(str(ablated[0] / "no_vae" / "seed-0"), str(path))
  with pytest.raises(InputError, match="(?s)missing.*category_vae.decoder"):
    training.train(config, tmp_path / "run", init_from=path)


def test_an_interrupted_run_goes_on(base, ablated, tmp_path):
  whole, halved = ablated[0] / "no_vae" / "seed-0", tmp_path / "run"
  shutil.copytree(whole, halved)
  shutil.rmtree(halved / "checkpoints" / "5")
  training.train(ablations.ablate(base, "no_vae"), halved)
  chex.assert_trees_all_equal(parameters(halved), parameters(whole))
  assert metrics_log.read_metrics(halved) == metrics_log.read_metrics(whole)


def test_the_command(base, ablated, arguments):
  """All is finished, so that only the table is made."""
  workdir, means = ablated
  overrides = {
    "train.dataset": base.train.dataset,
    "train.batch_size": 3,
    "evaluation.datasets": base.evaluation.datasets,
    "model.smoothing_window_patches": 3,
    "train.reconstruction": "pairwise",
    "feature_cache.dtype": "float32",
    "features_dir": base.features_dir,
  }
  arguments = [
    *("-m", "tools.ablate"),
    *arguments,
    *(f"--config.{name}={value}" for name, value in overrides.items()),
    f"--workdir={workdir}",
    f"--only={','.join(ABSENT)}",
  ]
  code, out, err = run(*arguments)
  assert code == 0, err
  assert "training on" not in err
  assert "run 5 of 5: no_value_path with seed 0" in err
  table = (workdir / "ablations.txt").read_text()
  assert out == f"{table}plot: {workdir / 'ablations.png'}\n"
  lines = table.splitlines()
  assert [line.split()[1] for line in lines[1:]] == list(ABSENT)
  assert (workdir / "ablations.png").read_bytes().startswith(b"\x89PNG")

  value = means["no_vae"][0]["bolts"]["image_auroc"]
  difference = value - means["full"][0]["bolts"]["image_auroc"]
  row = next(line for line in lines if "no_vae" in line).split()
  assert row[2:5] == ["1", f"{100 * value:.1f}", f"{100 * difference:+.1f}"]
  rows = list(
    csv.DictReader((workdir / "ablations.csv").read_text().splitlines())
  )
  assert float(rows[2]["image_auroc_difference"]) == difference
  content = json.loads((workdir / "ablations.json").read_text())
  assert content["runs"]["no_vae"]["0"] == means["no_vae"][0]
  assert content["rows"][2]["image_auroc"] == value
  assert content["overrides"] == {
    name: ablations.ABLATIONS[name] for name in ABSENT
  }

  code, _, err = run(*arguments, "--only=full,no_clip")
  assert code == 1
  assert (
    "error: 'no_clip' is not an ablation; the ablations are full, no_prototypes"
    in err
  )
  assert (workdir / "ablations.txt").read_text() == table


def test_statistics_over_seeds():
  def means(image_auroc, **more):
    return {"screws": {"image_auroc": image_auroc, **more}}

  rows = ablate.compare(
    {
      "full": {0: means(0.8, pixel_ap=0.5), 1: means(0.9, pixel_ap=0.3)},
      "no_vae": {1: means(0.7)},
      "no_smoothing": {},
    }
  )
  assert rows[0] == pytest.approx(
    {
      **{"dataset": "screws", "ablation": "full", "num_seeds": 2},
      **{"image_auroc": 0.85, "image_auroc_std": 0.005**0.5},
      **{"pixel_ap": 0.4, "pixel_ap_std": 0.02**0.5},
    }
  )
  # Against the full model of the same seed.
  assert rows[1] == pytest.approx(
    {
      **{"dataset": "screws", "ablation": "no_vae", "num_seeds": 1},
      **{"image_auroc": 0.7, "image_auroc_difference": -0.2},
    }
  )
  assert rows[2]["num_seeds"] == 0
  table = ablate.format_table(rows)
  assert "85.0 ± 7.1" in table and "-20.0" in table and "n/a" in table


def test_the_plot_has_a_legend_and_a_row_for_each_kind_of_metric(monkeypatch):
  def run(value, **more):
    return {"screws": {"image_auroc": value, "image_ap": value, **more}}

  means = {
    "full": {0: run(0.8, pixel_ap=0.5), 1: run(0.9, pixel_ap=0.3)},
    "no_vae": {1: run(0.7)},
  }
  figures = []
  save = Figure.savefig

  def note(self, *args, **kwargs):
    figures.append(self)
    save(self, *args, **kwargs)

  monkeypatch.setattr(Figure, "savefig", note)
  assert ablate.plot(means, ablate.compare(means)).startswith(b"\x89PNG")
  (figure,) = figures
  titles = {
    axis.get_title(): axis.get_subplotspec().rowspan.start
    for axis in figure.axes
  }
  assert titles == {"image AUROC, %": 0, "image AP, %": 0, "pixel AP, %": 1}
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == [
    "a seed",
    "mean of the seeds",
    "full model's mean",
  ]


def test_the_configs_by_name():
  full = ablations.get_config().to_dict()
  assert full == ablations.get_config("full").to_dict()
  for name, overrides in ablations.ABLATIONS.items():
    config = ablations.get_config(name)
    assert config.is_locked
    changed = config.to_dict()
    for field, value in overrides.items():
      section, key = field.split(".")
      assert changed[section][key] == value != full[section][key]
      changed[section][key] = full[section][key]
    assert changed == full
  with pytest.raises(InputError, match="'no_clip' is not an ablation"):
    ablations.get_config("no_clip")
  code, _, err = run(
    "train.py", "--config=configs/ablations.py:no_clip", "--workdir=none"
  )
  assert code == 1 and err.startswith(
    "error: 'no_clip' is not an ablation; the"
  )
