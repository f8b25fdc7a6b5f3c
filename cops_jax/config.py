"""Every field with its default, its check and its role; the recipes.

`FIELDS` declares each field once: what it says, what it may be, and what
depends on it. All else that has to know a field asks here. A run's recorded
config becomes one of this version by `restore`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from cops_jax import methods
from cops_jax.errors import InputError

UNREADABLE_FILES = ("error", "skip")
FEATURE_TYPES = ("none", "float32", "bfloat16", "float16")


class Role(enum.Flag):
  """What a field decides.

  The location of CLIP's weights or data decides nothing: their hashes do.
  """

  # Where and how fast things are done, what is shown and what is kept.
  NOTHING = 0
  # What is trained: it must stay the same in a run that is resumed.
  TRAINING = enum.auto()
  # An evaluation's results: those of another value are not used again.
  RESULTS = enum.auto()
  # Cached vision features: those of another value are not used again.
  FEATURES = enum.auto()


_ALL = Role.TRAINING | Role.RESULTS | Role.FEATURES

# From a field's value, the whole config and CLIP's own to what the value must
# be, in words; "" where it is that.
Check = Callable[[Any, Any, Any], str]


@dataclasses.dataclass(frozen=True)
class Field:
  """One field of a config.

  Attributes:
    default: its value in both published recipes; others have the same type.
    comment: what it says.
    role: what it decides.
    checks: what a value must pass besides its type.
  """

  default: Any
  comment: str
  role: Role
  checks: tuple[Check, ...] = ()


def _at_least(least):
  return lambda value, config, clip: (
    "" if value >= least else f"at least {least}"
  )


def _within(low, high):
  return lambda value, config, clip: (
    "" if low <= value < high else f"from {low} to below {high}"
  )


def _one_of(choices: Collection[str]):
  return lambda value, config, clip: (
    "" if value in choices else f"one of {', '.join(choices)}"
  )


# The choices of some fields belong to the code that they choose from. It loads
# JAX, which a list of the fields must not wait for.
def _an_attention(value, config, clip):
  from cops_jax.clip.attention import IMPLEMENTATIONS

  return _one_of(IMPLEMENTATIONS)(value, config, clip)


def _an_injection(value, config, clip):
  from cops_jax.methods.cops import PROTOTYPE_INJECTIONS

  return _one_of(PROTOTYPE_INJECTIONS)(value, config, clip)


def _a_deep_prompt_cast(value, config, clip):
  from cops_jax.methods.anomalyclip import DEEP_PROMPT_CASTS

  return _one_of(DEEP_PROMPT_CASTS)(value, config, clip)


def _a_reconstruction(value, config, clip):
  from cops_jax.losses import RECONSTRUCTIONS

  return _one_of(RECONSTRUCTIONS)(value, config, clip)


def _a_pixel_metrics_mode(value, config, clip):
  from cops_jax.metrics import PIXEL_METRICS_MODES

  return _one_of(PIXEL_METRICS_MODES)(value, config, clip)


def _tiles(value, config, clip):
  from cops_jax.images.tiles import EXPECTED, parse_grid

  return "" if parse_grid(value) else f'{EXPECTED}, or ""'


def _no_cached_features(value, config, clip):
  dtype = config.feature_cache.dtype
  if not value or dtype == "none":
    return ""
  return f'"" with feature_cache.dtype {dtype!r}: features are of whole images'


def _a_method(value, config, clip):
  names = methods.names()
  return "" if value in names else f"one of {', '.join(names)}"


def _a_seed(value, config, clip):
  return "" if 0 <= value < 2**32 else "from 0 to 2**32 - 1"


def _a_precision(value, config, clip):
  is_good = value in ("auto", "float32", "bfloat16")
  return "" if is_good else "auto, float32 or bfloat16"


def _a_share(value, config, clip):
  return "" if 0 <= value <= 1 else "from 0 to 1"


def _above_zero(value, config, clip):
  return "" if 0 < value < math.inf else "above 0"


def _odd(value, config, clip):
  return "" if value % 2 == 1 else "odd"


def _whole_patches(value, config, clip):
  side = clip.vision_config.patch_size
  is_good = value > 0 and value % side == 0
  return "" if is_good else f"a multiple of the patch size {side}"


def _vision_layers(value, config, clip):
  number = clip.vision_config.num_hidden_layers
  is_good = value and all(
    isinstance(layer, int) and 1 <= layer <= number for layer in value
  )
  return "" if is_good else f"whole numbers from 1 to {number}"


def _last_layers(value, config, clip):
  number = clip.vision_config.num_hidden_layers
  return "" if 0 <= value <= number else f"from 0 to {number}"


def _divides_the_width(value, config, clip):
  width = clip.projection_dim
  is_good = not config.model.num_state_words or (
    value > 0 and width % value == 0
  )
  return "" if is_good else f"a divisor of the joint width {width}"


_KINDS_OF_WORDS = ("context", "state", "category")


def _num_words(config):
  fields = {f"model.num_{kind}_words" for kind in _KINDS_OF_WORDS}
  fields -= methods.unread_fields(config.method)
  # Those below 0 have an error of their own.
  return sum(max(config[field], 0) for field in fields)


def _leaves_words(value, config, clip):
  if _num_words(config):
    return ""
  return "at least 1 where there are no other words"


def _text_layers(value, config, clip):
  number = clip.text_config.num_hidden_layers
  return "" if 0 <= value < number else f"less than the {number} text layers"


def _learned_words(value, config, clip):
  number = _num_words(config)
  return "" if 0 <= value <= number else f"at most the {number} learned words"


FIELDS = {
  "method": Field(
    "cops",
    "What is trained and how images are scored: a module of cops_jax.methods,"
    " whose FIELDS names the fields below that not every method reads.",
    Role.TRAINING | Role.RESULTS,
    (_a_method,),
  ),
  "seed": Field(
    0,
    "Seed of everything random: initial parameters, order, noise.",
    Role.TRAINING | Role.RESULTS,
    (_a_seed,),
  ),
  "data_dir": Field(
    "",
    'Where TFDS keeps prepared data sets; "" for its own default,'
    " ~/tensorflow_datasets.",
    Role.NOTHING,
  ),
  "manual_dir": Field(
    "",
    'Where data sets\' original files lie, each in a folder of its name; ""'
    " for downloads/manual in data_dir.",
    Role.NOTHING,
  ),
  "features_dir": Field(
    "",
    "Where vision features are cached, a folder for each data set and model;"
    ' "" for features in data_dir. Runs and evaluations share it.',
    Role.NOTHING,
  ),
  "compilation_cache": Field(
    True,
    "Whether compiled programs are kept in the user's cache folder, so that the"
    " next start does not compile them again.",
    Role.NOTHING,
  ),
  "feature_cache.dtype": Field(
    "none",
    "Type in which the vision features of each image are kept on disk, so that"
    " the vision tower runs once for an image, in a run, in others and in their"
    ' evaluations: "float32", "bfloat16" (as exact where clip.dtype is'
    ' bfloat16, and half as large) or "float16". "none" runs it in every step.',
    _ALL,  # Rounded, features change the last digits.
    (_one_of(FEATURE_TYPES),),
  ),
  "input.num_workers": Field(
    0,
    "Processes that decode images; 0 for threads of the main one, which is"
    " enough for a few cores.",
    Role.NOTHING,
    (_at_least(0),),
  ),
  "input.unreadable_files": Field(
    "error",
    'What an image or mask that cannot be decoded does: "error" ends the run;'
    ' "skip" warns, lists the file in the results and leaves the example out.',
    Role.RESULTS,
    (_one_of(UNREADABLE_FILES),),
  ),
  "input.compare_bytes": Field(
    False,
    "Whether a folder's files are told from others by all their bytes instead"
    " of sizes and times, where a run goes on or a result is used again.",
    Role.TRAINING,
  ),
  "input.max_image_megapixels": Field(
    80.0,
    "Larger images are not decoded: some small files ask for gigabytes.",
    Role.NOTHING,
    (_above_zero,),
  ),
  "clip.weights": Field(
    "openai/clip-vit-large-patch14-336",
    "A Hugging Face name or folder, OpenAI's own .pt or a state dict in"
    ' OpenAI\'s names, or "demo" for the toy in this package.',
    Role.NOTHING,
  ),
  "clip.revision": Field(
    "",
    'Branch, tag or commit on the Hugging Face hub; "" for the newest.',
    Role.NOTHING,
  ),
  "clip.sha256": Field(
    "",
    'SHA-256 that the file with the weights must have; "" accepts any.',
    Role.NOTHING,
  ),
  "clip.dtype": Field(
    "auto",
    'Of CLIP\'s computation: "float32", "bfloat16", or "auto": bfloat16 on GPU'
    " and TPU, float32 on CPU, where it is faster. A run keeps what it began"
    " with. The rest is float32.",
    _ALL,
    (_a_precision,),
  ),
  "clip.attention": Field(
    "auto",
    'How the vision tower computes attention: "auto", the platform\'s own, or'
    ' one for all: "xla", "heads", "cudnn" (CUDA) or "splash" (TPU).',
    Role.NOTHING,
    (_an_attention,),
  ),
  "clip.split_over_devices": Field(
    False,
    "Whether each device holds a part of CLIP's parameters instead of all:"
    " saves memory, and costs their exchange in every step.",
    Role.NOTHING,
  ),
  "model.image_size_pixels": Field(
    518,
    "Side that images are resized to, in pixels; a multiple of the patch size.",
    _ALL,
    (_whole_patches,),
  ),
  "model.feature_layers": Field(
    (24,),
    "Vision layers, counted from 1, whose patches are compared with the"
    " prompts.",
    _ALL,
    (_vision_layers,),
  ),
  "model.num_value_layers": Field(
    24,
    "Vision layers with a value path, counted from the last; 0 for none.",
    _ALL,
    (_last_layers,),
  ),
  "model.smoothing_window_patches": Field(
    5,
    "Side of the neighbourhood average, in patches; odd. 1 for none.",
    Role.TRAINING | Role.RESULTS,
    (_at_least(1), _odd),
  ),
  "model.num_heads": Field(
    12,
    "Heads of the prototype extractor's attention; divides CLIP's joint width.",
    Role.TRAINING | Role.RESULTS,
    (_divides_the_width,),
  ),
  "model.num_context_words": Field(
    6,
    'A prompt is: start, context words, state words, category words, ".", end.',
    Role.TRAINING | Role.RESULTS,
    (_at_least(0), _leaves_words),
  ),
  "model.num_state_words": Field(
    6,
    "There are as many prototypes per state as state words. 0 state words: no"
    " prototypes, their losses or distances.",
    Role.TRAINING | Role.RESULTS,
    (_at_least(0),),
  ),
  "model.num_category_words": Field(
    2,
    "0 category words: no VAE, its losses or samples, and the prompt ends in"
    ' "object." instead.',
    Role.TRAINING | Role.RESULTS,
    (_at_least(0),),
  ),
  "model.deep_prompt_length": Field(
    4,
    "Tokens of the text tower that a layer replaces.",
    Role.TRAINING | Role.RESULTS,
    (_learned_words,),
  ),
  "model.deep_prompt_depth": Field(
    8,
    "Layers of the text tower that replace them; 0 for no deep prompts.",
    Role.TRAINING | Role.RESULTS,
    (_text_layers,),
  ),
  "model.prototype_injection": Field(
    "crossed",
    "Which prototypes a state's prompt gets: \"crossed\", the other state's, as"
    ' in the authors\' released code; "matched", its own, as in the paper.',
    Role.TRAINING | Role.RESULTS,
    (_an_injection,),
  ),
  "model.deep_prompt_cast": Field(
    "float16",
    'Type that deep prompts and their gradients are rounded to: "float16", as'
    ' AnomalyCLIP\'s released code does, or "none".',
    Role.TRAINING | Role.RESULTS,
    (_a_deep_prompt_cast,),
  ),
  "model.texts": Field(
    "photos",
    "Hand-written texts of the prompt ensemble: a file, or one of this project"
    ' by its name: "photos" or, in the words of the demo\'s CLIP, "demo".',
    Role.TRAINING | Role.RESULTS,
  ),
  "model.normal_texts": Field(
    (),
    "What is normal, in place of that file's states.",
    Role.TRAINING | Role.RESULTS,
  ),
  "model.anomalous_texts": Field(
    (),
    "What is not, in place of that file's states.",
    Role.TRAINING | Role.RESULTS,
  ),
  "model.object_name": Field(
    "object",
    "What those texts call an object.",
    Role.TRAINING | Role.RESULTS,
  ),
  "model.use_category_names": Field(
    False,
    "Whether an evaluation calls each object by its category's name instead.",
    Role.TRAINING | Role.RESULTS,
  ),
  "model.temperature": Field(
    0.07,
    "Cosines are divided by it before the softmax.",
    Role.TRAINING | Role.RESULTS,
    (_above_zero,),
  ),
  "train.dataset": Field(
    "visa",
    "The auxiliary data set; its test split has the anomalies. A name that"
    ' "cops datasets list" shows, or your own images: folder:PATH'
    " in MVTec's layout, meta_json:PATH with a meta.json.",
    Role.TRAINING,
  ),
  "train.split": Field(
    "test",
    "Split of the auxiliary data set that is trained on.",
    Role.TRAINING,
  ),
  "train.num_epochs": Field(
    10,
    "Passes over the data. 0 writes a checkpoint of the untrained prompts.",
    Role.TRAINING,
    (_at_least(0),),
  ),
  "train.batch_size": Field(
    8,
    "Images in a step, over all devices. An epoch's last step may have less.",
    Role.TRAINING,
    (_at_least(1),),
  ),
  "train.accumulate_steps": Field(
    1,
    "Steps whose mean gradient makes one update of the parameters.",
    Role.TRAINING,
    (_at_least(1),),
  ),
  "train.learning_rate": Field(
    1e-3, "Adam's; constant.", Role.TRAINING, (_within(0, math.inf),)
  ),
  "train.b1": Field(
    0.5,
    "Adam's: decay of the gradients' mean.",
    Role.TRAINING,
    (_within(0, 1),),
  ),
  "train.b2": Field(
    0.999,
    "Adam's: decay of their squares' mean.",
    Role.TRAINING,
    (_within(0, 1),),
  ),
  "train.eps": Field(
    1e-8,
    "Adam's: added to what the mean is divided by.",
    Role.TRAINING,
    (_within(1e-30, 1),),
  ),
  "train.reconstruction": Field(
    "none",
    'Loss between image features and category biases: "none", "pairwise" (every'
    ' image with every bias, as in the released code) or "matched".',
    Role.TRAINING,
    (_a_reconstruction,),
  ),
  "train.log_every_steps": Field(
    20,
    "Steps from one line of metrics to the next.",
    Role.NOTHING,
    (_at_least(1),),
  ),
  "train.checkpoint_every_steps": Field(
    500,
    "Steps from one checkpoint to the next.",
    Role.NOTHING,
    (_at_least(1),),
  ),
  "train.evaluate_every_steps": Field(
    0,
    "Saves a checkpoint, evaluates as the section evaluation says, and writes"
    " the means into the metrics; 0 for never.",
    Role.NOTHING,
    (_at_least(0),),
  ),
  "train.use_tensorboard": Field(
    False,
    "Writes the metrics for TensorBoard too; needs the extra [tensorboard].",
    Role.NOTHING,
  ),
  "train.num_kept_checkpoints": Field(
    3, "Newest checkpoints that are kept.", Role.NOTHING, (_at_least(1),)
  ),
  "evaluation.datasets": Field(
    ("mvtec_ad",), "Names as train.dataset's.", Role.NOTHING
  ),
  "evaluation.split": Field(
    "test", "Split of each data set that is scored.", Role.RESULTS
  ),
  "evaluation.batch_size": Field(
    0,
    "Images in a step, over all devices; 0 for the platform's own: 1 for each"
    " CPU, 8 for each GPU or TPU. No result depends on it.",
    Role.NOTHING,
    (_at_least(0),),
  ),
  "evaluation.num_samples": Field(
    10,
    "Category codes sampled for an image.",
    Role.RESULTS,
    (_at_least(1),),
  ),
  "evaluation.distance_weighting": Field(
    True,
    "Whether a patch's probability is weighted by its distances to the"
    " prototypes, if there are any.",
    Role.RESULTS,
  ),
  "evaluation.alpha": Field(
    0.26,
    "Share of the distance to normal prototypes in that weight.",
    Role.RESULTS,
    (_a_share,),
  ),
  "evaluation.beta": Field(
    0.9,
    "Share of the whole image's probability in its score.",
    Role.RESULTS,
    (_a_share,),
  ),
  "evaluation.tiles": Field(
    "",
    "Rows x columns of overlapping tiles that are looked at beside the whole of"
    ' each image, such as 2x3, for small defects in large images; "" for none.'
    " Maps and metrics stay at the model's size.",
    Role.RESULTS,
    (_tiles, _no_cached_features),
  ),
  "evaluation.pixel_metrics": Field(
    "binned",
    'How pixels are counted: "binned", in memory that does not grow, or'
    ' "exact", which keeps all of them: for small data.',
    Role.RESULTS,
    (_a_pixel_metrics_mode,),
  ),
  "evaluation.num_pictures": Field(
    4,
    "Images of each kind, best, worst and random, in a data set's report.",
    Role.RESULTS,
    (_at_least(0),),
  ),
}

_KINDS = {
  str: "text",
  bool: "truth value",
  int: "whole number",
  float: "number",
  tuple: "list",
}

# Of AnomalyCLIP's code, its vision tower and number format.
_DUAL_PATH = {"clip.dtype": "float32", "model.num_value_layers": 19}
_ANOMALYCLIP = {
  **_DUAL_PATH,
  "method": "anomalyclip",
  "model.num_context_words": 12,
  "train.num_epochs": 15,
}
_DEMO = {
  "clip.weights": "demo",
  "clip.dtype": "float32",
  "feature_cache.dtype": "float32",
  "model.image_size_pixels": 112,
  "model.feature_layers": (5,),
  "model.num_value_layers": 3,
  "train.dataset": "demo_auxiliary",
  "evaluation.datasets": ("demo_unseen",),
  "evaluation.batch_size": 8,
}
# What differs from the defaults, by name.
RECIPES = {
  "visa": {},
  "mvtec": {
    "model.smoothing_window_patches": 3,
    "train.dataset": "mvtec_ad",
    "train.num_epochs": 5,
    "train.reconstruction": "pairwise",
    "evaluation.datasets": ("visa",),
    "evaluation.alpha": 0.35,
    "evaluation.beta": 1.0,
  },
  "anomalyclip_visa": {
    **_ANOMALYCLIP,
    "train.dataset": "visa",
    "evaluation.datasets": ("mvtec_ad",),
  },
  "anomalyclip_mvtec": {
    **_ANOMALYCLIP,
    "train.dataset": "mvtec_ad",
    "evaluation.datasets": ("visa",),
  },
  "prompt_ensemble": {
    **_DUAL_PATH,
    "method": "prompt_ensemble",
    "evaluation.datasets": ("mvtec_ad", "visa"),
  },
  "demo": {
    **_DEMO,
    "model.smoothing_window_patches": 1,
    "model.num_heads": 8,
    "model.deep_prompt_depth": 3,
    "evaluation.beta": 0.5,
  },
  "anomalyclip_demo": {
    **_DEMO,
    "method": "anomalyclip",
    "model.num_context_words": 12,
    "model.deep_prompt_depth": 3,
  },
  "prompt_ensemble_demo": {
    **_DEMO,
    "method": "prompt_ensemble",
    "model.texts": "demo",
  },
}


def default() -> Any:
  """The config that all others override.

  Returns:
    A locked ml_collections.ConfigDict.
  """
  return _to_config({name: field.default for name, field in FIELDS.items()})


def recipe(name: str) -> Any:
  """The default with a recipe's overrides.

  Args:
    name: of `RECIPES`.

  Returns:
    A locked ml_collections.ConfigDict.

  Raises:
    InputError: there is no recipe of that name.
  """
  if name not in RECIPES:
    raise InputError(
      f"{name!r} is not a recipe; the recipes are {', '.join(RECIPES)}"
    )
  config = default()
  config.update_from_flattened_dict(RECIPES[name])
  return config


def ensemble_of(weights: str, clip: Any) -> Any:
  """The recipe prompt_ensemble on any CLIP.

  Args:
    weights: for config.clip.weights.
    clip: the configuration of CLIP; a transformers.CLIPConfig.

  Returns:
    A locked ml_collections.ConfigDict: as for OpenAI's ViT-L/14@336, 37 x 37
    patches of the last layer, with a value path from the sixth layer on. For
    the demo's CLIP it is the recipe prompt_ensemble_demo.
  """
  if weights == "demo":
    return recipe("prompt_ensemble_demo")
  config, vision = recipe("prompt_ensemble"), clip.vision_config
  config.clip.weights = weights
  config.model.image_size_pixels = 37 * vision.patch_size
  config.model.feature_layers = (vision.num_hidden_layers,)
  config.model.num_value_layers = max(vision.num_hidden_layers - 5, 0)
  return config


def max_pixels(config: Any) -> int:
  """The most pixels of an image file that is decoded."""
  return int(config.input.max_image_megapixels * 1e6)


def restore(recorded: Mapping[str, Any], source: str, version: str) -> Any:
  """A recorded config as one of this version.

  Fields that have moved are at their new place, and those that the record
  lacks, as an earlier version made it, have their defaults.

  Args:
    recorded: nested dictionaries.
    source: what it was recorded for, for errors.
    version: that recorded it, for errors.

  Returns:
    A locked ml_collections.ConfigDict.

  Raises:
    InputError: it has a field that is not known here, or one of another type.
  """

  def refuse(reason):
    raise InputError(
      f"{source} was made by version {version}, whose config does not fit this"
      f" version: {reason}"
    )

  values = complete(recorded)
  unknown = [name for name in values if name not in FIELDS]
  if unknown:
    refuse(f"not known here: {', '.join(map(repr, unknown))}")
  for name, field in FIELDS.items():
    kind = type(field.default)
    if kind is float and type(values[name]) is int:
      values[name] = float(values[name])  # As JSON may have written it.
    if type(values[name]) is not kind:
      refuse(f"{name} is {values[name]!r}, no {_KINDS[kind]}")
  return _to_config(values)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config's values by dotted name, those of absent fields with them.

  Args:
    config: nested dictionaries. Fields that have moved are put at their new
      place; those that are not known here stay. Lists become tuples.
  """
  values = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in flatten(config).items()
  }
  defaults = {name: field.default for name, field in FIELDS.items()}
  return {**defaults, **values}


