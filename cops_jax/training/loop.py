"""Training the prompts on one auxiliary data set, CLIP frozen."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from cops_jax import methods
from cops_jax.clip.flops import (
  PEAK_TERA_FLOPS,
  prompt_flops,
  vision_flops,
)
from cops_jax.config import max_pixels
from cops_jax.errors import InputError
from cops_jax.evaluation.dataset import DatasetEvaluator
from cops_jax.inputs import pipeline
from cops_jax.inputs.features import open_features
from cops_jax.inputs.pipeline import load_examples
from cops_jax.paths import AnyPath, to_path
from cops_jax.runs import checkpoints, lock, metrics_log
from cops_jax.runs.record import Record, check_clip, claim_workdir, find_record
from cops_jax.runtime import signals
from cops_jax.runtime.compilation import keep_compiled_programs
from cops_jax.runtime.mesh import (
  make_mesh,
  num_device_bytes,
  replicate,
  shard_batch,
)
from cops_jax.runtime.processes import in_all_processes, in_first_process
from cops_jax.runtime.randomness import INIT_KEY, random_key
from cops_jax.training import hooks
from cops_jax.training.account import Account, Speed, account_for_input
from cops_jax.training.non_finite import StopNonFinite
from cops_jax.training.step import (
  STEP_FIELDS,
  TrainState,
  create_train_state,
  make_optimizer,
  make_train_step,
)
from cops_jax.weights import (
  PretrainedCLIP,
  build_model,
  clip_of,
  place_clip,
  pretrained,
  prompts,
  settle_dtype,
)

_logger = logging.getLogger(__name__)


def train(
  config: Any,
  workdir: str | os.PathLike,
  *,
  init_from: str | os.PathLike = "",
  allow_other_clip: bool = False,
  allow_other_data: bool = False,
  profile_steps: Sequence[int] = (),
) -> TrainState:
  """Trains, or goes on training, in a work directory.

  Writes run.json, metrics.jsonl (a line of loss terms every few steps),
  losses.png, checkpoints/ and, if unreadable files were left out,
  skipped_files.json with the reason for each. A directory that holds this
  config's checkpoints is resumed from the newest.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    workdir: created if missing.
    init_from: trained prompts to begin from, see `pretrained.find_start`;
      "" begins with random ones. The optimizer starts fresh.
    allow_other_clip: whether to accept other CLIP weights than those that the
      run, or what it begins from, was trained with.
    allow_other_data: whether to go on with other images than the run began
      with.
    profile_steps: first and last step to profile, into profile/.

  Returns:
    The final state.

  Raises:
    InputError: see the message.
    SystemExit: a signal came and was caught, see `signals`; what was
      trained until then is saved.
  """
  method = methods.find(config.method)
  if not method.IS_TRAINED:
    raise InputError(
      f"the method {config.method!r} has nothing to train: evaluate it, cops"
      " evaluate --config=... --workdir=..."
    )
  account = Account()
  keep_compiled_programs(config)
  begun = find_record(workdir)
  prompts.require_method(begun, config.method, workdir)
  config = settle_dtype(config, begun)
  run = in_all_processes(_open_run, config, to_path(workdir), account)
  state = _initial_state(run, init_from, allow_other_clip)
  with lock.hold(run.workdir, "training"):
    record = Record(
      config.to_dict(),
      run.clip.sha256,
      str(init_from),
      data_sha256=run.examples.fingerprint(),
    )
    in_first_process(
      lambda: claim_workdir(
        run.workdir,
        record,
        allow_other_clip=allow_other_clip,
        allow_other_data=allow_other_data,
      )
    )
    with checkpoints.Checkpoints(
      run.workdir, config.train.num_kept_checkpoints
    ) as saved:
      position = _restore(run, saved, state)
      _train(run, position, saved, profile_steps)
    if jax.process_index() == 0 and run.schedule.num_steps:
      curves = metrics_log.plot_losses(
        run.workdir,
        f"{method.TITLE} on {run.examples.name}, seed {config.seed}",
        run.schedule.epoch_steps,
      )
      if curves:
        _logger.info("curves of the losses: %s", curves)
      _logger.info("the run took %s", account.describe())
  return position.state


@dataclasses.dataclass(frozen=True)
class _Run:
  """What a run is made of."""

  config: Any
  workdir: AnyPath
  clip: PretrainedCLIP
  model: nn.Module
  examples: Sequence[Mapping[str, Any]]
  mesh: Mesh
  optimizer: optax.GradientTransformation
  schedule: hooks.Schedule
  account: Account


def _open_run(config, workdir, account):
  settings = config.train
  clip = clip_of(config)
  model = build_model(config, clip)
  examples = load_examples(config, config.train.dataset, config.train.split)
  if not examples[0]["has_mask"]:  # Reported before features are computed.
    raise _no_mask(examples.name, examples[0]["path"])
  schedule = hooks.Schedule(
    len(examples), settings.batch_size, settings.num_epochs
  )
  return _Run(
    config,
    workdir,
    clip,
    model,
    examples,
    make_mesh(),
    make_optimizer(settings, schedule.num_steps),
    schedule,
    account,
  )


def _initial_state(run, init_from, allow_other_clip):
  """The state before the first step."""
  params = run.model.init_trainable(
    random_key(run.config.seed, INIT_KEY), run.clip.params
  )
  state = replicate(create_train_state(params, run.optimizer), run.mesh)
  if init_from and not checkpoints.has_checkpoint(run.workdir):
    params = _read_start(run, init_from, state.params, allow_other_clip)
    state = state.replace(params=replicate(params, run.mesh))
  return state


def _restore(run, saved, state):
  """Where the newest checkpoint is; without any, at the beginning."""
  if saved.latest_step() is None:
    return hooks.Position(0, state)
  step, params, opt_state, recent = saved.restore(state.params, state.opt_state)
  _logger.info("resuming %s from step %d", run.workdir, step)
  state = state.replace(
    step=replicate(jnp.int32(step), run.mesh),
    params=params,
    opt_state=opt_state,
  )
  return hooks.Position(step, state, recent, restored_step=step)


def _train(run, position, saved, profile_steps):
  """Takes the steps that are left, and moves the position along."""
  clip_params, shardings = place_clip(
    run.clip, run.model, run.mesh, run.config.clip.split_over_devices
  )
  train_step = make_train_step(run.model, run.optimizer, run.mesh, shardings)
  evaluate = _make_evaluate(run, clip_params, shardings)
  _log_sizes(run, position.state, clip_params)
  errors = []
  batches = _iterate_batches(run, position.step, errors)
  acting = _make_hooks(run, position, saved, evaluate, profile_steps)

  def try_step(position, batch):
    # A step takes its state's memory, and takes over that it is not finite.
    state = jax.tree.map(jnp.copy, position.state)
    state = state.replace(is_finite=jnp.ones_like(state.is_finite))
    inputs = shard_batch(batch, run.mesh, STEP_FIELDS)
    return jax.device_get(train_step(state, clip_params, inputs)[1])

  stop_non_finite = StopNonFinite(run.workdir, acting.save, try_step, errors)
  if acting.evaluate.is_missing(position.step, run.workdir):
    acting.evaluate.act(position)
  signals.defer()
  batches = account_for_input(batches, run.account, position.is_computed)
  with contextlib.closing(acting.profile):
    doing = "compiling"  # The first step is.
    for batch in acting.save.guard(batches, position):
      acting.profile.start(position.step + 1)
      inputs = shard_batch(batch, run.mesh, STEP_FIELDS)
      with run.account.spend(doing):
        state, terms = train_step(position.state, clip_params, inputs)
      doing = "steps"
      position.advance(state, terms, batch)
      due = acting.due(position.step)
      # With a step left to compute, devices do not wait for the host.
      while len(position.waiting) > (0 if due else 1):
        with run.account.spend(doing):
          done = position.fetch()
        stop_non_finite.check(done, position)
        position.recent.append(done.terms)
      for hook in due:
        hook.act(position)
  acting.save.finish(position)  # Without steps, the untrained prompts.


def _make_evaluate(run, clip_params, shardings):
  """From trainable parameters to the means on all data sets to evaluate."""
  settings = run.config.evaluation
  evaluator = DatasetEvaluator(
    run.config, run.model, run.clip, run.mesh, shardings
  )
  examples = []
  if run.config.train.evaluate_every_steps:  # Missing ones are reported now.
    examples = in_all_processes(
      lambda: [
        load_examples(run.config, name, settings.split)
        for name in settings.datasets
      ]
    )
  return lambda params: {
    data.name: evaluator.run(params, clip_params, data).mean
    for data in examples
  }


def _log_sizes(run, state, clip_params):
  from clu import parameter_overview

  overview = parameter_overview.get_parameter_overview(
    state.params, include_stats=False
  )
  _logger.info("trainable parameters:\n%s", overview)
  _logger.info(
    "training on %d images of %s: %d steps of %d images; %d %s device(s) of"
    " %d process(es), mesh %s; %s trainable parameters; %.1f MB of training"
    " state and %.1f MB of CLIP on each device",
    len(run.examples),
    run.examples.name,
    run.schedule.num_steps,
    run.schedule.batch_size,
    run.mesh.size,
    jax.default_backend(),
    jax.process_count(),
    dict(run.mesh.shape),
    f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)):,}",
    num_device_bytes(state) / 1e6,
    num_device_bytes(clip_params) / 1e6,
  )


def _iterate_batches(run, first_step, errors):
  """The batches of the steps that are left; features are computed before."""
  config, steps = run.config, range(first_step, run.schedule.num_steps)
  skipped = hooks.SkippedFiles(
    run.workdir, run.examples.name, len(run.examples)
  )
  found = skipped.found if config.input.unreadable_files == "skip" else None
  features = None
  if steps:
    with run.account.spend("features"):
      features = open_features(
        config,
        run.examples,
        config.train.split,
        run.model,
        run.clip,
        run.mesh,
        batch_size=config.train.batch_size,
        skipped=found,
      )
  if features is not None:
    _logger.info(
      "training from cached features: the vision tower runs once for each of %d"
      " images, instead of in all %d epochs",
      len(run.examples),
      config.train.num_epochs,
    )
  options = pipeline.BatchOptions(
    image_size=config.model.image_size_pixels,
    patch_size=run.clip.config.vision_config.patch_size,
    batch_size=config.train.batch_size,
    num_devices=run.mesh.size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    num_workers=config.input.num_workers,
    max_pixels=max_pixels(config),
    shuffle_seed=config.seed,
    full_masks=run.model.needs_masks,
  )
  batches = pipeline.iterate_batches(
    run.examples, options, steps, skipped=found, features=features
  )
  return pipeline.keep_pace(
    _checked(batches, run, skipped),
    len(steps),
    lambda: pipeline.padding_batch(options, features),
    errors,
  )


def _checked(batches, run, skipped):
  for batch in batches:
    skipped.write_new()
    unmasked = batch["padding_mask"] & ~batch["has_mask"]
    if unmasked.any():
      raise _no_mask(run.examples.name, batch["path"][unmasked][0])
    yield batch


@dataclasses.dataclass(frozen=True)
class _Hooks:
  """What is done between steps, in this order."""

  profile: hooks.Profile
  log: hooks.Log
  save: hooks.Save
  stop: hooks.Stop
  evaluate: hooks.Evaluate  # After saving: a run killed here loses nothing.

  def due(self, step: int) -> list[hooks.Hook]:
    """Those that are to act after a step; each is asked once."""
    every = (self.profile, self.log, self.save, self.stop, self.evaluate)
    return [hook for hook in every if hook.is_due(step)]


def _make_hooks(run, position, saved, evaluate, profile_steps):
  settings, schedule = run.config.train, run.schedule
  log = metrics_log.RunLog(
    run.workdir,
    position.step,
    use_tensorboard=settings.use_tensorboard,
    is_active=jax.process_index() == 0,
  )
  save = hooks.Save(
    saved,
    log,
    schedule,
    position.restored_step,
    settings.checkpoint_every_steps,
    run.account,
  )
  evaluating = hooks.Evaluate(
    evaluate, save, log, schedule, settings.evaluate_every_steps, run.account
  )
  return _Hooks(
    profile=hooks.Profile(run.workdir, profile_steps, schedule),
    log=hooks.Log(
      log,
      schedule,
      position.step,
      settings.log_every_steps,
      _make_speed(run, position),
    ),
    save=save,
    stop=hooks.Stop(save, evaluating, schedule, position.step),
    evaluate=evaluating,
  )


def _make_speed(run, position):
  clip = run.clip.config
  num_tokens = run.model.num_prompt_tokens(is_training=True)
  flops = prompt_flops(num_tokens, clip, is_training=True)
  if run.config.feature_cache.dtype == "none":
    flops += vision_flops(run.config, clip)
  peak = None
  if jnp.dtype(run.config.clip.dtype).itemsize == 2:
    kind = run.mesh.devices.flat[0].device_kind
    peak = PEAK_TERA_FLOPS.get(kind, 0) * 1e12 * run.mesh.size or None
  first_image = run.schedule.num_images(position.step)
  return Speed(run.account, position.step, first_image, flops, peak)


def _read_start(run, init_from, params, allow_other_clip):
  """Trained prompts in place of the random ones; an absent encoder's stay."""
  path = in_all_processes(pretrained.find_start, init_from)
  record = prompts.find_record(path)
  if record is not None:
    check_clip(record, run.clip.sha256, str(init_from), allow_other_clip)
  trained, source = prompts.load_prompts(path, params, run.config.method)
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
