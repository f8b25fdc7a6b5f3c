"""What is done between steps, on made states."""

import json
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from cops_jax.errors import InputError
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.metrics_log import RunLog, read_metrics
from cops_jax.runtime import signals
from cops_jax.training import hooks
from cops_jax.training.account import Account, Speed
from cops_jax.training.step import TrainState

# 7 images, 3 in a step, 2 epochs: 6 steps.
SCHEDULE = hooks.Schedule(num_examples=7, batch_size=3, num_epochs=2)


class MadeCheckpoints(Checkpoints):
  """Notes steps and terms, and writes nothing."""

  def __init__(self):
    self.saved = []
    self.is_complete, self.has_failed = True, False

  def save(self, step, params, opt_state, recent_terms=()):
    self.saved.append((step, [row["loss"] for row in recent_terms]))
    self.is_complete = False

  def check(self):
    if self.has_failed:
      raise InputError("the disk is full")

  def wait(self):
    self.check()
    self.is_complete = True


def make_position(step, recent=(), waiting=()):
  """Loss terms are the numbers given; a NaN leaves the state at 3."""
  state_step = 3 if np.isnan(waiting).any() else step
  state = TrainState(np.int32(state_step), {"a": np.ones(2)}, (), True)
  first = step + 1 - len(waiting)
  return hooks.Position(
    step,
    state,
    [{"loss": float(loss)} for loss in recent],
    [
      hooks.StepTerms(first + index, {"loss": np.float32(loss)}, {})
      for index, loss in enumerate(waiting)
    ],
  )


@pytest.fixture
def checkpoints():
  return MadeCheckpoints()


@pytest.fixture
def log(tmp_path):
  return RunLog(tmp_path, 0)


def make_save(checkpoints, log, restored_step=None):
  return hooks.Save(
    checkpoints, log, SCHEDULE, restored_step, every_steps=4, account=Account()
  )


@pytest.fixture
def save(checkpoints, log):
  return make_save(checkpoints, log)


def due_steps(hook):
  return [step for step in range(1, 7) if hook.is_due(step)]


def test_schedule():
  assert (SCHEDULE.epoch_steps, SCHEDULE.num_steps) == (3, 6)
  seen = [SCHEDULE.num_images(step) for step in range(7)]
  assert seen == [0, 3, 6, 7, 10, 13, 14]


def test_terms_are_fetched_from_the_oldest_on():
  position = make_position(4)
  for loss in (0.5, 0.25):
    position.advance(position.state, {"loss": jnp.float32(loss)}, {})
  assert position.fetch() == hooks.StepTerms(5, {"loss": 0.5}, {})
  assert position.fetch().step == position.step == 6
  assert not position.waiting


def test_log_writes_means(tmp_path, log):
  speed = Speed(Account(), 0, 0, flops=1.0, peak_flops=None)
  hook = hooks.Log(log, SCHEDULE, 0, every_steps=4, speed=speed)
  assert due_steps(hook) == [4, 6]
  position = make_position(4, recent=[1, 2, 6])
  hook.act(position)
  assert read_metrics(tmp_path) == [{"step": 4, "loss": 3.0}]
  assert not position.recent


def test_save_saves_a_step_once(checkpoints, save, log):
  assert due_steps(save) == [4, 6]
  for step in (4, 4, 6):
    save.act(make_position(step, recent=[1]))
  assert checkpoints.saved == [(4, [1]), (6, [1])]
  # Neither what it was restored from.
  make_save(checkpoints, log, restored_step=4).act(make_position(4))
  assert len(checkpoints.saved) == 2


def test_training_does_not_wait_for_a_save_and_learns_of_its_failure(
  checkpoints, save
):
  save.act(make_position(4))
  assert not checkpoints.is_complete and not save.is_due(5)
  save.finish(make_position(4))
  assert checkpoints.is_complete and len(checkpoints.saved) == 1
  checkpoints.has_failed = True
  with pytest.raises(InputError, match="the disk is full"):
    save.is_due(5)


def test_a_log_in_a_bucket_is_kept_before_a_checkpoint(checkpoints, log):
  """What comes after a checkpoint's step is dropped when a run goes on."""
  log.keep = lambda: checkpoints.saved.append("log")
  make_save(checkpoints, log).act(make_position(4))
  assert checkpoints.saved == ["log", (4, [])]


def failing_batches(number):
  yield from range(number)
  raise InputError("b.png cannot be read")


def test_what_was_trained_is_saved_before_an_error(checkpoints, save):
  position = make_position(2, recent=[1], waiting=[2])
  with pytest.raises(InputError, match="b.png"):
    list(save.guard(failing_batches(2), position))
  assert checkpoints.saved == [(2, [1, 2])] and checkpoints.is_complete


