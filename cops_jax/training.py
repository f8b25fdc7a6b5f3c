"""Training the prompts on one auxiliary data set, CLIP frozen."""

from __future__ import annotations

import json
import logging
import math
import os
import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from cops_jax import (
  checkpoints,
  input_pipeline,
  prompt_files,
  records,
  sharding,
  train_steps,
)
from cops_jax.configuration import build_model, load_clip
from cops_jax.errors import InputError
from cops_jax.features import default_folder, open_features
from cops_jax.files import write_file
from cops_jax.progress import Progress

_logger = logging.getLogger(__name__)


def train(
  config: Any,
  workdir: str | os.PathLike,
  *,
  init_from: str | os.PathLike = "",
  allow_other_clip: bool = False,
) -> train_steps.TrainState:
  """Trains, or goes on training, in a work directory.

  Writes run.json, metrics.jsonl (a line of loss terms every so many steps),
  checkpoints/ and, if unreadable files were left out, skipped_files.json with
  the reason for each. A directory that holds this config's checkpoints is
  resumed from the newest.

  Args:
    config: a ConfigDict with the fields of configs/default.py.
    workdir: created if need be.
    init_from: trained prompts to begin from, see `prompt_files.load_prompts`;
      "" begins with random ones. The optimizer begins afresh.
    allow_other_clip: whether other CLIP weights will do than those that the
      run, or what it begins from, was trained with.

  Returns:
    The final state.

  Raises:
    InputError: see the message.
  """
  from clu import parameter_overview

  from cops_jax import datasets

  settings = config.train
  clip = load_clip(config)
  model = build_model(config, clip)
  examples = datasets.load(
    settings.dataset,
    settings.split,
    config.data_dir or None,
    config.manual_dir or None,
  )
  mesh = sharding.make_mesh()
  optimizer = train_steps.make_optimizer(settings)
  state = train_steps.create_train_state(model, optimizer, config.seed)
  if init_from and not checkpoints.has_checkpoint(workdir):
    state = state._replace(
      params=_read_start(init_from, state.params, clip, allow_other_clip)
    )
  records.claim_workdir(
    workdir,
    records.Record(config.to_dict(), clip.sha256, str(init_from)),
    allow_other_clip=allow_other_clip,
  )

  epoch_steps = input_pipeline.num_batches(len(examples), settings.batch_size)
  num_steps = settings.num_epochs * epoch_steps
  metrics_file = pathlib.Path(workdir) / "metrics.jsonl"
  with checkpoints.Checkpoints(workdir, settings.num_kept_checkpoints) as saved:
    first_step = saved.latest_step()
    if first_step is not None:
      step, params, opt_state = saved.restore(state.params, state.opt_state)
      state = train_steps.TrainState(jnp.int32(step), params, opt_state)
      _logger.info("resuming %s from step %d", workdir, step)
    first_step = first_step or 0
    state = sharding.replicate(state, mesh)
    clip_params = sharding.replicate(clip.params, mesh)
    train_step = train_steps.make_train_step(
      model,
      optimizer,
      mesh,
      seed=config.seed,
      reconstruction=settings.reconstruction,
    )
    _logger.info(
      "trainable parameters:\n%s",
      parameter_overview.get_parameter_overview(
        state.params, include_stats=False
      ),
    )
    _logger.info(
      "training on %d images of %s: %d steps of %d images, %d %s device(s)",
      len(examples),
      examples.name,
      num_steps,
      settings.batch_size,
      mesh.size,
      jax.default_backend(),
    )
    skipped = {} if config.input.unreadable_files == "skip" else None
    features = None
    if settings.cache_features != "none" and first_step < num_steps:
      features = open_features(
        examples,
        settings.split,
        model,
        clip,
        mesh,
        dtype=settings.cache_features,
        folder=config.features_dir or default_folder(config.data_dir or None),
        image_size=config.model.image_size_pixels,
        batch_size=settings.batch_size,
        num_workers=config.input.num_workers,
        skipped=skipped,
      )
    batches = input_pipeline.iterate_batches(
      examples,
      image_size=config.model.image_size_pixels,
      patch_size=clip.config.vision_config.patch_size,
      batch_size=settings.batch_size,
      num_devices=mesh.size,
      steps=range(first_step, num_steps),
      shuffle_seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      num_workers=config.input.num_workers,
      skipped=skipped,
      features=features,
    )
    _truncate_metrics(metrics_file, first_step)
    progress = Progress(num_steps, "steps", start=first_step)
    recent = []
    num_skipped = 0
    for step, batch in enumerate(batches, start=first_step + 1):
      if skipped and len(skipped) > num_skipped:
        num_skipped = len(skipped)
        _add_skipped(pathlib.Path(workdir) / "skipped_files.json", skipped)
        if num_skipped == len(examples):
          raise InputError(f"no image of {examples.name!r} can be read")
      _require_masks(batch, examples.name)
      batch = {
        name: batch[name] for name in train_steps.STEP_FIELDS if name in batch
      }
      state, terms = train_step(
        state, clip_params, sharding.shard_batch(batch, mesh)
      )
      recent.append(terms)
      if step % settings.log_every_steps == 0 or step == num_steps:
        means = _means(jax.device_get(recent))
        recent.clear()
        _log_metrics(metrics_file, step, means)
        progress.update(
          step,
          f"epoch {math.ceil(step / epoch_steps)}/{settings.num_epochs},"
          f" loss {means['loss']:.4f}",
        )
      if step % settings.checkpoint_every_steps == 0 and step < num_steps:
        saved.save(step, state.params, state.opt_state)
    if num_steps > first_step or saved.latest_step() is None:
      saved.save(num_steps, state.params, state.opt_state)
  return state


