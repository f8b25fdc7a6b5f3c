"""Evaluation on many data sets, one after the other, that can be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from cops_jax import __version__, methods
from cops_jax.config import complete, decides
from cops_jax.errors import InputError, WriteError
from cops_jax.evaluation import results
from cops_jax.evaluation.dataset import DatasetEvaluator
from cops_jax.fields import Role
from cops_jax.files import (
  delete,
  find_files,
  read_file,
  seal,
  unseal,
  write_file,
)
from cops_jax.images.maps import map_file_names
from cops_jax.inputs.pipeline import load_examples
from cops_jax.paths import to_path
from cops_jax.runs import lock
from cops_jax.runs.record import Record, check_clip, check_config, claim_workdir
from cops_jax.runs.record import find_record as find_run
from cops_jax.runtime.compilation import keep_compiled_programs
from cops_jax.runtime.mesh import (
  make_mesh,
  replicate,
  replicated_sharding,
)
from cops_jax.runtime.processes import (
  find_lost_peer,
  gather_objects,
  in_all_processes,
  in_first_process,
)
from cops_jax.tables import group_by_reason
from cops_jax.weights import (
  build_model,
  clip_of,
  load_trainable,
  place_clip,
  prompts,
  settle_dtype,
)

_logger = logging.getLogger(__name__)

ALL = "all"
_KEY_FILE = "key.json"  # Next to anomaly maps: what they depend on.
_PACKAGES = ("jax", "jaxlib", "flax", "transformers", "numpy")


def evaluate(
  config: Any,
  workdir: str | os.PathLike,
  *,
  names: Sequence[str] = (),
  checkpoint: str | os.PathLike | None = None,
  save_maps: bool = False,
  allow_other_clip: bool = False,
) -> results.Evaluated:
  """Evaluates trained prompts on data sets, all with one compiled step.

  If a data set cannot be evaluated, the others still are. Each one's result is
  kept in evaluation/NAME.json of the work directory, and used again by the same
  prompts, CLIP, config, data and version.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    workdir: of the run. If it cannot be written there is a warning.
    names: data sets, see `datasets.load`; "all" for the thirteen published, of
      which those that are not prepared are skipped. By default
      config.evaluation.datasets.
    checkpoint: trained prompts, see `prompts.load_prompts`; by default
      the work directory's own.
    save_maps: whether to write the anomaly maps into maps/NAME.
    allow_other_clip: whether to accept other CLIP weights than those that the
      prompts were trained with.

  Raises:
    InputError: a name is unknown, or the prompts or CLIP cannot be used.
  """
  workdir = to_path(workdir)
  checkpoint = checkpoint or workdir
  names, may_skip = _expand(names or config.evaluation.datasets)
  evaluation = _Evaluation(
    config, workdir, checkpoint, save_maps, allow_other_clip
  )
  with contextlib.ExitStack() as stack:
    # Where nothing can be written, nobody is in the way.
    with contextlib.suppress(WriteError):
      stack.enter_context(lock.hold(workdir, "evaluation"))
    found, skipped, failed = evaluation.evaluate_all(names, may_skip)
  return results.Evaluated(found, skipped, failed, evaluation.provenance)


def _expand(names):
  """Names, each once, and those of "all" that may be skipped; all are known."""
  from cops_jax import datasets

  may_skip = ()
  if ALL in names:
    names = [name for name in names if name != ALL]
    may_skip = [name for name in datasets.SPECIFICATIONS if name not in names]
  names = dict.fromkeys((*names, *may_skip))
  for name in names:
    datasets.custom.locate(name) or datasets.require_known(name)
  return names, may_skip


def _find_unprepared(config, names):
  """Why data sets cannot be read, on whichever host; logged once."""
  from cops_jax import datasets

  reasons = {}
  for name in names:
    with contextlib.suppress(Exception):  # Raised again where it is opened.
      reasons[name] = datasets.why_unprepared(
        name, config.data_dir or None, config.manual_dir or None
      )
  hosts = gather_objects(reasons)
  found = {}
  for name in names:
    reason = next(filter(None, (host.get(name) for host in hosts)), "")
    if reason:
      found[name] = reason
  if found:
    groups = group_by_reason(found).items()
    reasons = "; ".join(f"{names}: {reason}" for names, reason in groups)
    _logger.info("skipping %s", reasons)
  return found


class _Evaluation:
  """Evaluates data sets with the same prompts; keeps the results."""

  def __init__(self, config, workdir, checkpoint, save_maps, allow_other_clip):
    keep_compiled_programs(config)
    is_trained = methods.find(config.method).IS_TRAINED
    if not is_trained and checkpoint != workdir:
      raise InputError(
        f"{checkpoint} cannot be evaluated by the method {config.method!r},"
        " which trains nothing: leave out --checkpoint"
      )
    find = prompts.find_record if is_trained else find_run
    record = find(checkpoint)
    config = settle_dtype(config, record)
    self._config, self._workdir = config, workdir
    self._save_maps = save_maps
    clip = _load_checked_clip(config, record, checkpoint, allow_other_clip)
    model = build_model(config, clip)
    mesh = make_mesh()
    trainable, source = load_trainable(
      config, model, clip, checkpoint, replicated_sharding(mesh)
    )
    if not record and not is_trained:  # For calibration, detector and export.
      in_first_process(_begin_run, workdir, config, clip)
    self.provenance = {
      "version": __version__,
      "checkpoint": source,
      "trained_on": _describe_training(record) if is_trained else "nothing",
      "prompts_sha256": prompts.hash_prompts(trainable),
      "clip_sha256": clip.sha256,
      "config": config.to_dict(),
      "versions": {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
      },
      "device": f"{mesh.size} x {jax.devices()[0].device_kind}",
    }
    _logger.info(
      "evaluating %s on %d %s device(s)",
      source,
      mesh.size,
      jax.default_backend(),
    )
    self._clip_params, shardings = place_clip(
      clip, model, mesh, config.clip.split_over_devices
    )
    self._evaluator = DatasetEvaluator(config, model, clip, mesh, shardings)
    self._trainable = replicate(trainable, mesh)

  def evaluate_all(self, names, may_skip):
    """Results, and why other data sets were skipped or failed, by name."""
    found, failed = {}, {}
    skipped = _find_unprepared(self._config, may_skip)
    for name in names:
      if name in skipped:
        continue
      try:
        examples = in_all_processes(
          load_examples, self._config, name, self._config.evaluation.split
        )
        if examples.name in found:
          raise InputError(
            f"another data set is called {examples.name!r} too; give their"
            " folders different names"
          )
        found[examples.name] = self.evaluate(examples)
      except InputError as error:
        failed[name] = str(error)
        _logger.error("%s failed: %s", name, error)
      except Exception as error:  # The other data sets are still evaluated.
        if find_lost_peer(error):
          raise
        failed[name] = f"{type(error).__name__}: {error}"
        _logger.exception("%s failed", name)
    return found, skipped, failed

  def evaluate(self, examples):
    """The data set's kept result, or a new one."""
    fingerprint = examples.fingerprint()
    kept = _KeptResult(
      self._workdir, examples, fingerprint, self.provenance, self._save_maps
    )
    result = kept.read()
    if result is not None:
      return result
    result = self._evaluator.run(
      self._trainable,
      self._clip_params,
      examples,
      num_pictures=self._config.evaluation.num_pictures,
      maps_folder=kept.maps_folder,
    )
    result = _describe_data(result, examples, fingerprint)
    kept.write(result)
    return result


