"""Preparation of a training run: model, first parameters and batches."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview

from cops_jax import methods
from cops_jax.backbones.flops import PEAK_TERA_FLOPS, prompt_flops, vision_flops
from cops_jax.errors import InputError
from cops_jax.files import read_file, to_json, write_file
from cops_jax.inputs import load_examples, pipeline
from cops_jax.inputs.augmentation import make_augmentation
from cops_jax.inputs.features import open_features
from cops_jax.paths import AnyPath
from cops_jax.runs.metrics_log import import_writers
from cops_jax.runs.record import check_backbone, find_record
from cops_jax.runtime.mesh import make_mesh, num_device_bytes, replicate
from cops_jax.runtime.processes import in_all_processes
from cops_jax.tables import count_of, shorten_list
from cops_jax.training.step import (
  TrainState,
  create_train_state,
  make_optimizer,
  make_train_step,
)
from cops_jax.weights import pretrained, prompts
from cops_jax.weights.backbone import PretrainedBackbone, load_backbone
from cops_jax.weights.model import build_model, choose_dtype, place_backbone

_logger = logging.getLogger(__name__)


def load(
  config: Any, workdir: AnyPath
) -> tuple[Any, PretrainedBackbone, nn.Module, Sequence[Mapping[str, Any]]]:
  """Loads the backbone, the model and the examples to train on.

  Returns:
    The config with the run's backbone.dtype, the backbone, the model and the
    examples.

  Raises:
    InputError: if one of them cannot be loaded, the images have no masks, the
      method has nothing to train, or the run belongs to another method.
  """
  if not methods.find(config.method).IS_TRAINED:
    raise InputError(
      f"the method {config.method!r} has nothing to train. Evaluate it with"
      " `cops evaluate --config=... --workdir=...`."
    )
  if config.train.use_tensorboard and jax.process_index() == 0:
    import_writers()  # Reports missing packages before anything is loaded.
  begun = find_record(workdir)
  prompts.require_method(begun, config.method, workdir)
  config = choose_dtype(config, begun)
  backbone = load_backbone(config)
  model = build_model(config, backbone)
  examples = load_examples(config, config.train.dataset, config.train.split)
  for note in shorten_list(examples.notes):
    _logger.warning("%s: %s", examples.name, note)
  if not examples[0]["has_mask"]:  # Fails before features are computed.
    raise _masks_missing(examples.name, examples[0]["path"])
  return config, backbone, model, examples


def read_start(
  config: Any,
  backbone: PretrainedBackbone,
  params: Mapping[str, Any],
  init_from: str | os.PathLike,
  allow_other_backbone: bool,
) -> Mapping[str, Any]:
  """Returns the trained parameters of `init_from`; see `loop.train`.

  If they have no VAE encoder, the encoder of the random `params` is used.

  Raises:
    InputError: if the prompts cannot be read, or belong to another backbone or
      method.
  """

  def find():
    path = pretrained.find_start(init_from)
    record = prompts.find_record(path)
    if record is not None:
      check_backbone(
        record, backbone.sha256, str(init_from), allow_other_backbone
      )
    return path

  path = in_all_processes(find)
  template = replicate(params, make_mesh())
  trained, source = prompts.load_prompts(path, template, config.method)
  trained = flax.traverse_util.flatten_dict(jax.device_get(trained))
  random = flax.traverse_util.flatten_dict(params)
  _logger.info("starting from %s", source)
  absent = sorted(".".join(name) for name in random.keys() - trained.keys())
  if absent:
    _logger.info(
      "%s has no VAE encoder; starting with random parameters for %s",
      init_from,
      ", ".join(absent),
    )
  return flax.traverse_util.unflatten_dict({**random, **trained})


def prepare(
  config: Any,
  examples: Sequence[Mapping[str, Any]],
  backbone: PretrainedBackbone,
  model: nn.Module,
  params: Mapping[str, Any],
) -> tuple[int, TrainState, Any, Mapping[str, Any], Any]:
  """Places a run's state and backbone on the devices, and logs their sizes.

  Returns:
    The number of steps, the state, the compiled step, the backbone's parameters
    and their shardings.
  """
  settings, mesh = config.train, make_mesh()
  epoch_steps = pipeline.num_batches(len(examples), settings.batch_size)
  num_steps = settings.num_epochs * epoch_steps
  optimizer = make_optimizer(settings, num_steps)
  state = replicate(create_train_state(params, optimizer), mesh)
  backbone_params, shardings = place_backbone(
    backbone, model, mesh, config.backbone.split_over_devices
  )
  train_step = make_train_step(model, optimizer, mesh, shardings)
  overview = parameter_overview.get_parameter_overview(
    params, include_stats=False
  )
  _logger.info("trainable parameters:\n%s", overview)
  _logger.info(
    "training on %s of %s: %s with batch size %d; %s of %s, mesh %s; %s"
    " trainable parameters; %.1f MB of training state and %.1f MB of backbone"
    " on each device",
    count_of(len(examples), "image"),
    examples.name,
    count_of(num_steps, "step"),
    settings.batch_size,
    count_of(mesh.size, f"{jax.default_backend()} device"),
    count_of(jax.process_count(), "process"),
    dict(mesh.shape),
    f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}",
    num_device_bytes(state) / 1e6,
    num_device_bytes(backbone_params) / 1e6,
  )
  return num_steps, state, train_step, backbone_params, shardings


def peak_images_per_second(config: Any, model: nn.Module) -> float:
  """Returns images per second at the devices' peak rate; 0 if unknown."""
  if jnp.dtype(config.backbone.dtype).itemsize != 2:
    return 0.0
  backbone = model.backbone.config
  num_tokens = model.num_prompt_tokens(is_training=True)
  flops = prompt_flops(num_tokens, backbone, is_training=True)
  if not _reads_features(config):
    flops += vision_flops(config, backbone)
  devices = jax.devices()
  peak = 1e12 * PEAK_TERA_FLOPS.get(devices[0].device_kind, 0)
  return len(devices) * peak / flops


