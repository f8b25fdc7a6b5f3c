"""The loop that trains prompts on one auxiliary data set."""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cops_jax import methods
from cops_jax.errors import InputError
from cops_jax.evaluation import normal_images
from cops_jax.evaluation.evaluator import Evaluator
from cops_jax.files import find_files, read_file, to_json, write_file
from cops_jax.inputs import describe_data, load_examples, pipeline
from cops_jax.paths import is_address, to_path
from cops_jax.progress import Progress
from cops_jax.runs import checkpoints, lock, metrics_log
from cops_jax.runs.record import Record, claim_workdir, require_same_job
from cops_jax.runtime import signals
from cops_jax.runtime.compilation import keep_compiled_programs
from cops_jax.runtime.mesh import make_mesh, replicate, shard_batch
from cops_jax.runtime.processes import (
  agree,
  gather_objects,
  in_all_processes,
  in_first_process,
  require_same,
)
from cops_jax.runtime.randomness import INIT_KEY, random_key
from cops_jax.training import setup
from cops_jax.training.step import STEP_FIELDS, TrainState
from cops_jax.training.stopwatch import Stopwatch, describe_speed, measure_speed
from cops_jax.weights import prompts

_logger = logging.getLogger(__name__)

_MAX_SHOWN = 3


def train(
  config: Any,
  workdir: str | os.PathLike,
  *,
  init_from: str | os.PathLike = "",
  allow_other_backbone: bool = False,
  allow_other_data: bool = False,
  profile_steps: Sequence[int] = (),
) -> TrainState:
  """Trains prompts, and resumes from the run's newest checkpoint if it has one.

  Writes run.json, metrics.jsonl (loss terms every few steps), losses.png and
  checkpoints/, and skipped_files.json if unreadable files were skipped.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    workdir: run directory; created if missing.
    init_from: trained prompts to start from, see `pretrained.find_start`; an
      empty string starts from random prompts. The optimizer's state is never
      taken over.
    allow_other_backbone: if True, accepts other backbone weights than those of
      the run or of `init_from`.
    allow_other_data: if True, resumes with other images than the run has used.
    profile_steps: first and last step to profile; empty to profile none. The
      profile is written to the folder profile/.

  Returns:
    The state after the last step.

  Raises:
    InputError: if the config, an input or the run cannot be used.
    SystemExit: after a signal; all completed steps are saved. See `signals`.
  """
  watch = Stopwatch()
  keep_compiled_programs(config)
  workdir = to_path(workdir)
  config, backbone, model, examples = in_all_processes(
    setup.load, config, workdir
  )
  record = Record(
    config.to_dict(),
    backbone.sha256,
    str(init_from),
    data_sha256=examples.fingerprint(),
  )
  require_same_job(
    record, backbone.config, describe_data(examples, record.data_sha256)
  )
  params = model.init_trainable(
    random_key(config.seed, INIT_KEY), backbone.params
  )
  if init_from and not in_first_process(checkpoints.find_steps, workdir):
    params = setup.read_start(
      config, backbone, params, init_from, allow_other_backbone
    )
  require_same({"SHA-256 of the prompts": prompts.hash_prompts(params)})
  with lock.hold(workdir, "training"):
    in_first_process(
      lambda: claim_workdir(
        workdir,
        record,
        allow_other_backbone=allow_other_backbone,
        allow_other_data=allow_other_data,
      )
    )
    state = _train(
      config, workdir, examples, backbone, model, params, watch, profile_steps
    )
    if jax.process_index() == 0 and config.train.num_epochs:
      title = methods.find(config.method).TITLE
      curves = metrics_log.plot_losses(
        workdir,
        f"{title} on {examples.name}, seed {config.seed}",
        pipeline.num_batches(len(examples), config.train.batch_size),
      )
      if curves:
        _logger.info("wrote the loss curves: %s", curves)
      _logger.info("the run took %s", watch.describe())
  return state


