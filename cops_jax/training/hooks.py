"""What happens between the steps of training; each hook decides when it acts.

A hook has `is_due(step)`, asked once after every step, and `act(position)`. As
long as none is due, devices go on computing while the host prepares what they
get next.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import logging
import math
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from cops_jax import copies
from cops_jax.errors import InputError
from cops_jax.files import read_file, write_file
from cops_jax.inputs import pipeline
from cops_jax.paths import AnyPath, is_address
from cops_jax.progress import Progress
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.metrics_log import RunLog, read_metrics
from cops_jax.runtime import signals
from cops_jax.runtime.processes import in_first_process
from cops_jax.training.account import Account, Speed, describe_speed
from cops_jax.training.step import TrainState

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How long training takes.

  Attributes:
    num_examples: in an epoch.
    batch_size: examples in a step.
    num_epochs: of the whole training.
  """

  num_examples: int
  batch_size: int
  num_epochs: int

  @property
  def epoch_steps(self) -> int:
    """Steps in an epoch, a short last one included."""
    return pipeline.num_batches(self.num_examples, self.batch_size)

  @property
  def num_steps(self) -> int:
    """Steps in all."""
    return self.num_epochs * self.epoch_steps

  def num_images(self, step: int) -> int:
    """Images seen when a step is done."""
    epochs, rest = divmod(step, self.epoch_steps)
    rest = min(rest * self.batch_size, self.num_examples)
    return epochs * self.num_examples + rest

  def is_due(self, step: int, every_steps: int) -> bool:
    """Whether a step is a multiple of `every_steps`, or the last one."""
    return step == self.num_steps or step % every_steps == 0


class StepTerms(NamedTuple):
  """The loss terms of one step.

  Attributes:
    step: its number.
    terms: by name; arrays on devices or, once they are fetched, numbers.
    batch: this process's part of it, see `pipeline.iterate_batches`.
  """

  step: int
  terms: Mapping[str, Any]
  batch: Mapping[str, np.ndarray]


@dataclasses.dataclass
class Position:
  """How far training has come.

  Attributes:
    step: steps taken.
    state: after them; devices may still be computing it.
    recent: terms, fetched, of the steps since the log's last line.
    waiting: terms of the newest steps, which may still be computed.
    restored_step: that training goes on from; None if it begins.
  """

  step: int
  state: TrainState
  recent: list[Mapping[str, float]] = dataclasses.field(default_factory=list)
  waiting: list[StepTerms] = dataclasses.field(default_factory=list)
  restored_step: int | None = None

  def advance(
    self,
    state: TrainState,
    terms: Mapping[str, jax.Array],
    batch: Mapping[str, np.ndarray],
  ) -> None:
    """Notes a step that devices have been given.

    Args:
      state: after it.
      terms: its loss terms, of shape ().
      batch: it was taken on.
    """
    self.step += 1
    self.state = state
    self.waiting.append(StepTerms(self.step, terms, batch))

  def is_computed(self) -> bool:
    """Whether devices have nothing left to compute."""
    return all(leaf.is_ready() for leaf in jax.tree.leaves(self.state.step))

  def fetch(self) -> StepTerms:
    """Takes the oldest waiting terms to the host; waits for their step."""
    oldest = self.waiting.pop(0)
    terms = jax.tree.map(float, jax.device_get(oldest.terms))
    return oldest._replace(terms=terms)


class Hook(abc.ABC):
  """Something that is done after some steps."""

  @abc.abstractmethod
  def is_due(self, step: int) -> bool:
    """Whether to act after this step."""

  @abc.abstractmethod
  def act(self, position: Position) -> None:
    """Acts; all terms up to the position are fetched by then."""


class Profile(Hook):
  """Profiles some steps."""

  def __init__(
    self, workdir: AnyPath, steps: Sequence[int], schedule: Schedule
  ):
    """Plans a profile.

    Args:
      workdir: receives the folder profile/.
      steps: the first and the last one; empty for none.
      schedule: of the training.
    """
    self._folder = workdir / "profile"
    self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
    self._schedule = schedule
    self._running: pathlib.Path | None = None

  def start(self, step: int) -> None:
    """To be called before each step."""
    if not self._running and step in self._steps:
      is_remote = is_address(self._folder)
      self._running = pathlib.Path(
        tempfile.mkdtemp() if is_remote else self._folder
      )
      jax.profiler.start_trace(self._running)

  def is_due(self, step: int) -> bool:
    """Whether this was the last step to profile."""
    return self._running is not None and (
      step == self._schedule.num_steps or step + 1 not in self._steps
    )

  def act(self, position: Position) -> None:
    """Writes the profile."""
    self.close()

  def close(self) -> None:
    """Writes the profile, if one has begun."""
    if not self._running:
      return
    jax.profiler.stop_trace()
    if self._running != self._folder:
      copies.send(self._running, self._folder)
      shutil.rmtree(self._running)
    self._running = None
    _logger.info(
      "profile of steps %d to %d: %s",
      self._steps[0],
      self._steps[-1],
      self._folder,
    )


