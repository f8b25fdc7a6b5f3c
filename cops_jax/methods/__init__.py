"""Methods: a model, its losses and its scores, each in a module of this folder.

`config.method` is the module's name. The module has what `Method` lists, its
model what `Model` lists; features, training, evaluation, detector and export
know nothing else about it. docs/new_method.md shows how to add one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

from cops_jax.errors import InputError, suggest

# The methods' modules have the types; this module needs no JAX.
Array = Any
Tree = Mapping[str, Any]


@runtime_checkable
class Method(Protocol):
  """A method's module.

  Attributes:
    TITLE: its name for people.
    FIELDS: config fields that it reads and not every method does. The others of
      these must have their defaults.
    IS_TRAINED: whether anything is trained. If not, the tree that the model's
      `init_trainable` computes is used as it is.
    USES_TEXT: whether it compares images with texts, for which the backbone
      must be CLIP. If not, CLIP's text tower is not loaded.
  """

  TITLE: str
  FIELDS: Collection[str]
  IS_TRAINED: bool
  USES_TEXT: bool

  def build_model(self, config: Any, tower: Any, backbone: Any) -> Model:
    """Returns the model.

    Args:
      config: a FrozenConfigDict with the fields of `cops_jax.config`.
      tower: the frozen backbone, a Flax module; see `backbones.vision`.
      backbone: the `weights.backbone.PretrainedBackbone` that it is built for.
    """


class Model(Protocol):
  """A method's model, a Flax module.

  Its parameters are two trees: the backbone's under "backbone", frozen, and the
  trainable one, whose names no other method may use. Arguments named `features`
  are what `features.encode_batch` returns. A model that reads
  config.model.use_category_names has `category_text_features`, as
  `PromptEnsemble` has.

  Attributes:
    config: the frozen config that it was built from.
    backbone: the tower, which is its submodule.
    has_layer_tokens: whether image features are the class tokens of each
      feature layer, (b, f, d), and not CLIP's image features, (b, d).
    needs_masks: whether its losses read whole masks, uint8 (b, h, w), under
      "mask"; otherwise they read mask pixels by patch, int32 (b, n), under
      "mask_counts".
    needs_noise: whether they read standard normal noise, (b, 1, d), under
      "noise".
    upsampling: from patch scores to the anomaly map, see
      `scoring.upsampling_matrix`.
    loss_terms: (features, batch) to loss terms by name, of shape ();
      `losses.total_loss` weighs them. The batch has label and padding_mask (b,)
      and masks. None if nothing is trained.
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
    """Returns the tokens that an image costs the text tower."""

  def score(
    self, features: tuple[Array, Array], batch: Mapping[str, Array]
  ) -> tuple[Array, Array]:
    """Returns scores of images (b,) and of their patches (b, n), in [0, 1].

    With normal images to compare with, the batch has memory_distances (b, n),
    for `scoring.fuse`.
    """


def names() -> tuple[str, ...]:
  """Returns the methods' names, sorted."""
  return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__)))


def find(name: str) -> Method:
  """Returns the module of a method.

  Raises:
    InputError: there is none.
  """
  if name not in names():
    raise InputError(
      f"config.method is {name!r}{suggest(name, names())}; the methods are"
      f" {', '.join(names())}"
    )
  return importlib.import_module(f"{__name__}.{name}")


def unread_fields(name: str) -> set[str]:
  """Returns config fields that other methods read and this one does not."""
  read_by_some = {field for other in names() for field in find(other).FIELDS}
  return read_by_some - set(find(name).FIELDS)