def decides(name: str, role: Role) -> bool:
  """Whether a field has a role; one that is not known here may have any.

  Args:
    name: dotted.
    role: one role.
  """
  return name not in FIELDS or role in FIELDS[name].role


def check_values(config: Any, clip: Any) -> None:
  """Checks every field of a config.

  Args:
    config: a ConfigDict.
    clip: the configuration of CLIP, with its sizes; a transformers.CLIPConfig.

  Raises:
    InputError: a field is absent, or its value does not fit CLIP or another
      field, or the method does not read it and it has another value than its
      default.
  """
  values = flatten(config.to_dict())
  missing = FIELDS.keys() - values.keys()
  if missing:
    raise InputError(
      f"the config lacks {', '.join(sorted(missing))}: begin with"
      " cops_jax.config.default(), which has every field"
    )
  unread = set()
  if config.method in methods.names():  # Otherwise its own check fails first.
    unread = methods.unread_fields(config.method)
  for name, field in FIELDS.items():
    if name in unread:
      if values[name] != field.default:
        raise InputError(
          f"config.{name} is {values[name]!r}, and the method"
          f" {config.method!r} does not read it: leave it at {field.default!r}"
        )
      continue
    for check in field.checks:
      expected = check(values[name], config, clip)
      if expected:
        raise InputError(
          f"config.{name} is {values[name]!r}; with CLIP"
          f" {config.clip.weights!r} it must be {expected}"
        )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """A nested config's fields by dotted name."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def _to_config(values):
  import ml_collections

  nested = {}
  for name, value in values.items():
    section, _, key = name.rpartition(".")
    (nested.setdefault(section, {}) if section else nested)[key] = value
  return ml_collections.ConfigDict(nested).lock()