class Log(Hook):
  """Writes the means of the loss terms and how fast it goes; shows progress."""

  def __init__(
    self,
    log: RunLog,
    schedule: Schedule,
    first_step: int,
    every_steps: int,
    speed: Speed,
  ):
    """Begins to measure the time.

    Args:
      log: to write to.
      schedule: of the training.
      first_step: steps that were taken before.
      every_steps: how often to write.
      speed: measures how fast it goes.
    """
    self._log, self._schedule, self._every_steps = log, schedule, every_steps
    self._speed = speed
    self._progress = Progress(
      schedule.num_images(schedule.num_steps),
      "images",
      start=schedule.num_images(first_step),
    )

  def is_due(self, step: int) -> bool:
    """Whether to write a line."""
    return self._schedule.is_due(step, self._every_steps)

  def act(self, position: Position) -> None:
    """Writes a line, and clears the recent terms."""
    step, schedule = position.step, self._schedule
    means = _means(position.recent)
    position.recent.clear()
    speed = self._speed.measure(step, schedule.num_images(step))
    in_first_process(self._log.write, step, {**means, **speed})
    self._progress.update(
      schedule.num_images(step),
      f"epoch {math.ceil(step / schedule.epoch_steps)}/{schedule.num_epochs},"
      f" step {step}/{schedule.num_steps}, loss {means['loss']:.4f}"
      f" ({describe_speed(speed)})",
    )


class Save(Hook):
  """Saves checkpoints, each step's once."""

  def __init__(
    self,
    checkpoints: Checkpoints,
    log: RunLog,
    schedule: Schedule,
    restored_step: int | None,
    every_steps: int,
    account: Account,
  ):
    """Makes a hook; the restored step counts as saved.

    Args:
      checkpoints: to save to.
      log: to keep what it has when a checkpoint is begun.
      schedule: of the training.
      restored_step: that training goes on from; None if it begins.
      every_steps: how often to save.
      account: of the time that it takes.
    """
    self._account = account
    self._checkpoints, self._log = checkpoints, log
    self._schedule = schedule
    self._first_step = restored_step or 0
    self._saved_step = restored_step
    self._every_steps = every_steps

  def is_due(self, step: int) -> bool:
    """Whether to save a checkpoint.

    Raises:
      InputError: the one that is being written has failed.
    """
    self._checkpoints.check()
    return self._schedule.is_due(step, self._every_steps)

  def act(self, position: Position) -> None:
    """Begins to save the state; if a step was not finite, the one before it.

    Raises:
      InputError: it, or the checkpoint before it, cannot be written.
    """
    state = position.state
    step = int(state.step)
    if step == self._saved_step:
      return
    with self._account.spend("saving"):
      # First, as what comes after a checkpoint's step is dropped on its return.
      in_first_process(self._log.keep)
      self._checkpoints.save(
        step, state.params, state.opt_state, position.recent
      )
    self._saved_step = step

  def finish(self, position: Position) -> None:
    """As `act`, but returns when the checkpoint is complete.

    Raises:
      InputError: it cannot be written.
    """
    self.act(position)
    with self._account.spend("saving"):
      self._checkpoints.wait()

  def guard(self, batches: Iterable[Any], position: Position) -> Iterator[Any]:
    """The batches; if one cannot be loaded, what was trained is saved first.

    For a single process; those of a cluster agree on it, see `non_finite`.

    Raises:
      InputError: a batch cannot be loaded.
    """
    try:
      yield from batches
    except InputError:
      last = int(position.state.step)
      if last > self._first_step:
        while position.waiting and position.waiting[0].step <= last:
          position.recent.append(position.fetch().terms)
        self.finish(position)
      raise