def _describe_training(record):
  if record is None:
    return "not recorded"
  train = record.config.get("train", {})
  return f"{train.get('dataset')}, seed {record.config.get('seed')}"


def _begin_run(workdir, config, clip):
  """Records a run of which nothing is trained, where it can be written."""
  with contextlib.suppress(WriteError):
    claim_workdir(workdir, Record(config.to_dict(), clip.sha256))


def _load_checked_clip(config, record, checkpoint, allow_other_clip):
  """CLIP, if it and the config are those that the prompts were trained with."""
  if record is None:
    if not methods.find(config.method).IS_TRAINED:
      return clip_of(config)
    _logger.warning("%s does not say which CLIP it was trained on", checkpoint)
    return clip_of(config)
  prompts.require_method(record, config.method, checkpoint)
  check_config(record, config.to_dict(), ("clip", "model"), str(checkpoint))
  clip = clip_of(config)
  check_clip(record, clip.sha256, str(checkpoint), allow_other_clip)
  return clip


def _describe_data(result, examples, fingerprint):
  """The result with what is known of its data."""
  from cops_jax.datasets.specifications import count_differences

  differences = []
  if examples.is_published:
    labels = [image.label for image in result.images]
    differences = count_differences(examples.name, len(labels), sum(labels))
  for difference in differences:
    _logger.warning("%s: %s", examples.name, difference)
  return dataclasses.replace(
    result,
    identity=str(examples.identity),
    data_sha256=fingerprint,
    notes=list(dict.fromkeys([*examples.notes, *differences])),
    is_published=examples.is_published and not differences,
  )