def _read_start(init_from, params, clip, allow_other_clip):
  """Trained prompts in place of the random ones; an absent encoder's stay."""
  record = prompt_files.find_record(init_from)
  if record is not None:
    records.check_clip(record, clip.sha256, str(init_from), allow_other_clip)
  trained, source = prompt_files.load_prompts(init_from, params)
  trained = flax.traverse_util.flatten_dict(trained)
  random = flax.traverse_util.flatten_dict(params)
  _logger.info("beginning from %s", source)
  absent = sorted(".".join(name) for name in random.keys() - trained.keys())
  if absent:
    _logger.info(
      "%s has no VAE encoder, which begins with random parameters: %s",
      init_from,
      ", ".join(absent),
    )
  trained = jax.tree.map(jnp.asarray, {**random, **trained})
  return flax.traverse_util.unflatten_dict(trained)


def _require_masks(batch, name):
  unmasked = batch["padding_mask"] & ~batch["has_mask"]
  if unmasked.any():
    raise InputError(
      f"data set {name!r} cannot be trained on: its images, such as"
      f" {batch['path'][unmasked][0]}, come without masks. Choose another"
      " config.train.dataset."
    )


def _add_skipped(path, skipped):
  """Adds to what the run skipped before it was interrupted."""
  before = json.loads(path.read_text("utf-8")) if path.exists() else {}
  write_file(path, json.dumps({**before, **skipped}, indent=2) + "\n")


def _means(rows):
  return {
    name: float(sum(row[name] for row in rows)) / len(rows) for name in rows[0]
  }


def _log_metrics(path, step, means):
  with path.open("a", encoding="utf-8") as file:
    file.write(json.dumps({"step": step, **means}) + "\n")


def _truncate_metrics(path, last_step):
  """Drops the lines of steps that will be taken again."""
  if not path.exists():
    return
  lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
  # A run that was killed while writing leaves part of a line.
  lines = [line for line in lines if line.endswith("\n")]
  kept = [line for line in lines if json.loads(line)["step"] <= last_step]
  write_file(path, "".join(kept))
