"""Writes folders of prompts, thresholds and a model card, ready to publish."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cops_jax import __version__, methods, thresholds
from cops_jax.config import complete, decides
from cops_jax.detector import AnomalyDetector
from cops_jax.errors import InputError
from cops_jax.field_types import Role
from cops_jax.files import delete, exists, find_files, whole_file
from cops_jax.metrics import METRICS
from cops_jax.paths import is_address, to_path
from cops_jax.reporting.report import make_environment
from cops_jax.reporting.tables import read_results
from cops_jax.runs.checkpoints import Checkpoints
from cops_jax.runs.record import Record, check_backbone, read_record
from cops_jax.tables import one_line, shorten_list
from cops_jax.thresholds import Thresholds
from cops_jax.weights import pretrained, prompts
from cops_jax.weights.clip import DEMO_CLIP, load_clip
from cops_jax.weights.locate import split_hub_name
from cops_jax.weights.pretrained import CARD, CONFIG, PROMPTS, THRESHOLDS

_logger = logging.getLogger(__name__)

# The hub's identifiers of the licences that data sets' publishers state.
_LICENCES = {
  "CC BY 4.0": "cc-by-4.0",
  "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
  "CC0": "cc0-1.0",
}


def publish(
  workdir: str | os.PathLike, out: str | os.PathLike, backbone: str = ""
) -> str:
  """Writes a run's newest prompts as a folder, ready for `hf upload`.

  The folder also contains the thresholds that were chosen for these prompts and
  a model card with their training and their last evaluation. Local paths are
  removed.

  Args:
    workdir: run directory of a training.
    out: folder to write; pretrained prompts in it are replaced.
    backbone: name of the run's backbone on the hub, if the run loaded it from
      a file or folder.

  Returns:
    Two lines that state what was written and what to do next.

  Raises:
    InputError: if there is no checkpoint, the named backbone differs from the
      run's or cannot be downloaded, or the folder contains other files or
      cannot be written.

  Example:
    ```python
    print(publish("runs/visa", "published/visa"))
    ```
  """
  out = to_path(out)
  require_replaceable(out)
  record = _without_paths(read_record(workdir), workdir, backbone)
  if not methods.find(record.config["method"]).IS_TRAINED:
    raise InputError(
      f"{workdir} has no prompts to publish: the method"
      f" {record.config['method']!r} trains nothing"
    )
  with Checkpoints(workdir) as saved:
    step, trainable = saved.restore_params()
  digest = prompts.hash_prompts(trainable)
  chosen = thresholds.read_fitting(workdir, digest)
  weights = record.config["backbone"]["weights"]
  contents = {
    CONFIG: record.to_json(),
    PROMPTS: prompts.to_safetensors(trainable, record),
    CARD: make_card(
      record,
      name=out.name,
      step=step,
      prompts_sha256=digest,
      hub_backbone=weights if split_hub_name(weights) else "",
      thresholds=chosen,
      results=_find_results(to_path(workdir), digest, record.backbone_sha256),
    ),
  }
  if chosen:
    contents[THRESHOLDS] = thresholds.to_json(chosen)
  _write(out, contents)
  return (
    f"wrote the prompts of step {step} of {workdir} to {out}\nCheck"
    f" {out / CARD}, above all the licence, and then run"
    f" `hf upload OWNER/{out.name} {out}`"
  )


def add_thresholds(
  name: str, out: str | os.PathLike, chosen: Thresholds
) -> str:
  """Writes a copy of pretrained prompts with additional thresholds.

  Args:
    name: folder or repository of the prompts, see `pretrained.find`.
    out: folder to write, which can be the same folder; pretrained prompts in
      it are replaced.
    chosen: additional thresholds.

  Returns:
    A sentence about the thresholds, see `thresholds.put`.

  Raises:
    InputError: if the folder contains other files or cannot be written.
  """
  folder = pretrained.find(name).parent
  contents = {
    file: (folder / file).read_bytes()
    for file in pretrained.FILES
    if (folder / file).is_file()
  }
  return _add(contents, thresholds.read_thresholds(folder), out, chosen)


def write_detector(
  detector: AnomalyDetector, out: str | os.PathLike, chosen: Thresholds
) -> str:
  """Writes a detector's prompts or texts as a folder, with thresholds.

  This is for prompts that have no folder of their own: hand-written texts and
  the prompts that a method's authors published. The backbone is not copied.

  Args:
    detector: detector to write.
    out: folder to write; pretrained prompts in it are replaced.
    chosen: thresholds for these prompts. They join those that the folder
      already has for the same prompts.

  Returns:
    A sentence about the thresholds, see `thresholds.put`.

  Raises:
    InputError: if the folder contains other files or cannot be written.
  """
  record = Record(
    detector.config.to_dict(), detector.backbone.sha256, origin=detector.origin
  )
  contents = {
    CONFIG: record.to_json(),
    PROMPTS: prompts.to_safetensors(detector.prompts, record),
  }
  return _add(contents, [], out, chosen)


def _add(contents, earlier, out, chosen):
  """Writes a folder with new thresholds and the earlier ones of its prompts."""
  out = to_path(out)
  require_replaceable(out)
  kept = thresholds.read_thresholds(out)
  if all(row.prompts_sha256 != chosen.prompts_sha256 for row in kept):
    kept = earlier  # The folder's prompts and their thresholds are replaced.
  rows, sentence = thresholds.put(chosen, kept, out / THRESHOLDS)
  contents[THRESHOLDS] = thresholds.to_json(rows)
  if CARD in contents:
    text = contents[CARD].decode(errors="replace")
    contents[CARD] = replace_thresholds(text, rows)
  _write(out, contents)
  return sentence


def require_replaceable(out: str | os.PathLike) -> None:
  """Raises InputError if a folder has files but no pretrained prompts."""
  out = to_path(out)
  try:
    names = find_files(out) if is_address(out) else os.listdir(out)
  except FileNotFoundError:
    return
  except OSError as error:
    raise InputError(
      f"--out={out} is not a folder that can be written: {error.strerror}"
    ) from error
  if names and PROMPTS not in names:
    raise InputError(
      f"--out={out} contains files other than pretrained prompts: choose"
      " another folder"
    )


def _without_paths(record: Record, workdir: Any, backbone: str) -> Record:
  """Returns a copy of a record with names of data and runs but no paths."""
  config = record.to_config(str(workdir))
  config.data_dir = config.manual_dir = config.features_dir = ""
  config.train.dataset = _last_part(config.train.dataset)
  config.evaluation.datasets = tuple(
    map(_last_part, config.evaluation.datasets)
  )
  weights = config.backbone.weights
  if backbone:
    check_backbone(record, load_clip(backbone).sha256, str(workdir), False)
    config.backbone.weights, config.backbone.revision = backbone, ""
  elif weights != DEMO_CLIP and not split_hub_name(weights):
    _logger.warning(
      "the folder names the backbone %s, which other people do not have; name a"
      " copy on the hub with --backbone=OWNER/NAME",
      weights,
    )
  return dataclasses.replace(
    record, config=config.to_dict(), init_from=_last_part(record.init_from)
  )


def _last_part(name):
  """Shortens KIND:PATH to KIND:NAME and a path to its name."""
  kind, _, path = name.rpartition(":")
  last = os.path.basename(path.rstrip("/"))
  if path.startswith("//") or os.path.isabs(name):  # gs://BUCKET/PATH is one.
    return last
  return f"{kind}:{last}" if kind else name


def _find_results(workdir, prompts_sha256, backbone_sha256):
  """Returns the run's results if they were measured on these prompts."""
  reason = "the run was not evaluated"
  if exists(workdir / "results.json"):
    results = read_results(workdir)
    evaluated = results.get("prompts_sha256"), results.get("backbone_sha256")
    if evaluated == (prompts_sha256, backbone_sha256):
      return results
    reason = "results.json comes from other prompts or another backbone"
  _logger.warning(
    "the card has no results because %s; to add them, run"
    " `cops evaluate --workdir=%s` and publish again",
    *(reason, workdir),
  )
  return None