class Evaluate(Hook):
  """Evaluates the prompts, and logs the means.

  The state is saved meanwhile, and an evaluation that the log lacks is
  repeated, so a run that is stopped or killed while it evaluates loses nothing.
  """

  def __init__(
    self,
    evaluate: Callable[[Mapping[str, Any]], Mapping[str, Mapping[str, float]]],
    save: Save,
    log: RunLog,
    schedule: Schedule,
    every_steps: int,
    account: Account,
  ):
    """Makes a hook without evaluating.

    Args:
      evaluate: from trainable parameters to the means by data set and metric.
      save: to save with.
      log: to write to.
      schedule: of the training.
      every_steps: how often to evaluate; 0 for never.
      account: of the time that it takes.
    """
    self._account = account
    self._evaluate, self._save, self._log = evaluate, save, log
    self._schedule, self._every_steps = schedule, every_steps

  def is_due(self, step: int) -> bool:
    """Whether to evaluate."""
    if not self._every_steps or not step:
      return False
    return self._schedule.is_due(step, self._every_steps)

  def act(self, position: Position) -> None:
    """Begins to save the state, unless it is saved, and evaluates it.

    Raises:
      InputError: it cannot be saved, evaluated or logged.
    """
    self._save.act(position)
    with self._account.spend("evaluating"):
      found = self._evaluate(position.state.params)
    self._log.write(
      position.step,
      {
        f"{name}/{metric}": value
        for name, mean in found.items()
        for metric, value in mean.items()
        if not math.isnan(value)
      },
    )
    in_first_process(self._log.keep)

  def is_missing(self, step: int, workdir: AnyPath) -> bool:
    """Whether a saved step was to be evaluated and has no line in the log.

    All processes get the same answer.

    Args:
      step: that training goes on from.
      workdir: with the log, of which the first process knows.
    """
    if not self.is_due(step):
      return False
    is_missing = False
    if jax.process_index() == 0:
      rows = [row for row in read_metrics(workdir) if row["step"] == step]
      # A line of losses always has this one, and no other line has.
      is_missing = all("loss" in row for row in rows)
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(is_missing)))


class Stop(Hook):
  """Saves and ends the process where a signal asks for it, see `signals`."""

  def __init__(
    self, save: Save, evaluate: Evaluate, schedule: Schedule, first_step: int
  ):
    """Makes a hook that looks for signals only in `is_due`.

    Args:
      save: to save with.
      evaluate: what may still have to be done after the last step.
      schedule: of the training.
      first_step: steps that were taken before.
    """
    self._save, self._evaluate = save, evaluate
    self._schedule, self._first_step = schedule, first_step

  def is_due(self, step: int) -> bool:
    """Whether a signal has come, and there is something left to do."""
    # Processes agree on a step to stop at: all ask after each.
    is_asked = signals.is_due(step - self._first_step)
    has_more = step < self._schedule.num_steps or self._evaluate.is_due(step)
    return is_asked and has_more

  def act(self, position: Position) -> None:
    """Saves the state and ends the process.

    Raises:
      SystemExit: always.
    """
    self._save.finish(position)
    signals.stop(
      f"stopped after step {position.step} of {self._schedule.num_steps}, which"
      " is saved: the same command goes on from there (exit code"
      f" {signals.EXIT_CODE})"
    )


class SkippedFiles:
  """Lists in skipped_files.json what could not be read, once it is known.

  Attributes:
    found: receives paths and reasons, see `pipeline.iterate_batches`.
  """

  def __init__(self, workdir: AnyPath, name: str, num_examples: int):
    """Starts with an empty list.

    Args:
      workdir: receives the file.
      name: the data set's.
      num_examples: in the data set.
    """
    # Each process reads, and so skips, its own part.
    process = jax.process_index()
    suffix = f"-{process}" if process else ""
    self._path = workdir / f"skipped_files{suffix}.json"
    self._name, self._num_examples = name, num_examples
    self._num_listed = 0
    self.found: dict[str, str] = {}

  def write_new(self) -> None:
    """Adds what is new to what the run skipped before it was interrupted.

    Raises:
      InputError: no image is left.
    """
    if len(self.found) == self._num_listed:
      return
    self._num_listed = len(self.found)
    before = {}
    try:
      before = dict(json.loads(read_file(self._path)))
    except FileNotFoundError:
      pass
    except (OSError, ValueError, TypeError) as error:
      raise InputError(
        f"{self._path} is damaged ({error}): delete it; it only lists what"
        " could not be read"
      ) from error
    content = {**before, **self.found}
    write_file(self._path, json.dumps(content, indent=2) + "\n")
    if self._num_listed == self._num_examples:
      raise InputError(f"no image of {self._name!r} can be read")


def _means(rows):
  return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
