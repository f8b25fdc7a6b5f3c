"""CLIP weights and trained prompts, in and out."""

from __future__ import annotations

import collections

from cops_jax.config import complete, flatten
from cops_jax.errors import InputError
from cops_jax.files import exists, is_file
from cops_jax.runs.checkpoints import Checkpoints, find_steps
from cops_jax.runs.record import check_clip, from_json, read_record
from cops_jax.weights import clip_names, prompts, tensor_files
from cops_jax.weights.clip import (
  DEMO_CLIP,
  DEMO_FOLDER,
  PretrainedCLIP,
  PromptTokens,
  load_clip,
  save_clip,
)
from cops_jax.weights.clip_names import clip_param_shapes
from cops_jax.weights.model import (
  build_model,
  clip_of,
  load_trainable,
  place_clip,
  settle_dtype,
  trainable_shapes,
)

__all__ = [
  "DEMO_CLIP",
  "DEMO_FOLDER",
  "PretrainedCLIP",
  "PromptTokens",
  "build_model",
  "clip_of",
  "clip_param_shapes",
  "export",
  "inspect",
  "load_clip",
  "load_trainable",
  "place_clip",
  "save_clip",
  "settle_dtype",
  "trainable_shapes",
]


def export(workdir: str, out: str) -> str:
  """Writes the newest prompts of a work directory as one file.

  Args:
    workdir: of a training run.
    out: ends in .safetensors or .pth; see `prompts.write_prompts`.

  Returns:
    What was written, in words.

  Raises:
    InputError: there is no checkpoint, or the file cannot be written; or its
      format needs the run's CLIP, which is not available.
  """
  record = read_record(workdir)
  with Checkpoints(workdir) as saved:
    step, trainable = saved.restore_params()
  clip = None
  if out.endswith(".pth") and record.config.get("method") == "anomalyclip":
    clip = clip_of(record.to_config(workdir))
    check_clip(record, clip.sha256, workdir, allow_other_clip=False)
  prompts.write_prompts(out, trainable, record, clip)
  return f"{out}: the prompts of step {step} of {workdir}"


def inspect(path: str) -> str:
  """What a file of weights or the newest checkpoint of a run holds, as text.

  Raises:
    InputError: the file cannot be read, or the folder holds no run.
  """
  if exists(path) and not is_file(path):
    return _inspect_run(path)
  file = tensor_files.read_tensor_file(path)
  dtypes = collections.Counter(
    str(array.dtype) for array in file.tensors.values()
  )
  lines = [
    f"file:    {path}",
    f"format:  {file.format}, {_contents(file)}",
    f"size:    {file.path.stat().st_size:,} bytes",
    f"sha256:  {file.sha256}",
    "dtype:   "
    + ", ".join(f"{dtype} ({count})" for dtype, count in dtypes.items()),
  ]
  if file.record:
    lines += _describe(from_json(file.record, path))
  return "\n".join([*lines, _table(dict(file.tensors))])


def _inspect_run(workdir):
  record = read_record(workdir)
  with Checkpoints(workdir) as saved:
    step, params = saved.restore_params()
  steps = ", ".join(map(str, find_steps(workdir)))
  config = complete(record.config)
  return "\n".join(
    [
      f"folder:  {workdir}",
      f"newest:  the prompts of step {step}; checkpoints of: {steps}",
      *_describe(record),
      "config:",
      *(f"  {name} = {value!r}" for name, value in sorted(config.items())),
      _table(params),
    ]
  )


def _describe(record):
  config = flatten(record.config)
  return [
    f"run:     cops_jax {record.version}, trained on"
    f" {config.get('train.dataset')} with CLIP {config.get('clip.weights')}",
    f"         CLIP's sha256 {record.clip_sha256}",
  ]


def _table(params):
  from clu import parameter_overview

  return parameter_overview.get_parameter_overview(params, include_stats=False)


def _contents(file):
  names = file.tensors
  if clip_names.is_openai(names):
    try:
      config = clip_names.config_from_openai(names, str(file.path))
    except InputError as error:
      return (
        f"tensors in OpenAI's names, but no CLIP that is read here: {error}"
      )
    vision, text = config.vision_config, config.text_config
    return (
      f"CLIP in OpenAI's names: {vision.num_hidden_layers} vision layers of"
      f" width {vision.hidden_size}, patches of {vision.patch_size} pixels in"
      f" images of {vision.image_size}, {text.num_hidden_layers} text layers of"
      f" width {text.hidden_size}, joint width {config.projection_dim}"
    )
  for start, contents in (
    ("vision_model.", "CLIP in Hugging Face's names"),
    ("prompt_learner.context", "trained prompts in this project's names"),
    ("object_prompts.", "AnomalyCLIP's prompts in this project's names"),
    ("prompt_learner.t_n", "trained prompts in the authors' names"),
    ("prompt_learner.", "AnomalyCLIP's prompts in its authors' names"),
  ):
    if any(name.startswith(start) for name in names):
      return contents
  return "neither a CLIP nor prompts that are known here"