def _write(out, contents: Mapping[str, str | bytes]):
  """Writes all files or none, and deletes other files of earlier prompts."""
  # At its end the stack renames the files in reverse order: prompts last.
  with contextlib.ExitStack() as stack:
    for name in pretrained.FILES:
      if name in contents:
        content = contents[name]
        content = content.encode() if isinstance(content, str) else content
        stack.enter_context(whole_file(out / name)).write_bytes(content)
  for name in set(pretrained.FILES) - set(contents):
    delete(out / name)


def make_card(
  record: Record,
  *,
  name: str,
  step: int,
  prompts_sha256: str,
  hub_backbone: str = "",
  thresholds: Sequence[Thresholds] = (),
  results: Mapping[str, Any] | None = None,
) -> str:
  """Returns the text of a model card: training, results and limits of prompts.

  Args:
    record: record of the training run, without local paths.
    name: suggested name of the repository.
    step: step of the checkpoint.
    prompts_sha256: SHA-256 of the prompts, from `prompts.hash_prompts`.
    hub_backbone: name of the backbone on the hub; empty if it is not there.
    thresholds: thresholds that were chosen for the prompts.
    results: content of results.json; None if the prompts were not evaluated.
  """
  config = complete(record.config)
  data = _describe_data(config["train.dataset"])
  rows, settings = {}, []
  if results:
    rows = {
      name: (row["mean"], row["num_images"], row["num_anomalous_images"])
      for name, row in results["datasets"].items()
    }
    rows |= {name: (mean, "", "") for name, mean in results["means"].items()}
    settings = [  # Fields that the evaluation changed.
      f"{name} = {value!r}"
      for name, value in complete(results["config"]).items()
      if decides(name, Role.RESULTS) and value != config.get(name)
    ]
  return (
    _environment()
    .get_template("card.md.jinja")
    .render(
      name=name,
      title=methods.find(config["method"]).TITLE,
      front_matter=_front_matter(config, data["licence_id"], hub_backbone),
      config=config,
      backbone=hub_backbone or config["backbone.weights"],
      is_on_hub=bool(hub_backbone),
      is_toy=config["backbone.weights"] == "demo",
      data=data,
      record=record,
      step=step,
      prompts_sha256=prompts_sha256,
      version=__version__,
      thresholds=thresholds,
      metrics=METRICS,
      rows=rows,
      results=results,
      settings=settings,
    )
  )


