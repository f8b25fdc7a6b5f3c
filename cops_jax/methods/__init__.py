"""What is trained and how images are scored: a module here for each method.

`config.method` is the name of the module, and a module in this folder is a
method. It has what `Method` lists; the engine, that is features, training,
evaluation, detector and export, knows nothing else of it. The trainable tree
may have any parts: what a method calls by another name than all others cannot
be taken for another's. docs/methods.md shows how to add one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

from cops_jax.errors import InputError

# Arrays and trees are spelt out where methods are; this module needs no JAX.
Array = Any
Tree = Mapping[str, Any]


@runtime_checkable
class Method(Protocol):
  """What the engine needs of a method.

  `config` is always a ConfigDict with the fields of `cops_jax.config`, `model`
  what `build_model` gave, `variables` its two trees, see `models.encoding`, and
  `features` what `encoding.encode_batch` gives. A batch has the noise that a
  method asks for under "noise", (b, z, d), standard normal. A method that reads
  config.model.use_category_names also has `category_text_features`, as
  `prompt_ensemble` has.

  Attributes:
    TITLE: what people call it.
    FIELDS: of the config, those that it reads and not every method does. The
      others of these must have their defaults.
    NEEDS_MASKS: whether its losses read whole masks, uint8 (b, h, w), under
      "mask"; otherwise mask pixels by patch, int32 (b, n), under "mask_counts".
    UPSAMPLING: of patch scores to the anomaly map, see
      `scoring.upsampling_matrix`.
    loss_terms: (config, model, variables, features, batch) to loss terms by
      name, of shape (); `losses.total_loss` weighs them. The batch has label
      and padding_mask (b,) and, as `NEEDS_MASKS` says, masks. None in place of
      the function says that nothing is trained: the tree that `init_trainable`
      computes is used as it is.
  """

  TITLE: str
  FIELDS: Collection[str]
  NEEDS_MASKS: bool
  UPSAMPLING: str
  loss_terms: Callable[..., dict[str, Array]] | None

  def build_model(self, config: Any, clip: Any, dtype: Any) -> Any:
    """The Flax module, on a `weights.PretrainedCLIP`.

    It has the submodule `clip` and the attributes `clip_config`,
    `feature_layers`, `num_value_layers`, `dtype` and `attention`; see
    `models.encoding`.
    """

  def init_trainable(self, model: Any, key: Array, clip_params: Tree) -> Tree:
    """The trainable parameters before the first step, float32."""

  def num_noise_samples(self, config: Any, *, is_training: bool) -> int:
    """Samples of noise that an image needs; 0 for none."""

  def num_prompt_tokens(self, config: Any, *, is_training: bool) -> float:
    """Tokens that an image costs the text tower."""

  def score(
    self,
    config: Any,
    model: Any,
    variables: Tree,
    features: tuple[Array, Array],
    batch: Mapping[str, Array],
  ) -> tuple[Array, Array]:
    """Scores of the images (b,) and of their patches (b, n), in [0, 1]."""


def names() -> tuple[str, ...]:
  """The methods' names, sorted."""
  return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__)))


def find(name: str) -> Method:
  """The method of a name.

  Raises:
    InputError: there is none.
  """
  if name not in names():
    raise InputError(
      f"config.method is {name!r}; the methods are {', '.join(names())}"
    )
  return importlib.import_module(f"{__name__}.{name}")


def unread_fields(name: str) -> set[str]:
  """Fields of the config that other methods read and this one does not."""
  read_by_some = {field for other in names() for field in find(other).FIELDS}
  return read_by_some - set(find(name).FIELDS)