def _train(
  config, workdir, examples, backbone, model, params, watch, profile_steps
):
  """Runs the remaining steps; `params` are the parameters before step 1."""
  settings, mesh = config.train, make_mesh()
  num_steps, state, train_step, backbone_params, shardings = setup.prepare(
    config, examples, backbone, model, params
  )
  evaluate = _make_evaluate(config, backbone, model, backbone_params, shardings)
  with contextlib.ExitStack() as stack:
    saved = checkpoints.Checkpoints(workdir, settings.num_kept_checkpoints)
    stack.enter_context(saved)
    state, recent, saved_step = _restore(workdir, saved, state)
    first_step = saved_step or 0
    with watch.spend("features"):
      batches, errors = setup.open_batches(
        config, workdir, examples, backbone, model, range(first_step, num_steps)
      )
    stack.enter_context(contextlib.closing(batches))
    log = metrics_log.RunLog(workdir, settings.use_tensorboard)
    in_first_process(log.open, first_step)
    describe = _make_describe(config, model, examples, watch, first_step)
    first, last = profile_steps or (1, 0)
    profiled = range(max(first, first_step + 1), min(last, num_steps) + 1)
    profile = stack.enter_context(contextlib.ExitStack())

    signals.defer()
    asked = signals.ask(mesh)
    waiting = collections.deque()  # Steps that devices may still compute.
    for step in range(first_step, num_steps + 1):  # `step` steps are done.
      with watch.spend("steps"):
        due = _find_due(settings, workdir, step, first_step, num_steps, asked)
        # Unless the newest step is due, only the one before it is fetched. With
        # one step left to compute, devices never wait for the host.
        num_left = 0 if due or step in profiled[-1:] else 1
        failed = _fetch(waiting, num_left, recent)
      if failed:
        break
      if step in profiled[-1:]:
        profile.close()
      if "log" in due:
        in_first_process(saved.check)  # The running save may have failed.
        in_first_process(log.write, step, describe(step, recent))
      # A run that is killed during the evaluation resumes from this step.
      if "save" in due and step != saved_step:
        _save(watch, log, saved, step, state, recent)
        saved_step = step
      if "stop" in due:
        saved.wait()
        signals.stop(
          f"stopped after step {step} of {num_steps}, which is saved"
        )
      if "evaluate" in due:
        with watch.spend("evaluating"):
          in_first_process(log.write, step, evaluate(state.params))
        in_first_process(log.flush)
      if step == num_steps:
        break

      batch = _fetch_batch(batches, state, watch)
      if batch is None:  # `errors` has the reason.
        break
      if step + 1 in profiled[:1]:
        profile.enter_context(_profile(workdir, profiled))
      asked = signals.ask(mesh)
      inputs = shard_batch(batch, mesh, STEP_FIELDS)
      with watch.spend("compiling" if step == first_step else "steps"):
        state, terms = train_step(state, backbone_params, inputs)
      waiting.append((step + 1, terms, batch["path"][batch["padding_mask"]]))

    failed = failed or _fetch(waiting, 0, recent)
    if failed or errors:
      last_step = int(state.step)  # Excludes steps that are not finite.
      if last_step not in (first_step, saved_step):
        _save(watch, log, saved, last_step, state, recent)
      saved.wait()
      agree(errors)
      raise _report_not_finite(workdir, *failed)
  return state


def _find_due(settings, workdir, step, first_step, num_steps, asked):
  """Returns what is due after a step: "log", "save", "stop", "evaluate"."""
  every = {
    "log": settings.log_every_steps,
    "save": settings.checkpoint_every_steps,
    "evaluate": settings.evaluate_every_steps,
  }
  is_last = step == num_steps
  due = {
    name
    for name, steps in every.items()
    if step > 0 < steps and (is_last or step % steps == 0)
  }
  if step == first_step:  # Only an interrupted evaluation is repeated.
    due &= {"evaluate"}
    if due and not in_first_process(_lacks_evaluation, workdir, step):
      due = set()
  if signals.is_due(asked) and (not is_last or "evaluate" in due):
    due.add("stop")
  if is_last or due & {"stop", "evaluate"}:
    due.add("save")
  return due


def _save(watch, log, saved, step, state, recent):
  with watch.spend("saving"):
    # The log comes first: a resumed run drops its lines after the checkpoint.
    in_first_process(log.flush)
    saved.save(step, state.params, state.opt_state, recent)


def _make_describe(config, model, examples, watch, first_step):
  """Returns a function from a step and recent loss terms to a log line.

  The function also reports progress and clears the terms.
  """
  settings = config.train
  epoch_steps = pipeline.num_batches(len(examples), settings.batch_size)
  progress = Progress(
    settings.num_epochs * epoch_steps, "steps", start=first_step
  )
  step_images = len(examples) / epoch_steps  # On average over an epoch.
  peak_rate = setup.peak_images_per_second(config, model)
  logged_step, logged_seconds = first_step, watch.seconds.copy()

  def describe(step, recent):
    nonlocal logged_step, logged_seconds
    means = {
      name: sum(terms[name] for terms in recent) / len(recent)
      for name in recent[0]
    }
    recent.clear()
    spent = watch.seconds - logged_seconds
    speed = measure_speed(spent, step - logged_step, step_images, peak_rate)
    logged_step, logged_seconds = step, watch.seconds.copy()
    progress.update(
      step,
      f"epoch {math.ceil(step / epoch_steps)}/{settings.num_epochs}, loss"
      f" {means['loss']:.4f} ({describe_speed(speed)})",
    )
    return means | speed

  return describe