class _KeptResult:
  """A data set's result in the work directory."""

  def __init__(self, workdir, examples, fingerprint, provenance, save_maps):
    self._key = {
      **{
        name: provenance[name]
        for name in ("version", "prompts_sha256", "clip_sha256")
      },
      "config": {
        name: value
        for name, value in complete(provenance["config"]).items()
        if decides(name, Role.RESULTS)
      },
      "dataset": examples.name,
      "fingerprint": fingerprint,
      "num_images": len(examples),
    }
    self._path = workdir / "evaluation" / f"{examples.name}.json"
    self.maps_folder = workdir / "maps" / examples.name if save_maps else None

  def read(self) -> results.DatasetResult | None:
    """The result, if it is there and of the same evaluation."""
    result = self._read()
    if result is not None and result.skipped:
      result = None  # They may be readable by now, though unchanged.
    if result is None and self.maps_folder and jax.process_index() == 0:
      # The maps are replaced one by one; until all are, they have no key.
      self._discard_maps()
    if not all(gather_objects(result is not None)):  # All evaluate, or none.
      return None
    if result is not None:
      _logger.info("the result of an earlier evaluation: %s", self._path)
    return result

  def _read(self):
    try:
      if self.maps_folder:
        maps = unseal(read_file(self.maps_folder / _KEY_FILE))
        if maps != json.loads(json.dumps(self._describe_maps())):
          return None
      return results.from_json(read_file(self._path), self._key)
    except FileNotFoundError:
      return None
    except (OSError, ValueError) as error:
      _logger.warning("%s cannot be used again: %s", self._path, error)
      return None

  def _describe_maps(self):
    files = {
      name: size
      for name, size in find_files(self.maps_folder).items()
      if name.endswith(".npz")
    }
    return {"key": self._key, "files": files}

  def _discard_maps(self):
    delete(self.maps_folder / _KEY_FILE)
    for name in find_files(self.maps_folder):
      if name.endswith(".partial"):  # Of a process that was killed.
        delete(self.maps_folder / name)

  def write(self, result: results.DatasetResult) -> None:
    """Keeps the result; there is a warning where it cannot be written."""
    if jax.process_index() > 0:
      return
    try:
      if self.maps_folder:
        names = map_file_names(result.categories, jax.process_count())
        for name in self._describe_maps()["files"].keys() - names:
          delete(self.maps_folder / name)
        write_file(self.maps_folder / _KEY_FILE, seal(self._describe_maps()))
      write_file(self._path, results.to_json(result, self._key))
    except (InputError, OSError) as error:
      _logger.warning("the result is not kept: %s", error)
