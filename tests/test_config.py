"""Fields and their limits, recipes, and recorded configs."""

import os
import pathlib
import shutil
import zipfile

import pytest
from transformers import CLIPConfig

from cops_jax import config as configuration
from cops_jax.errors import InputError
from cops_jax.field_types import Role
from cops_jax.fields import FIELDS
from cops_jax.weights.clip import DEMO_FOLDER, load_clip
from cops_jax.weights.model import build_model
from helpers.scripts import ROOT, start_afresh

# The sizes of the default CLIP and the demo's CLIP, which the checks need.
LARGE_CLIP = CLIPConfig(
  text_config={"num_hidden_layers": 12},
  vision_config={"num_hidden_layers": 24, "patch_size": 14},
  projection_dim=768,
)
DEMO_CLIP = CLIPConfig.from_pretrained(DEMO_FOLDER)


def test_defaults_pass_their_checks():
  config = configuration.default()
  configuration.check_values(config, LARGE_CLIP)
  assert config.is_locked
  assert configuration.flatten(config.to_dict()) == {
    name: field.default for name, field in FIELDS.items()
  }
  assert all(field.comment.endswith(".") for field in FIELDS.values())


@pytest.mark.parametrize(
  "name, value, expected",
  (
    ("seed", -1, "at least 0 and at most 4294967295"),
    ("backbone.dtype", "float16", "one of auto, float32, bfloat16"),
    ("input.max_image_megapixels", 0.0, "at least 1e-06 and below inf"),
    ("train.num_epochs", -1, "at least 0 and at most 2147483647"),
    ("train.batch_size", 10**20, "at least 1 and at most 65536"),
    ("train.batch_size", True, "a whole number"),
    ("train.batch_size", None, "a whole number"),
    ("evaluation.datasets", ("visa", "visa"), "a list without repetition"),
    ("evaluation.datasets", (1,), "a list of texts"),
    ("train.learning_rate", float("nan"), "at least 0 and below inf"),
    ("train.b1", 1.0, "at least 0 and below 1"),
    ("evaluation.beta", 4.5, "at least 0 and at most 1"),
    ("model.image_size_pixels", 50, "a multiple of the patch size 14"),
    ("model.feature_layers", (), "whole numbers from 1 to 24"),
    ("model.feature_layers", (25,), "whole numbers from 1 to 24"),
    ("model.feature_layers", (5.0,), "a list of whole numbers"),
    ("model.feature_layers", (5, 5), "a list without repetition"),
    ("model.num_value_layers", 25, "at most the 24 vision layers"),
    ("model.smoothing_window_patches", 2, "odd"),
    ("model.num_heads", 5, "a divisor of CLIP's joint width 768"),
    ("model.deep_prompt_length", 15, "at most the 14 learned words"),
    ("model.deep_prompt_depth", 12, "less than the 12 text layers"),
    (
      "evaluation.tiles",
      "auto",
      "rows x columns from 1x1 to 8x8, such as 2x3, or empty",
    ),
  ),
)
def test_bad_values_are_reported_in_one_sentence(name, value, expected):
  config = configuration.default()
  config.update_from_flattened_dict({name: value})
  with pytest.raises(InputError) as caught:
    configuration.check_values(config, LARGE_CLIP)
  message = f"config.{name} is {value!r}; it must be {expected}"
  assert str(caught.value) == message


@pytest.mark.parametrize(
  "values, expected",
  (
    ({"method": "padim"}, "'padim'. Choose one of anomalyclip, cops"),
    (
      {"evaluation.tiles": "2x3", "feature_cache.dtype": "float16"},
      "'2x3'.* with feature_cache.dtype 'float16'",
    ),
    (
      {
        "method": "anomalyclip",
        "evaluation.beta": 0.5,
        "model.texts": "demo",
      },
      "'anomalyclip' does not read .*defaults: config.model.texts='photos',"
      " config.evaluation.beta=0.9$",
    ),
    (
      {f"model.num_{w}_words": 0 for w in ("context", "state", "category")},
      "num_context_words is 0.* at least 1",
    ),
  ),
)
def test_values_that_do_not_fit_each_other_are_reported(values, expected):
  config = configuration.default()
  config.update_from_flattened_dict(values)
  with pytest.raises(InputError, match=expected):
    configuration.check_values(config, LARGE_CLIP)