def _reads_features(config):
  """Returns True if steps read cached features, not augmented images."""
  is_augmented = config.train.augmentation != "none"
  return config.feature_cache.dtype != "none" and not is_augmented


def open_batches(
  config: Any,
  workdir: AnyPath,
  examples: Sequence[Mapping[str, Any]],
  backbone: PretrainedBackbone,
  model: nn.Module,
  steps: range,
) -> tuple[Iterator[dict[str, np.ndarray]], list[Exception]]:
  """Returns this process's part of the batches of `steps`, counted from 0.

  If the config enables the feature cache and images are not augmented, the
  features are computed first. Skipped files are listed in the run directory.

  Returns:
    The batches of `pipeline.iterate_batches`, and a list that receives the
    error if they end early; see `pipeline.keep_pace`.
  """
  mesh, features, errors = make_mesh(), None, []
  skipped = {} if config.input.unreadable_files == "skip" else None
  if steps and _reads_features(config):
    features = open_features(
      *(config, examples, config.train.split, model, backbone, mesh),
      batch_size=config.train.batch_size,
      skipped=skipped,
    )
  elif steps and config.feature_cache.dtype != "none":
    _logger.info(
      "the feature cache is used in evaluations only, because training images"
      " are augmented (config.train.augmentation=%s)",
      config.train.augmentation,
    )
  augmentation = in_all_processes(
    make_augmentation, config.train.augmentation, config.seed, examples
  )
  options = pipeline.make_options(
    *(config, backbone, mesh, config.train.batch_size),
    shuffle_seed=config.seed,
    augmentation=augmentation,
    full_masks=model.needs_masks,
    example_ids=model.needs_noise,
  )
  batches = pipeline.iterate_batches(
    examples, options, steps, skipped=skipped, features=features
  )
  batches = pipeline.keep_pace(
    _check_batches(batches, examples, skipped, workdir),
    *(len(steps), options, features, errors),
  )
  return batches, errors


def _check_batches(batches, examples, skipped, workdir):
  """Yields batches, lists skipped files and rejects images without masks.

  The first note of each kind is logged.
  """
  # Each process reads its own part only, and has its own list of skipped files.
  process = jax.process_index()
  suffix = f"-{process}" if process else ""
  path, num_listed = workdir / f"skipped_files{suffix}.json", 0
  known = set()
  for batch in batches:
    for row in np.flatnonzero(batch["notes"] != ""):
      for note in str(batch["notes"][row]).splitlines():
        kind, _, detail = note.partition(": ")
        if kind not in known:
          known.add(kind)
          _logger.warning("%s (%s: %s)", kind, batch["path"][row], detail)
    if skipped and len(skipped) > num_listed:
      num_listed = len(skipped)
      _list_skipped(path, skipped)
      if num_listed == len(examples):
        raise InputError(
          f"no image of {examples.name!r} can be read. See {path} for reasons."
        )
    unmasked = batch["padding_mask"] & ~batch["has_mask"]
    if unmasked.any():
      raise _masks_missing(examples.name, batch["path"][unmasked][0])
    yield batch


def _list_skipped(path, skipped):
  """Adds files to the list of those that an interrupted run has skipped."""
  try:
    before = dict(json.loads(read_file(path)))
  except (OSError, ValueError, TypeError, RecursionError):
    # The list does not exist or is damaged.
    before = {}
  write_file(path, to_json({**before, **skipped}, indent=2) + "\n")


def _masks_missing(name, path):
  return InputError(
    f"data set {name!r} cannot be trained on: its images, such as {path}, have"
    " no masks. Choose another config.train.dataset."
  )
