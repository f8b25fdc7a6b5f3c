"""Methods: each module of this folder is a model with its losses and scores.

`config.method` is the name of the module. The module provides the attributes of
`Method`, and its model those of `Model`. Features, training, evaluation,
detector and export use nothing else. docs/new_method.md shows how to add one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

from cops_jax.errors import InputError, suggest

# These stand in for the types of JAX, which this module does not import.
Array = Any
Tree = Mapping[str, Any]


@runtime_checkable
class Method(Protocol):
  """Module of a method.

  Attributes:
    TITLE: name of the method to display.
    FIELDS: config fields that this method reads but some other method does not.
      Fields that only other methods read must keep their defaults.
    IS_TRAINED: True if the method trains parameters; if False, the tree that
      the model's `init_trainable` returns is used unchanged.
    USES_TEXT: True if the method compares images with texts, which requires
      CLIP; if False, CLIP's text tower is not loaded.
  """

  TITLE: str
  FIELDS: Collection[str]
  IS_TRAINED: bool
  USES_TEXT: bool

  def build_model(self, config: Any, tower: Any, backbone: Any) -> Model:
    """Returns the model.

    Args:
      config: a FrozenConfigDict with the fields of `cops_jax.config`.
      tower: Flax module of the frozen backbone; see `backbones.vision`.
      backbone: the `weights.backbone.PretrainedBackbone` with its parameters.
    """


class Model(Protocol):
  """Model of a method: a Flax module.

  Its parameters are two trees: the frozen one of the backbone, under
  "backbone", and the trainable one, whose names no other method may use.
  Arguments named `features` are the result of `features.encode_batch`. A model
  that reads config.model.use_category_names has a method
  `category_text_features`, as `PromptEnsemble` does.

  Attributes:
    config: frozen config that the model was built from.
    backbone: frozen tower, a submodule of the model.
    has_layer_tokens: True if image features are the class tokens of each
      feature layer, (b, f, d); False if they are CLIP's image features, (b, d).
    needs_masks: True if the losses read whole masks, "mask", uint8 (b, h, w);
      False if they read the mask pixels per patch, "mask_counts", int32 (b, n).
    needs_noise: True if the losses read standard normal noise, "noise",
      (b, 1, d).
    upsampling: method of upsampling patch scores to the anomaly map; see
      `scoring.upsampling_matrix`.
    loss_terms: function of (features, batch) that returns loss terms of shape
      () by name, for `losses.total_loss`. The batch has label (b,),
      padding_mask (b,) and masks. None if nothing is trained.
  """

  config: Any
  backbone: Any
  has_layer_tokens: bool
  needs_masks: bool
  needs_noise: bool
  upsampling: str
  loss_terms: Callable[..., dict[str, Array]] | None

  def init_trainable(self, key: Array, backbone_params: Tree) -> Tree:
    """Returns the trainable parameters before the first step, float32."""

  def num_prompt_tokens(self, *, is_training: bool) -> float:
    """Returns the number of text tokens that are computed per image."""

  def score(
    self, features: tuple[Array, Array], batch: Mapping[str, Array]
  ) -> tuple[Array, Array]:
    """Returns scores of images (b,) and of their patches (b, n), in [0, 1].

    With reference images, the batch has memory_distances (b, n) for
    `scoring.fuse`.
    """


def names() -> tuple[str, ...]:
  """Returns the methods' names, sorted."""
  return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__)))


def find(name: str) -> Method:
  """Returns the module of a method.

  Raises:
    InputError: if there is no method of this name.
  """
  if name not in names():
    raise InputError(
      f"config.method is {name!r}{suggest(name, names())}. Choose one of"
      f" {', '.join(names())}"
    )
  return importlib.import_module(f"{__name__}.{name}")


def unread_fields(name: str) -> set[str]:
  """Returns the config fields that only other methods read."""
  read_by_some = {field for other in names() for field in find(other).FIELDS}
  return read_by_some - set(find(name).FIELDS)