def test_a_config_that_lacks_a_field_is_refused():
  config = configuration.default().copy_and_resolve_references()
  with config.unlocked():
    del config.evaluation.alpha
  with pytest.raises(InputError, match="lacks evaluation.alpha. Start from"):
    configuration.check_values(config, LARGE_CLIP)


def test_a_config_is_checked_before_a_model_is_built(config, clip_folder):
  backbone = load_clip(str(clip_folder))
  config.model.num_heads = 5
  with pytest.raises(InputError, match="a divisor of CLIP's joint width 24"):
    build_model(config, backbone)
  config.model.num_state_words = 0  # Without prototypes there are no heads.
  build_model(config, backbone)


@pytest.mark.parametrize(
  "name, role",
  (
    ("train.learning_rate", Role.TRAINING),
    ("evaluation.alpha", Role.RESULTS),
    ("model.feature_layers", Role.TRAINING | Role.RESULTS),
    ("backbone.weights", Role(0)),
    ("model.forgotten", Role.TRAINING | Role.RESULTS),
  ),
)
def test_a_role_comes_from_the_field_or_its_section(name, role):
  found = [part for part in Role if configuration.decides(name, part)]
  assert found == list(role)


def recorded(**sections):
  """Returns the demo's config as a run records it, with fields replaced."""
  config = configuration.recipe("demo").to_dict()
  for name, values in sections.items():
    config[name] = {**config[name], **values}
  return config


def test_a_recorded_config_is_restored():
  """The recorded config lacks some fields and has JSON's types."""
  old = recorded(train={"learning_rate": 1})
  del old["feature_cache"], old["evaluation"]["alpha"], old["manual_dir"]
  old["model"]["feature_layers"] = [5]
  config = configuration.restore(old, "runs/old", "0.1.0")
  expected = configuration.recipe("demo")
  expected.feature_cache.dtype = "none"  # The default.
  expected.train.learning_rate = 1.0
  assert config.to_dict() == expected.to_dict()
  assert config.is_locked
  config.train.learning_rate = 0.5


@pytest.mark.parametrize(
  "sections, expected",
  (
    ({"model": {"forgotten": 1}}, "'model.forgotten' is unknown"),
    (
      {"model": {"num_heads": "8"}},
      "model.num_heads is '8', not a whole number",
    ),
    (
      {"model": {"num_heads": True}},
      "model.num_heads is True, not a whole number",
    ),
    ({"train": {"b1": None}}, "train.b1 is None, not a number"),
  ),
)
def test_a_config_of_another_version_is_refused(sections, expected):
  with pytest.raises(InputError) as caught:
    configuration.restore(recorded(**sections), "runs/old", "9.9")
  assert str(caught.value) == (
    "runs/old was written by version 9.9, and its config does not fit this"
    f" version: {expected}. Install that version."
  )


@pytest.mark.parametrize("name", configuration.recipe_names())
def test_recipes_pass_their_checks(name):
  config = configuration.recipe(name)
  backbone = DEMO_CLIP if config.backbone.weights == "demo" else LARGE_CLIP
  configuration.check_values(config, backbone)
  assert config.is_locked
  assert config.train.dataset not in config.evaluation.datasets or (
    config.method == "prompt_ensemble"  # This method is not trained.
  )