def _restore(workdir, saved, state):
  """Restores state, loss terms and step of the newest checkpoint, if any."""
  if in_first_process(saved.latest_step) is None:
    return state, [], None
  step, params, opt_state, recent = saved.restore(state.params, state.opt_state)
  sha256 = prompts.hash_prompts(params)
  require_same({f"SHA-256 of the prompts of step {step}": sha256})
  _logger.info("resuming %s from step %d", workdir, step)
  state = state.replace(
    step=replicate(jnp.int32(step), state.step.sharding.mesh),
    params=params,
    opt_state=opt_state,
  )
  return state, recent, step


def _fetch_batch(batches, state, watch):
  """Returns the next batch, or None, and counts the time spent waiting."""
  began = time.monotonic()
  batch = next(batches, None)
  # Input is late only if the devices have finished their steps.
  is_late = state.step.is_ready()
  watch.seconds["input" if is_late else "steps"] += time.monotonic() - began
  return batch


def _fetch(waiting, num_left, recent):
  """Moves loss terms to `recent`, except those of the newest `num_left` steps.

  Returns:
    The first step that is not finite, with its terms and this process's image
    paths; None if all steps are finite.
  """
  while len(waiting) > num_left:
    step, terms, paths = waiting.popleft()
    terms = {name: float(term) for name, term in jax.device_get(terms).items()}
    if not all(map(math.isfinite, terms.values())):
      return step, terms, paths
    recent.append(terms)
  return None


def _report_not_finite(workdir, step, terms, paths):
  """Writes non_finite.json and returns the error that ends the run."""
  names = [name for name, term in terms.items() if not math.isfinite(term)]
  paths = [path for part in gather_objects(paths.tolist()) for path in part]
  report = workdir / "non_finite.json"
  content = {
    "step": step,
    "terms": {name: repr(term) for name, term in terms.items()},
    "examples": paths,
  }
  in_first_process(write_file, report, to_json(content, indent=2) + "\n")
  shown = ", ".join(paths[:_MAX_SHOWN] + ["..."] * (len(paths) > _MAX_SHOWN))
  return InputError(
    f"step {step} has values that are not finite: {', '.join(names)}. Its"
    f" images are {shown}; {report} lists all of them and the loss terms. The"
    " state before this step is saved. Run the same command to repeat the step."
  )


@contextlib.contextmanager
def _profile(workdir, steps):
  """Writes a profile of the steps in the context to the folder profile/."""
  folder = workdir / "profile"
  with contextlib.ExitStack() as stack:
    local = folder
    if is_address(folder):  # The profiler writes local files only.
      local = stack.enter_context(tempfile.TemporaryDirectory())
    with jax.profiler.trace(local):
      yield
    if local != folder:
      for name in find_files(local):
        write_file(folder / name, read_file(f"{local}/{name}"))
  _logger.info(
    "wrote the profile of steps %d to %d: %s", steps[0], steps[-1], folder
  )


def _make_evaluate(config, backbone, model, backbone_params, shardings):
  """Returns a function of trainable parameters that evaluates all data sets."""
  evaluator = Evaluator(config, model, backbone, make_mesh(), shardings)
  examples = []
  if config.train.evaluate_every_steps:  # A missing data set must fail early.
    examples = in_all_processes(
      lambda: [
        load_examples(config, name, config.evaluation.split)
        for name in config.evaluation.datasets
      ]
    )
    for data in examples:
      require_same(describe_data(data, data.fingerprint()))
  normal = [
    normal_images.draw(config, *row)
    for row in zip(config.evaluation.datasets, examples, strict=False)
  ]

  def evaluate(params):
    means = {
      f"{data.name}/{metric}": value
      for data, images in zip(examples, normal, strict=True)
      for metric, value in evaluator.run(
        params, backbone_params, data, normal=images
      ).mean.items()
    }
    return {
      name: value for name, value in means.items() if not math.isnan(value)
    }

  return evaluate


def _lacks_evaluation(workdir, step):
  """Returns True if the log has no evaluation after a step."""
  rows = metrics_log.read_metrics(workdir)
  # Only lines of loss terms have a "loss".
  return all("loss" in row for row in rows if row["step"] == step)
