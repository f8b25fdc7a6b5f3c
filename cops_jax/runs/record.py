"""The record of a run, `run.json`: its config, backbone and version."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from cops_jax import __version__
from cops_jax.config import complete, decides, restore
from cops_jax.errors import InputError, MissingRunError
from cops_jax.field_types import Role
from cops_jax.fields import FIELDS
from cops_jax.files import (
  digest_file,
  exists,
  read_file,
  seal,
  unseal,
  write_file,
)
from cops_jax.paths import to_path
from cops_jax.runtime.processes import require_same

if TYPE_CHECKING:
  import ml_collections

_logger = logging.getLogger(__name__)

_FILE = "run.json"
# Another version of these packages can change the last digits of results.
_PACKAGES = (
  *("jax", "jaxlib", "flax", "optax", "transformers", "numpy", "pillow"),
)


@dataclasses.dataclass(frozen=True)
class Record:
  """The facts from which a run's model can be built again.

  Attributes:
    config: resolved config, as nested dictionaries.
    backbone_sha256: hash of the file with the backbone's weights; empty if
      unknown.
    init_from: source of the initial parameters; empty if they were random.
    version: version of this project that began the run.
    data_sha256: fingerprint of the training examples; empty for a run that
      trains nothing.
    origin: source of prompts that no run of this project trained; empty
      otherwise.
  """

  config: Mapping[str, Any]
  backbone_sha256: str
  init_from: str = ""
  version: str = __version__
  data_sha256: str = ""
  origin: str = ""

  def to_config(self, source: str) -> ml_collections.ConfigDict:
    """Returns a config of this version; `source` locates the record in errors.

    Raises:
      InputError: if the config does not fit this version.
    """
    return restore(self.config, source, self.version)

  def to_json(self) -> str:
    """Returns the record as JSON that contains its own SHA-256."""
    return seal(dataclasses.asdict(self), indent=2)


def package_versions() -> dict[str, str]:
  """Returns the versions of the packages that results depend on."""
  return {name: metadata.version(name) for name in _PACKAGES}


def require_same_job(
  record: Record, backbone_config: Any, others: Mapping[str, Any]
) -> None:
  """Raises an error in all processes if they do not run the same job.

  All processes of a cluster must call this before they compute together.

  Args:
    record: record of this process's run. Fields that name places on a host can
      differ.
    backbone_config: configuration of the backbone.
    others: additional values that must be equal, by name.

  Raises:
    InputError: if a value differs, see `processes.require_same`.
  """
  config = complete(record.config)
  require_same(
    {"version of cops_jax": record.version}
    | {f"version of {k}": value for k, value in package_versions().items()}
    | {
      f"config.{name}": value
      for name, value in config.items()
      if name not in FIELDS or not FIELDS[name].is_local
    }
    | {
      "SHA-256 of the backbone": record.backbone_sha256,
      "SHA-256 of the backbone's config.json": digest_file(
        backbone_config.to_json_string().encode()
      ),
      "init_from": record.init_from,
    }
    | others
  )


def from_json(text: str | bytes, source: str) -> Record:
  """Returns the record that `Record.to_json` wrote.

  Raises:
    InputError: if the text from this source is not a record.
  """
  try:
    values = unseal(text)
    record = Record(**values)
    if not isinstance(record.config, dict) or not all(
      isinstance(value, str)
      for name, value in values.items()
      if name != "config"
    ):
      raise TypeError("a field has another type")
  except (ValueError, TypeError) as error:
    raise InputError(
      f"{source} is damaged ({error}). Restore it, or start again in another"
      " run directory."
    ) from error
  return record


def read_record(workdir: str | os.PathLike) -> Record:
  """Returns the record in a run directory.

  Raises:
    InputError: if there is no run, or its record is damaged or lost.
  """
  workdir = to_path(workdir)
  path = workdir / _FILE
  try:
    return from_json(read_file(path), str(path))
  except (FileNotFoundError, NotADirectoryError) as error:
    if exists(workdir / "checkpoints"):
      raise InputError(
        f"{path} does not exist, but {workdir} holds checkpoints. Restore the"
        " file, or use another run directory."
      ) from error
    raise MissingRunError(
      f"{workdir} holds no training run: {path} does not exist.", workdir
    ) from error
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}") from error


def find_record(workdir: str | os.PathLike) -> Record | None:
  """Returns the record in a run directory; None if there is no run.

  Raises:
    InputError: if the record is damaged or cannot be read.
  """
  try:
    return read_record(workdir)
  except MissingRunError:
    return None


def claim_workdir(
  workdir: str | os.PathLike,
  record: Record,
  *,
  allow_other_backbone: bool = False,
  allow_other_data: bool = False,
) -> None:
  """Writes a run's record to its directory, or checks the record there.

  Args:
    workdir: run directory.
    record: record of this run.
    allow_other_backbone, allow_other_data: if True, accepts a backbone or
      examples that differ from those that the run began with.

  Raises:
    InputError: if the directory cannot be written, or holds a run with another
      config, backbone, data or initial parameters.
  """
  workdir = to_path(workdir)
  saved = find_record(workdir)
  if saved is not None:
    check_config(saved, record.config, None, str(workdir))
    check_backbone(
      saved, record.backbone_sha256, str(workdir), allow_other_backbone
    )
    if saved.init_from != record.init_from:
      raise InputError(
        f"{workdir} holds a run that began from"
        f" init_from={saved.init_from!r}, not {record.init_from!r}. Use the"
        " same value or another run directory."
      )
    if saved.data_sha256 != record.data_sha256:
      message = f"{workdir} holds a run that began with other images"
      if not allow_other_data:
        raise InputError(
          f"{message}. Restore those images, use another run directory, or"
          " continue with --allow_other_data."
        )
      _logger.warning("%s; continuing with the present images", message)
    return
  write_file(workdir / _FILE, record.to_json())


def check_config(
  record: Record,
  config: Mapping[str, Any],
  sections: tuple[str, ...] | None,
  run: str,
) -> None:
  """Checks that a config has the values that a run was trained with.

  Args:
    record: record of the run; missing fields have their defaults.
    config: config to compare, as nested dictionaries.
    sections: names of the sections to compare; None means all.
    run: name of the run, for messages.

  Raises:
    InputError: if values, which the message names, differ.
  """
  saved, asked = complete(record.config), complete(config)
  differences = [
    f"{name} is {saved.get(name)!r} in the run and {asked.get(name)!r} now"
    for name in sorted(saved.keys() | asked.keys())
    if saved.get(name) != asked.get(name)
    and (sections is None or name.split(".")[0] in sections)
    and decides(name, Role.TRAINING)
  ]
  if differences:
    raise InputError(
      f"{run} holds a run with another config: {'; '.join(differences)}."
      " Use its config or another run directory."
    )


def check_backbone(
  record: Record, sha256: str, run: str, allow_other_backbone: bool
) -> None:
  """Raises InputError if the weights differ from those of a run's training."""
  if record.backbone_sha256 not in ("", sha256) and not allow_other_backbone:
    raise InputError(
      f"{run} was trained on weights with the SHA-256 {record.backbone_sha256};"
      f" the present file has {sha256}. Set config.backbone.weights to the same"
      " file, or set allow_other_backbone if both hold the same model."
    )