def test_nothing_trained_is_not_saved_before_an_error(checkpoints, log):
  for restored_step in (None, 4):
    save = make_save(checkpoints, log, restored_step)
    with pytest.raises(InputError):
      list(save.guard(failing_batches(0), make_position(restored_step or 0)))
  assert not checkpoints.saved


def make_evaluate(save, log, checkpoints, every_steps=4):
  """Of a data set whose AUROC is the number of checkpoints at the time."""

  def evaluate(params):
    return {
      "made": {"auroc": float(len(checkpoints.saved)), "ap": float("nan")}
    }

  return hooks.Evaluate(evaluate, save, log, SCHEDULE, every_steps, Account())


def test_evaluate_saves_before(tmp_path, checkpoints, save, log):
  hook = make_evaluate(save, log, checkpoints, every_steps=5)
  assert due_steps(hook) == [5, 6] and not hook.is_due(0)
  hook.act(make_position(5, recent=[1]))
  assert checkpoints.saved == [(5, [1])]
  assert read_metrics(tmp_path) == [{"step": 5, "made/auroc": 1}]
  assert not due_steps(make_evaluate(save, log, checkpoints, every_steps=0))


def test_an_evaluation_that_was_interrupted_is_missing(
  tmp_path, checkpoints, save, log
):
  hook = make_evaluate(save, log, checkpoints)
  for step in range(7):  # A log without a line of the step, too.
    assert hook.is_missing(step, tmp_path) == (step in (4, 6))
  log.write(4, {"loss": 1.0})
  assert hook.is_missing(4, tmp_path)
  hook.act(make_position(4))
  assert not hook.is_missing(4, tmp_path)
  log.write(6, {})  # No metric was defined.
  assert not hook.is_missing(6, tmp_path)


@pytest.fixture
def stop(checkpoints, save, log):
  evaluate = make_evaluate(save, log, checkpoints, every_steps=0)
  return hooks.Stop(save, evaluate, SCHEDULE, first_step=2)


def test_stop_saves_and_ends(stop, checkpoints, monkeypatch, capfd):
  assert not due_steps(stop)
  monkeypatch.setattr(signals, "_noted", signal.SIGTERM.name)
  # After the last step there is nothing left to do.
  assert due_steps(stop) == [1, 2, 3, 4, 5]
  with pytest.raises(SystemExit) as ended:
    stop.act(make_position(5, recent=[1]))
  assert ended.value.code == signals.EXIT_CODE == 75
  assert checkpoints.saved == [(5, [1])] and checkpoints.is_complete
  assert "stopped after step 5 of 6, which is saved" in capfd.readouterr().err


def test_stop_counts_the_steps_of_this_process(stop, monkeypatch):
  asked = []
  monkeypatch.setattr(signals, "is_due", lambda step: bool(asked.append(step)))
  for step in (3, 4):
    stop.is_due(step)
  assert asked == [1, 2]


def test_stop_comes_before_a_last_evaluation(
  save, log, checkpoints, monkeypatch
):
  evaluate = make_evaluate(save, log, checkpoints)
  stop = hooks.Stop(save, evaluate, SCHEDULE, first_step=0)
  monkeypatch.setattr(signals, "_noted", signal.SIGTERM.name)
  assert stop.is_due(6)


@pytest.fixture
def profiler(monkeypatch):
  """What the profiler was asked to do."""
  calls = []
  monkeypatch.setattr("jax.profiler.start_trace", calls.append)
  monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
  return calls


@pytest.mark.parametrize("last, ended", ((4, 4), (99, 6)))
def test_profile(tmp_path, profiler, last, ended):
  hook = hooks.Profile(tmp_path, (3, last), SCHEDULE)
  for step in range(1, 7):
    hook.start(step)
    assert profiler == ([tmp_path / "profile"] if step > 2 else [])
    if hook.is_due(step):
      break
  assert step == ended
  hook.act(make_position(step))
  hook.close()
  assert profiler == [tmp_path / "profile", "stop"]
  assert not hook.is_due(step)


def test_a_profile_is_written_when_training_ends_early(tmp_path, profiler):
  hook = hooks.Profile(tmp_path, (3, 4), SCHEDULE)
  hook.close()
  assert not profiler
  hook.start(3)
  hook.close()
  assert profiler[1:] == ["stop"]


def test_skipped_files_are_added_to_earlier_ones(tmp_path):
  path = tmp_path / "skipped_files.json"
  files = hooks.SkippedFiles(tmp_path, "made", num_examples=2)
  files.write_new()
  assert not path.exists()
  files.found["b.png"] = "cut"
  files.write_new()
  again = hooks.SkippedFiles(tmp_path, "made", num_examples=2)
  again.found["a.png"] = "empty"
  again.write_new()
  assert json.loads(path.read_text()) == {"b.png": "cut", "a.png": "empty"}
  again.found["b.png"] = "cut"
  with pytest.raises(InputError, match="no image of 'made' can be read"):
    again.write_new()