@pytest.mark.parametrize(
  "recipe, values",
  (
    ("visa", (5, 0.26, 0.9, 10, "none", 6, 24, "visa")),
    ("mvtec", (3, 0.35, 1.0, 5, "pairwise", 6, 24, "mvtec_ad")),
    ("anomalyclip_visa", (5, 0.26, 0.9, 15, "none", 12, 19, "visa")),
    ("anomalyclip_mvtec", (5, 0.26, 0.9, 15, "none", 12, 19, "mvtec_ad")),
  ),
)
def test_cops_and_anomalyclip_recipes_have_the_papers_values(recipe, values):
  config = configuration.recipe(recipe)
  model, train = config.model, config.train
  assert values == (
    *(model.smoothing_window_patches, config.evaluation.alpha),
    *(config.evaluation.beta, train.num_epochs, train.reconstruction),
    *(model.num_context_words, model.num_value_layers, train.dataset),
  )
  optimizer = train.batch_size, train.learning_rate, train.b1, train.b2
  assert optimizer == (8, 1e-3, 0.5, 0.999)
  assert (model.deep_prompt_length, model.deep_prompt_depth) == (4, 8)


@pytest.mark.parametrize("auxiliary", ("visa", "mvtec"))
@pytest.mark.parametrize(
  "kind, size", (("clip", 518), ("dinov2", 518), ("dinov3", 512))
)
def test_uniadet_recipes_have_the_papers_values(auxiliary, kind, size):
  config = configuration.recipe(f"uniadet_{auxiliary}:{kind}")
  assert config.backbone.kind == kind
  assert config.model.image_size_pixels == size
  assert config.model.feature_layers == (12, 15, 18, 21, 24)
  train, evaluation = config.train, config.evaluation
  assert (train.num_epochs, train.batch_size, train.learning_rate) == (
    15,
    8,
    1e-3,
  )
  assert (evaluation.beta, evaluation.blur_sigma_pixels) == (0.5, 4.0)


def test_recipes_are_read_from_any_file(tmp_path):
  visa = configuration.recipe("visa").to_dict()
  assert configuration.recipe(f"{ROOT}/configs/visa.py").to_dict() == visa
  no_vae = configuration.recipe("ablations:no_vae")
  assert no_vae.model.num_category_words == 0
  path = tmp_path / "mine.py"
  for content, expected in (
    ("from nowhere import get_config", "mine.py does not return a config: Mod"),
    ("get_configs = dict", "mine.py does not return a config: KeyE"),
    (
      "from cops_jax.config import default\n"
      "def get_config():\n  config = default()\n  config.train.epochs = 3",
      'Did you mean "num_epochs"',
    ),
  ):
    path.write_text(content)
    with pytest.raises(InputError, match=expected):
      configuration.recipe(str(path))
  with pytest.raises(InputError, match="none.py cannot be read: No such file"):
    configuration.recipe(f"{tmp_path}/none.py")
  with pytest.raises(InputError, match="visa.*; the recipes .*, mvtec, "):
    configuration.recipe("vsia")


BUILD = "from setuptools import build_meta; build_meta.build_wheel('.')"
SHOW = """
import cops_jax
from cops_jax.config import recipe, recipe_names

print(cops_jax.__file__, recipe("mvtec").train.dataset, *recipe_names())
"""


def test_recipes_are_in_the_wheel(tmp_path):
  """An installed package works even if scripts of a clone are run."""
  source, installed = tmp_path / "source", tmp_path / "installed"
  skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
  for name in ("cops_jax", "configs"):
    shutil.copytree(ROOT / name, source / name, ignore=skipped)
  for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  with start_afresh("-c", BUILD, cwd=source) as process:
    _, err = process.communicate()
  assert process.returncode == 0, err
  (wheel,) = source.glob("*.whl")
  with zipfile.ZipFile(wheel) as file:
    file.extractall(installed)
  variables = {**os.environ, "PYTHONPATH": str(installed)}
  for folder, package in ((tmp_path, installed), (ROOT, ROOT)):
    with start_afresh("-c", SHOW, cwd=folder, env=variables) as process:
      path, dataset, *names = process.communicate()[0].split()
    assert pathlib.Path(path).parents[1] == package
    assert dataset == "mvtec_ad" and names == configuration.recipe_names()
