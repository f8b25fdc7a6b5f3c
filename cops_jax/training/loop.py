"""Training the prompts on one auxiliary data set, CLIP frozen."""

from __future__ import annotations

import json
import logging
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from cops_jax.config import build_model, load_clip, load_examples, open_features
from cops_jax.errors import InputError
from cops_jax.evaluation.dataset import make_evaluator
from cops_jax.files import write_file
from cops_jax.inputs import pipeline
from cops_jax.progress import Progress
from cops_jax.runs import checkpoints, metrics_log
from cops_jax.runs.record import Record, check_clip, claim_workdir
from cops_jax.runtime import signals
from cops_jax.runtime.mesh import (
  clip_shardings,
  make_mesh,
  num_device_bytes,
  replicate,
  shard_batch,
)
from cops_jax.training.step import (
  STEP_FIELDS,
  TrainState,
  create_train_state,
  make_optimizer,
  make_train_step,
)
from cops_jax.weights import prompts

_logger = logging.getLogger(__name__)


def train(
  config: Any,
  workdir: str | os.PathLike,
  *,
  init_from: str | os.PathLike = "",
  allow_other_clip: bool = False,
  profile_steps: Sequence[int] = (),
) -> TrainState:
  """Trains, or goes on training, in a work directory.

  Writes run.json, metrics.jsonl (a line of loss terms every so many steps),
  losses.png, checkpoints/ and, if unreadable files were left out,
  skipped_files.json with the reason for each. A directory that holds this
  config's checkpoints is resumed from the newest.

  Args:
    config: a ConfigDict with the fields of configs/default.py.
    workdir: created if need be.
    init_from: trained prompts to begin from, see `prompts.load_prompts`;
      "" begins with random ones. The optimizer begins afresh.
    allow_other_clip: whether other CLIP weights will do than those that the
      run, or what it begins from, was trained with.
    profile_steps: first and last step to profile, into profile/.

  Returns:
    The final state.

  Raises:
    InputError: see the message.
    SystemExit: a signal came and was caught, see `signals`; what was
      trained until then is saved.
  """
  from clu import parameter_overview

  settings, workdir = config.train, pathlib.Path(workdir)
  is_writer = jax.process_index() == 0
  clip = load_clip(config)
  model = build_model(config, clip)
  examples = load_examples(config, settings.dataset, settings.split)
  if not examples[0]["has_mask"]:  # Told before features are computed.
    raise _no_mask(examples.name, examples[0]["path"])
  mesh = make_mesh()
  optimizer = make_optimizer(settings)
  state = replicate(create_train_state(model, optimizer, config.seed), mesh)
  if init_from and not checkpoints.has_checkpoint(workdir):
    params = _read_start(init_from, state.params, clip, allow_other_clip)
    state = state.replace(params=replicate(params, mesh))
  claim_workdir(
    workdir,
    Record(config.to_dict(), clip.sha256, str(init_from)),
    allow_other_clip=allow_other_clip,
    is_writer=is_writer,
  )

  epoch_steps = pipeline.num_batches(len(examples), settings.batch_size)
  num_steps = settings.num_epochs * epoch_steps
  with checkpoints.Checkpoints(workdir, settings.num_kept_checkpoints) as saved:
    first_step = 0
    recent = []  # Terms of the steps since the last line of the log.
    if saved.latest_step() is not None:
      first_step, params, opt_state, recent = saved.restore(
        state.params, state.opt_state
      )
      step = replicate(jnp.int32(first_step), mesh)
      state = state.replace(step=step, params=params, opt_state=opt_state)
      _logger.info("resuming %s from step %d", workdir, first_step)
    shardings = clip_shardings(
      clip.params, mesh, config.clip.split_over_devices
    )
    clip_params = jax.device_put(clip.params, shardings)
    train_step = make_train_step(
      model,
      optimizer,
      mesh,
      seed=config.seed,
      reconstruction=settings.reconstruction,
      clip_shardings=shardings,
    )
    evaluate = make_evaluator(config, model, clip, mesh, shardings)
    evaluation_data = []
    if settings.evaluate_every_steps:  # Found to be missing now, not later.
      evaluation_data = [
        load_examples(config, name, config.evaluation.split)
        for name in config.evaluation.datasets
      ]
    _logger.info(
      "trainable parameters:\n%s",
      parameter_overview.get_parameter_overview(
        state.params, include_stats=False
      ),
    )
    _logger.info(
      "training on %d images of %s: %d steps of %d images; %d %s device(s) of"
      " %d process(es), mesh %s; %s trainable parameters; %.1f MB of training"
      " state and %.1f MB of CLIP on each device",
      len(examples),
      examples.name,
      num_steps,
      settings.batch_size,
      mesh.size,
      jax.default_backend(),
      jax.process_count(),
      dict(mesh.shape),
      f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)):,}",
      num_device_bytes(state) / 1e6,
      num_device_bytes(clip_params) / 1e6,
    )
    skipped = {} if config.input.unreadable_files == "skip" else None
    features = None
    if first_step < num_steps:
      features = open_features(
        config,
        examples,
        settings.split,
        model,
        clip,
        mesh,
        batch_size=settings.batch_size,
        skipped=skipped,
      )
    batches = pipeline.iterate_batches(
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

    def num_images(step):
      epochs, rest = divmod(step, epoch_steps)
      rest = min(rest * settings.batch_size, len(examples))
      return epochs * len(examples) + rest

    progress = Progress(
      num_images(num_steps), "images", start=num_images(first_step)
    )
    log = metrics_log.RunLog(
      workdir,
      first_step,
      use_tensorboard=settings.use_tensorboard,
      is_active=is_writer,
    )
    waiting = []  # The step before, which devices may still be computing.
    num_skipped = 0
    is_profiling = False
    profiled = ()
    if profile_steps:
      profiled = range(profile_steps[0], profile_steps[1] + 1)

    def save_now():
      """Before an error that has to do with a file, not with the state."""
      last = int(state.step)
      if jax.process_count() > 1 or last in (first_step, saved.latest_step()):
        return  # Of a cluster's processes one alone cannot save.
      terms = [jax.device_get(row) for done, row, _ in waiting if done <= last]
      recent.extend(jax.tree.map(float, row) for row in terms)
      saved.save(last, state.params, state.opt_state, recent)

    batches = _save_on_error(batches, save_now)
    signals.defer()
    for step, batch in enumerate(batches, start=first_step + 1):
      if skipped and len(skipped) > num_skipped:
        num_skipped = len(skipped)
        _add_skipped(workdir, skipped)
        if num_skipped == len(examples):
          raise InputError(f"no image of {examples.name!r} can be read")
      unmasked = batch["padding_mask"] & ~batch["has_mask"]
      if unmasked.any():
        raise _no_mask(examples.name, batch["path"][unmasked][0])
      if not is_profiling and step in profiled:
        is_profiling = True
        jax.profiler.start_trace(workdir / "profile")
      inputs = shard_batch(batch, mesh, STEP_FIELDS)
      state, terms = train_step(state, clip_params, inputs)
      waiting.append((step, terms, batch["path"][batch["padding_mask"]]))

      is_last = step == num_steps
      is_logged = is_last or step % settings.log_every_steps == 0
      is_saved = is_last or step % settings.checkpoint_every_steps == 0
      is_evaluated = settings.evaluate_every_steps and (
        is_last or step % settings.evaluate_every_steps == 0
      )
      is_interrupted = signals.is_due(step - first_step) and not is_last
      is_profiled = is_profiling and (
        is_last or is_interrupted or step + 1 not in profiled
      )
      is_saved |= is_interrupted
      wants_all = is_logged or is_saved or is_evaluated or is_profiled
      while len(waiting) > (0 if wants_all else 1):
        done_step, done_terms, paths = waiting.pop(0)
        done_terms = jax.tree.map(float, jax.device_get(done_terms))
        if not all(map(math.isfinite, done_terms.values())):
          _save_non_finite(
            workdir, saved, state, recent, done_step, done_terms, paths
          )
        recent.append(done_terms)
      if is_profiled:
        is_profiling = False
        jax.profiler.stop_trace()
        _logger.info(
          "profile of steps %d to %d: %s/profile", *profile_steps, workdir
        )
      if is_logged:
        means = _means(recent)
        recent.clear()
        log.write(step, means)
        progress.update(
          num_images(step),
          f"epoch {math.ceil(step / epoch_steps)}/{settings.num_epochs},"
          f" step {step}/{num_steps}, loss {means['loss']:.4f}",
        )
      if is_evaluated:  # Before saving: a run killed here evaluates again.
        try:
          found = {
            data.name: evaluate(state.params, clip_params, data).mean
            for data in evaluation_data
          }
        except InputError:
          save_now()
          raise
        log.write(
          step,
          {
            f"{name}/{metric}": value
            for name, mean in found.items()
            for metric, value in mean.items()
            if not math.isnan(value)
          },
        )
      if is_saved:
        saved.save(step, state.params, state.opt_state, recent)
      if is_interrupted:
        signals.stop(
          f"stopped after step {step} of {num_steps}, which is saved: the same"
          f" command goes on from there (exit code {signals.EXIT_CODE})"
        )
    if not num_steps and saved.latest_step() is None:
      saved.save(0, state.params, state.opt_state)
  if is_writer and num_steps and (curves := metrics_log.plot_losses(workdir)):
    _logger.info("curves of the losses: %s", curves)
  return state


def _save_on_error(batches, save):
  """The batches; if one cannot be had, what was trained is saved first."""
  try:
    yield from batches
  except InputError:
    save()
    raise


def _save_non_finite(workdir, saved, state, recent, step, terms, paths):
  """Saves the state before a step with a NaN or an infinity, and raises."""
  last = int(state.step)
  if last != saved.latest_step():
    saved.save(last, state.params, state.opt_state, recent)
  names = [name for name, value in terms.items() if not math.isfinite(value)]
  report = workdir / "non_finite.json"
  content = {
    "step": step,
    "terms": {name: repr(value) for name, value in terms.items()},
    "examples": [str(path) for path in paths],
  }
  if jax.process_index() == 0:
    write_file(report, json.dumps(content, indent=2) + "\n")
  raise InputError(
    f"step {step} is not finite in: {', '.join(names)}. {report} lists the"
    f" terms and the batch's examples; checkpoint {last} is the state before,"
    " from which the same command takes that step again."
  )


def _read_start(init_from, params, clip, allow_other_clip):
  """Trained prompts in place of the random ones; an absent encoder's stay."""
  record = prompts.find_record(init_from)
  if record is not None:
    check_clip(record, clip.sha256, str(init_from), allow_other_clip)
  trained, source = prompts.load_prompts(init_from, params)
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


def _no_mask(name, path):
  return InputError(
    f"data set {name!r} cannot be trained on: its images, such as {path}, come"
    " without masks. Choose another config.train.dataset."
  )


def _add_skipped(workdir, skipped):
  """Adds to what the run skipped before it was interrupted."""
  process = jax.process_index()  # Each reads, and so skips, its own part.
  path = workdir / f"skipped_files{f'-{process}' if process else ''}.json"
  before = json.loads(path.read_text("utf-8")) if path.exists() else {}
  write_file(path, json.dumps({**before, **skipped}, indent=2) + "\n")


def _means(rows):
  return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
