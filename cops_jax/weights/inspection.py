"""Describes files of weights and the newest checkpoints of runs, as text."""

from __future__ import annotations

import collections

from cops_jax.config import complete, flatten
from cops_jax.files import exists, is_file
from cops_jax.runs.checkpoints import Checkpoints, find_steps
from cops_jax.runs.record import from_json, read_record
from cops_jax.weights import tensor_files

# By how the names of a file's tensors begin.
_CONTENTS = {
  "vision_model.": "CLIP in Hugging Face's names",
  "visual.": "CLIP in OpenAI's names",
  "prompt_learner.context": "trained prompts in this project's names",
  "object_prompts.": "AnomalyCLIP's prompts in this project's names",
  "prompt_learner.t_n": "trained prompts in the authors' names",
  "prompt_learner.": "AnomalyCLIP's prompts in its authors' names",
}


def inspect(path: str) -> str:
  """Returns what a file of weights or a run's newest checkpoint holds, as text.

  Raises:
    InputError: the file cannot be read, or the folder holds no run.
  """
  if exists(path) and not is_file(path):
    return _inspect_run(path)
  file = tensor_files.read_tensor_file(path)
  dtypes = collections.Counter(
    str(array.dtype) for array in file.tensors.values()
  )
  counts = ", ".join(f"{dtype} ({count})" for dtype, count in dtypes.items())
  contents = next(
    (
      contents
      for start, contents in _CONTENTS.items()
      if any(name.startswith(start) for name in file.tensors)
    ),
    "neither a CLIP nor prompts that are known here",
  )
  lines = [
    f"file:    {path}",
    f"format:  {file.format}, {contents}",
    f"size:    {file.path.stat().st_size:,} bytes",
    f"sha256:  {file.sha256}",
    f"dtype:   {counts}",
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
