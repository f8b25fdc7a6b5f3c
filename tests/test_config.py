"""The table of fields, the recipes, restored configs and values that fail."""

import importlib

import pytest
from transformers import CLIPConfig

from cops_jax import config as configuration
from cops_jax import methods, weights
from cops_jax.config import FIELDS, RECIPES, Role
from cops_jax.errors import InputError
from cops_jax.weights import build_model
from helpers.scripts import ROOT, run

# The sizes of the defaults' CLIP that checks ask for.
LARGE_CLIP = CLIPConfig(
  text_config={"num_hidden_layers": 12},
  vision_config={"num_hidden_layers": 24, "patch_size": 14},
  projection_dim=768,
)
# For each field with a check, a value that must fail, and what it must be.
BAD_VALUES = {
  "method": ("padim", "one of anomalyclip, cops, prompt_ensemble"),
  "seed": (-1, "from 0 to 2**32 - 1"),
  "feature_cache.dtype": (
    "int8",
    "one of none, float32, bfloat16, float16",
  ),
  "input.num_workers": (-1, "at least 0"),
  "input.unreadable_files": ("ignore", "one of error, skip"),
  "input.max_image_megapixels": (0.0, "above 0"),
  "clip.dtype": ("float16", "auto, float32 or bfloat16"),
  "clip.attention": (
    "flash",
    "one of auto, xla, heads, cudnn, splash",
  ),
  "model.image_size_pixels": (50, "a multiple of the patch size 14"),
  "model.feature_layers": ((25,), "whole numbers from 1 to 24"),
  "model.num_value_layers": (25, "from 0 to 24"),
  "model.smoothing_window_patches": (2, "odd"),
  "model.num_heads": (5, "a divisor of the joint width 768"),
  "model.num_context_words": (-1, "at least 0"),
  "model.num_state_words": (-1, "at least 0"),
  "model.num_category_words": (-1, "at least 0"),
  "model.deep_prompt_length": (15, "at most the 14 learned words"),
  "model.deep_prompt_depth": (12, "less than the 12 text layers"),
  "model.prototype_injection": ("both", "one of crossed, matched"),
  "model.deep_prompt_cast": ("int8", "one of float16, none"),
  "model.temperature": (0.0, "above 0"),
  "train.num_epochs": (-1, "at least 0"),
  "train.batch_size": (0, "at least 1"),
  "train.accumulate_steps": (0, "at least 1"),
  "train.learning_rate": (-1.0, "from 0 to below inf"),
  "train.b1": (1.0, "from 0 to below 1"),
  "train.b2": (1.0, "from 0 to below 1"),
  "train.eps": (0.0, "from 1e-30 to below 1"),
  "train.reconstruction": ("all", "one of pairwise, matched, none"),
  "train.log_every_steps": (0, "at least 1"),
  "train.checkpoint_every_steps": (0, "at least 1"),
  "train.evaluate_every_steps": (-1, "at least 0"),
  "train.num_kept_checkpoints": (0, "at least 1"),
  "evaluation.batch_size": (-1, "at least 0"),
  "evaluation.num_samples": (0, "at least 1"),
  "evaluation.alpha": (-0.1, "from 0 to 1"),
  "evaluation.beta": (4.5, "from 0 to 1"),
  "evaluation.tiles": (
    "auto",
    'rows x columns from 1x1 to 8x8, such as 2x3, or ""',
  ),
  "evaluation.pixel_metrics": ("all", "one of binned, exact"),
  "evaluation.num_pictures": (-1, "at least 0"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_says_what_it_is(name):
  field = FIELDS[name]
  assert field.comment.endswith((".", '."'))
  assert isinstance(field.role, Role)
  # What is cached is what training and results are made of.
  if Role.FEATURES in field.role:
    assert field.role == Role.TRAINING | Role.RESULTS | Role.FEATURES


def test_defaults_pass_their_checks():
  config = configuration.default()
  configuration.check_values(config, LARGE_CLIP)
  assert config.is_locked
  assert configuration.flatten(config.to_dict()) == {
    name: field.default for name, field in FIELDS.items()
  }


def test_every_check_has_a_value_that_fails_it():
  assert BAD_VALUES.keys() == {
    name for name, field in FIELDS.items() if field.checks
  }


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_values_are_reported_in_one_sentence(name):
  value, expected = BAD_VALUES[name]
  config = configuration.default()
  if name in methods.unread_fields("cops"):
    config.method = "anomalyclip"
  config.update_from_flattened_dict({name: value})
  with pytest.raises(InputError) as caught:
    configuration.check_values(config, LARGE_CLIP)
  assert str(caught.value) == (
    f"config.{name} is {value!r}; with CLIP"
    f" 'openai/clip-vit-large-patch14-336' it must be {expected}"
  )


def test_tiles_have_no_cached_features():
  config = configuration.default()
  config.evaluation.tiles = "2x3"
  configuration.check_values(config, LARGE_CLIP)
  config.feature_cache.dtype = "float16"
  with pytest.raises(InputError, match="'2x3'.* with feature_cache.dtype 'flo"):
    configuration.check_values(config, LARGE_CLIP)


def test_a_field_of_another_method_is_refused():
  config = configuration.default()
  config.method = "anomalyclip"
  configuration.check_values(config, LARGE_CLIP)
  config.evaluation.beta = 0.5
  with pytest.raises(InputError) as caught:
    configuration.check_values(config, LARGE_CLIP)
  assert str(caught.value) == (
    "config.evaluation.beta is 0.5, and the method 'anomalyclip' does not read"
    " it: leave it at 0.9"
  )


def test_fields_of_methods_are_fields():
  for name in methods.names():
    method = methods.find(name)
    assert isinstance(method, methods.Method)
    assert set(method.FIELDS) <= FIELDS.keys()
  with pytest.raises(InputError, match="'padim'; the methods are anomalyclip"):
    methods.find("padim")


def test_a_config_that_lacks_a_field_is_refused():
  config = configuration.default().copy_and_resolve_references()
  with config.unlocked():
    del config.evaluation.alpha
  with pytest.raises(InputError, match="lacks evaluation.alpha: begin with"):
    configuration.check_values(config, LARGE_CLIP)


def recorded(**sections):
  """The demo's config as a run recorded it, with fields replaced."""
  config = configuration.recipe("demo").to_dict()
  for name, values in sections.items():
    config[name] = {**config[name], **values}
  return config


def test_an_older_runs_config_is_restored():
  """From before the feature cache's section, and from before alpha."""
  old = recorded(train={"learning_rate": 1})
  del old["feature_cache"], old["evaluation"]["alpha"], old["manual_dir"]
  old["model"]["feature_layers"] = [5]
  config = configuration.restore(old, "runs/old", "0.1.0")
  expected = configuration.recipe("demo")
  expected.feature_cache.dtype = "none"  # The default of a run without it.
  expected.train.learning_rate = 1.0
  assert config.to_dict() == expected.to_dict()
  assert config.is_locked
  config.train.learning_rate = 0.5


@pytest.mark.parametrize(
  "sections, expected",
  (
    ({"model": {"forgotten": 1}}, "not known here: 'model.forgotten'"),
    ({"model": {"num_heads": "8"}}, "model.num_heads is '8', no whole number"),
    ({"model": {"num_heads": True}}, "num_heads is True, no whole number"),
    ({"train": {"b1": None}}, "train.b1 is None, no number"),
  ),
)
def test_a_config_of_another_version_is_refused(sections, expected):
  with pytest.raises(InputError) as caught:
    configuration.restore(recorded(**sections), "runs/old", "9.9")
  assert str(caught.value).startswith(
    "runs/old was made by version 9.9, whose config does not fit this version:"
  )
  assert expected in str(caught.value)


def test_roles():
  """Of fields of each kind, and of an unknown one."""
  for name, roles in (
    ("train.learning_rate", {Role.TRAINING}),
    ("evaluation.alpha", {Role.RESULTS}),
    ("model.feature_layers", {Role.TRAINING, Role.RESULTS, Role.FEATURES}),
    ("clip.weights", set()),
    ("model.forgotten", {*Role}),
  ):
    assert {role for role in Role if configuration.decides(name, role)} == roles


@pytest.fixture(scope="module")
def clip(clip_folder):
  return weights.load_clip(str(clip_folder))


def test_a_config_becomes_a_model(config, clip):
  model = build_model(config, clip)
  assert model.suffix_tokens == (clip.tokens.period, clip.tokens.end)
  config.model.num_category_words = 0
  model = build_model(config, clip)
  assert model.suffix_tokens[0] == clip.tokens.object


@pytest.mark.parametrize(
  "field, value, expected",
  (
    ("model.image_size_pixels", 50, "a multiple of the patch size 16"),
    ("model.feature_layers", (4,), "numbers from 1 to 3"),
    ("model.feature_layers", (), "numbers from 1 to 3"),
    ("model.num_value_layers", 4, "from 0 to 3"),
    ("model.smoothing_window_patches", 2, "odd"),
    ("model.num_heads", 5, "a divisor of the joint width 24"),
    ("model.deep_prompt_depth", 3, "less than the 3 text layers"),
    ("model.smoothing_window_patches", -1, "at least 1"),
    ("model.num_state_words", -1, "at least 0"),
    ("model.num_category_words", -2, "at least 0"),
    ("model.prototype_injection", "both", "one of crossed, matched"),
    ("train.reconstruction", "all", "one of pairwise, matched, none"),
    ("train.batch_size", 0, "at least 1"),
    ("train.num_epochs", -1, "at least 0"),
    ("evaluation.num_samples", 0, "at least 1"),
    ("clip.dtype", "float16", "float32 or bfloat16"),
  ),
)
def test_values_that_do_not_fit_are_refused(
  config, clip, field, value, expected
):
  config.update_from_flattened_dict({field: value})
  with pytest.raises(InputError) as caught:
    build_model(config, clip)
  assert f"config.{field} is {value!r}" in str(caught.value)
  assert expected in str(caught.value)


def test_a_prompt_needs_words(config, clip):
  for kind in ("context", "state", "category"):
    build_model(config, clip)
    config.model[f"num_{kind}_words"] = 0
    config.model.deep_prompt_length = 2
  with pytest.raises(InputError, match="num_context_words is 0.* at least 1"):
    build_model(config, clip)


def test_heads_matter_to_prototypes_only(config, clip):
  config.model.num_heads = 5
  config.model.num_state_words = 0
  build_model(config, clip)


def test_files_and_names_of_recipes_are_the_same():
  for name in RECIPES:
    config = importlib.import_module(f"configs.{name}").get_config()
    assert config.to_dict() == configuration.recipe(name).to_dict()
  default = importlib.import_module("configs.default").get_config()
  assert default.to_dict() == configuration.recipe("visa").to_dict()
  with pytest.raises(
    InputError, match="'vsia' is not a recipe; the recipes are visa, mv"
  ):
    configuration.recipe("vsia")


def test_the_demos_recipe():
  config = configuration.recipe("demo")
  assert (config.clip.weights, config.clip.dtype) == ("demo", "float32")
  assert config.model.to_dict() == {
    "image_size_pixels": 112,
    "feature_layers": (5,),
    "num_value_layers": 3,
    "smoothing_window_patches": 1,
    "num_heads": 8,
    "num_context_words": 6,
    "num_state_words": 6,
    "num_category_words": 2,
    "deep_prompt_length": 4,
    "deep_prompt_depth": 3,
    "prototype_injection": "crossed",
    "deep_prompt_cast": "float16",
    "texts": "photos",
    "normal_texts": (),
    "anomalous_texts": (),
    "object_name": "object",
    "use_category_names": False,
    "temperature": 0.07,
  }
  assert config.train.dataset == "demo_auxiliary"
  assert config.evaluation.datasets == ("demo_unseen",)
  assert config.evaluation.beta == 0.5


@pytest.mark.parametrize(
  "script, arguments, expected",
  (
    (
      "train.py",
      ("--config=demo", "--config.train.dataset=folder:nowhere"),
      "nowhere is not a folder",
    ),
    ("eval.py", ("--config=visa",), "holds no training run"),
    (
      "train.py",
      ("--config=vsia",),
      "'vsia' is not a recipe; the recipes are visa",
    ),
  ),
)
def test_recipes_are_named_from_any_folder(
  tmp_path, script, arguments, expected
):
  code, _, err = run(
    ROOT / script, *arguments, "--workdir=run", folder=tmp_path
  )
  assert code == 1
  assert expected in err and "Traceback" not in err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ("default", *RECIPES, "ablations"))
def test_configs_have_the_same_fields(name):
  default = importlib.import_module("configs.default").get_config()
  config = importlib.import_module(f"configs.{name}").get_config()
  assert config.is_locked
  assert _fields(config) == _fields(default)


def _fields(config):
  return [
    (section, tuple(value) if hasattr(value, "keys") else type(value))
    for section, value in config.items()
  ]


def test_anomalyclips_recipes():
  for name, dataset in (
    ("anomalyclip_visa", "visa"),
    ("anomalyclip_mvtec", "mvtec_ad"),
  ):
    config = configuration.recipe(name)
    configuration.check_values(config, LARGE_CLIP)
    model, train = config.model, config.train
    assert (train.dataset, train.num_epochs, train.batch_size) == (
      dataset,
      15,
      8,
    )
    assert (train.learning_rate, train.b1, train.b2) == (1e-3, 0.5, 0.999)
    assert (model.feature_layers, model.num_value_layers) == ((24,), 19)
    assert (model.num_context_words, model.deep_prompt_depth) == (12, 8)
    assert dataset not in config.evaluation.datasets


def test_published_recipes():
  """Window, alpha, beta, epochs and reconstruction of the paper's code."""
  rows = {
    name: importlib.import_module(f"configs.{name}").get_config()
    for name in ("visa", "mvtec")
  }
  assert [
    (
      config.model.smoothing_window_patches,
      config.evaluation.alpha,
      config.evaluation.beta,
      config.train.num_epochs,
      config.train.batch_size,
      config.train.reconstruction,
      config.train.b1,
    )
    for config in rows.values()
  ] == [
    (5, 0.26, 0.9, 10, 8, "none", 0.5),
    (3, 0.35, 1.0, 5, 8, "pairwise", 0.5),
  ]
