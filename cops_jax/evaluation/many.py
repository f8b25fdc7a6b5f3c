"""Evaluation on several data sets in turn; repeating the call resumes it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax

from cops_jax import __version__, methods
from cops_jax.errors import InputError, WriteError
from cops_jax.evaluation import normal_images
from cops_jax.evaluation.evaluator import Evaluator
from cops_jax.evaluation.results import DatasetResult, Evaluated
from cops_jax.evaluation.stored import StoredResult
from cops_jax.inputs import describe_data, load_examples
from cops_jax.paths import AnyPath, to_path
from cops_jax.runs import lock
from cops_jax.runs.record import (
  Record,
  check_backbone,
  check_config,
  claim_workdir,
  package_versions,
  require_same_job,
)
from cops_jax.runs.record import find_record as find_run
from cops_jax.runtime.compilation import keep_compiled_programs
from cops_jax.runtime.mesh import make_mesh, replicate, replicated_sharding
from cops_jax.runtime.processes import (
  find_lost_peer,
  gather_objects,
  in_all_processes,
  in_first_process,
  require_same,
)
from cops_jax.tables import count_of, group_by_reason
from cops_jax.weights import prompts
from cops_jax.weights.backbone import load_backbone
from cops_jax.weights.model import (
  build_model,
  choose_dtype,
  load_trainable,
  place_backbone,
)

_logger = logging.getLogger(__name__)

ALL = "all"


def evaluate(
  config: Any,
  workdir: str | os.PathLike,
  *,
  names: Sequence[str] = (),
  checkpoint: str | os.PathLike | None = None,
  save_maps: bool = False,
  allow_other_backbone: bool = False,
) -> Evaluated:
  """Evaluates trained prompts on data sets, all with one compiled step.

  If a data set cannot be evaluated, the remaining ones still are. Each result
  is stored in evaluation/NAME.json of the run directory, and reused only for
  the same prompts, backbone, config, data and version.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`.
    workdir: run directory. If it cannot be written, a warning is logged.
    names: data sets, see `datasets.load`. "all" means the thirteen published
      data sets, of which unprepared ones are skipped. The default is
      config.evaluation.datasets.
    checkpoint: trained prompts, see `prompts.load_prompts`; by default those of
      the run directory.
    save_maps: if True, also writes the anomaly maps to maps/NAME.
    allow_other_backbone: if True, accepts a backbone whose weights differ from
      those that the prompts were trained on.

  Raises:
    InputError: if a name is unknown, or the prompts or the backbone cannot be
      used.
  """
  workdir = to_path(workdir)
  names, may_skip = _expand(names or config.evaluation.datasets)
  run = _Run.load(
    config,
    workdir,
    checkpoint or workdir,
    allow_other_backbone,
    {"data sets": [*names], "save_maps": save_maps},
  )
  found, failed = {}, {}
  with contextlib.ExitStack() as stack:
    # A run directory that cannot be written needs no lock.
    with contextlib.suppress(WriteError):
      stack.enter_context(lock.hold(workdir, "evaluation"))
    skipped = _find_unprepared(run.config, may_skip)
    for name in [name for name in names if name not in skipped]:
      try:
        examples = in_all_processes(
          load_examples, run.config, name, run.config.evaluation.split
        )
        if examples.name in found:
          raise InputError(
            f"another data set is also called {examples.name!r}. Give their"
            " folders different names."
          )
        found[examples.name] = run.evaluate(name, examples, workdir, save_maps)
      except InputError as error:
        failed[name] = str(error)
        _logger.error("%s failed: %s", name, error)
      except Exception as error:  # The other data sets are still evaluated.
        if find_lost_peer(error):
          raise
        failed[name] = f"{type(error).__name__}: {error}"
        _logger.exception("%s failed", name)
  return Evaluated(found, skipped, failed, run.provenance)


def _expand(names):
  """Returns the names, each once, and those of "all" that can be skipped."""
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
  """Logs and returns why data sets are unprepared on any host, by name."""
  from cops_jax import datasets

  reasons = {}
  for name in names:
    # An error here is raised again when the data set is opened.
    with contextlib.suppress(Exception):
      reasons[name] = datasets.why_unprepared(
        name, config.data_dir or None, config.manual_dir or None
      )
  found = {}
  for host in gather_objects(reasons):
    found |= {name: host[name] for name in host if host[name]} | found
  if found:
    groups = group_by_reason(found).items()
    reasons = "; ".join(f"{names}: {reason}" for names, reason in groups)
    _logger.info("skipping %s", reasons)
  return found


@dataclasses.dataclass(frozen=True)
class _Run:
  """Trained prompts on the devices, ready for evaluation."""

  config: Any
  evaluator: Evaluator
  params: tuple[Any, Any]
  provenance: dict[str, Any]

  @classmethod
  def load(cls, config, workdir, checkpoint, allow_other_backbone, request):
    keep_compiled_programs(config)
    config, record, backbone, model = in_all_processes(
      _load_model, config, workdir, checkpoint, allow_other_backbone
    )
    here = Record(config.to_dict(), backbone.sha256)
    require_same_job(here, backbone.config, request)
    is_trained, mesh = methods.find(config.method).IS_TRAINED, make_mesh()
    trainable, source = load_trainable(
      config, model, backbone, checkpoint, replicated_sharding(mesh)
    )
    prompts_sha256 = prompts.hash_prompts(trainable)
    require_same({"SHA-256 of the prompts": prompts_sha256})
    if not record and not is_trained:
      # Calibration, the detector and export read the record.
      with contextlib.suppress(WriteError):
        in_first_process(claim_workdir, workdir, here)
    provenance = {
      "version": __version__,
      "checkpoint": source,
      "trained_on": _describe_training(record) if is_trained else "nothing",
      "prompts_sha256": prompts_sha256,
      "backbone_sha256": backbone.sha256,
      "config": config.to_dict(),
      "versions": {"python": platform.python_version()} | package_versions(),
      "device": f"{mesh.size} x {jax.devices()[0].device_kind}",
    }
    _logger.info(
      "evaluating %s on %s",
      source,
      count_of(mesh.size, f"{jax.default_backend()} device"),
    )
    backbone_params, shardings = place_backbone(
      backbone, model, mesh, config.backbone.split_over_devices
    )
    evaluator = Evaluator(config, model, backbone, mesh, shardings)
    params = replicate(trainable, mesh), backbone_params
    return cls(config, evaluator, params, provenance)

  def evaluate(
    self, name, examples, workdir: AnyPath, save_maps
  ) -> DatasetResult:
    """Returns the data set's stored result, or evaluates it."""
    fingerprint = examples.fingerprint()
    require_same(describe_data(examples, fingerprint))
    normal = normal_images.draw(self.config, name, examples)
    provenance = self.provenance | {
      "normal_images_sha256": normal.sha256 if normal else ""
    }
    stored = StoredResult(workdir, examples, fingerprint, provenance, save_maps)
    result = stored.read()
    if result is None:
      result = self.evaluator.run(
        *self.params,
        examples,
        num_pictures=self.config.evaluation.num_pictures,
        maps_folder=stored.maps_folder,
        normal=normal,
      )
      result = _describe_data(result, examples, fingerprint)
      stored.write(result)
    return result


def _describe_training(record):
  if record is None:
    return "not recorded"
  train = record.config.get("train", {})
  if record.origin:
    return f"{train.get('dataset')}: {record.origin}"
  return f"{train.get('dataset')}, seed {record.config.get('seed')}"


def _load_model(config, workdir, checkpoint, allow_other_backbone):
  """Returns the config with the run's dtype, the record, backbone and model.

  Config and backbone are checked against the record.
  """
  is_trained, source = methods.find(config.method).IS_TRAINED, str(checkpoint)
  has_prompts = is_trained or checkpoint != workdir
  record = (prompts.find_record if has_prompts else find_run)(checkpoint)
  config = choose_dtype(config, record)
  if record is not None:
    prompts.require_method(record, config.method, checkpoint)
    if not record.origin:
      check_config(record, config.to_dict(), ("backbone", "model"), source)
  elif is_trained:
    _logger.warning(
      "%s does not record its backbone. Make sure that it was trained on %s",
      source,
      config.backbone.weights,
    )
  backbone = load_backbone(config)
  if record is not None:
    check_backbone(record, backbone.sha256, source, allow_other_backbone)
  return config, record, backbone, build_model(config, backbone)


def _describe_data(result, examples, fingerprint):
  """Returns the result with its data's identity and all notes on the data."""
  from cops_jax.datasets.further import count_differences

  differences = []
  if examples.is_published:
    labels = [image.label for image in result.images]
    differences = count_differences(examples.name, len(labels), sum(labels))
  return dataclasses.replace(
    result,
    identity=str(examples.identity),
    data_sha256=fingerprint,
    notes=list(dict.fromkeys([*examples.notes, *differences, *result.notes])),
    is_published=examples.is_published and not differences,
  )