def replace_thresholds(card: str, thresholds: Sequence[Thresholds]) -> str:
  """Returns a card, which can have been edited, with new thresholds."""
  template = _environment().get_template("thresholds.md.jinja")
  section = template.render(thresholds=thresholds)
  pattern = r"^## Thresholds\n.*?(?=^## |\Z)"
  return re.sub(pattern, lambda _: f"{section}\n\n", card, flags=re.M | re.S)


def _environment():
  environment = make_environment()
  environment.filters["cell"] = _to_cell
  environment.filters["public"] = lambda notes: shorten_list(
    [note for note in notes if "/" not in note]  # Others name local files.
  )
  return environment


def _to_cell(text):
  """Returns a text escaped for a table in Markdown."""
  return one_line(text).replace("\\", "\\\\").replace("|", "\\|")


def _front_matter(config, licence, hub_backbone):
  from huggingface_hub import ModelCardData

  from cops_jax.datasets.further import PUBLISHED

  data = config["train.dataset"]
  base = {"base_model": hub_backbone, "base_model_relation": "adapter"}
  values = ModelCardData(
    license=licence,
    library_name="cops_jax",
    pipeline_tag="image-segmentation",
    tags=["anomaly-detection", "zero-shot", "clip", "jax", config["method"]],
    datasets=[data] if data in PUBLISHED else None,
    **(base if hub_backbone else {}),
  )
  return values.to_yaml().strip()


def _describe_data(name):
  """Returns the title and the licence of the training data."""
  from cops_jax.datasets.further import PUBLISHED

  licence_id = "other"
  if row := PUBLISHED.get(name):
    title = f"[{row.title}]({row.homepage}), {row.citation}"
    licence = row.licence
    licence_id = _LICENCES.get(licence.partition(",")[0], licence_id)
  elif name.startswith("demo_"):
    title = f"{name}, generated by cops_jax"
    licence = "generated for cops_jax, free to use"
    licence_id = "apache-2.0"
  else:
    title = f"{name}, a custom data set"
    licence = "not known to cops_jax"
  return {"title": title, "licence": licence, "licence_id": licence_id}
