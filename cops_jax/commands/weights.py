"""Saves, publishes and lists trained prompts, and inspects weights.

  cops weights list
  cops weights save --workdir=runs/demo --out=prompts.pth
  cops weights publish --workdir=runs/visa --out=published/visa
  cops weights inspect prompts.pth
  cops weights inspect runs/demo

`list` shows the prompts that the methods' authors published, under the names
that --pretrained accepts, and where copies are stored. `save` writes the newest
prompts of a run to one file: .safetensors, or .pth for the authors' code.
`publish` writes them with their config, thresholds and model card to a folder
that --pretrained accepts and that is ready for `hf upload`. `inspect` describes
a file of weights, without running code in it, or the newest checkpoint, config
and backbone of a run.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Sequence

from cops_jax.commands import command_line, make_parser
from cops_jax.files import exists, is_file
from cops_jax.progress import show_messages

# Description of a file's contents, by the prefix of its tensors' names.
_CONTENTS = {
  "vision_model.": "CLIP in Hugging Face's names",
  "visual.": "CLIP in OpenAI's names",
  "prompt_learner.context": "trained prompts in this project's names",
  "object_prompts.": "AnomalyCLIP's prompts in this project's names",
  "prompt_learner.t_n": "trained prompts in the authors' names",
  "prompt_learner.": "AnomalyCLIP's prompts in its authors' names",
}


def _parser() -> argparse.ArgumentParser:
  parser = make_parser("weights", __doc__)
  commands = parser.add_subparsers(dest="command", required=True)
  commands.add_parser("list", help="list the prompts that authors published")
  command = commands.add_parser(
    "save", help="write the newest prompts of a run to one file"
  )
  command.add_argument(
    "--workdir", required=True, help="read the prompts from this run directory"
  )
  command.add_argument(
    "--out",
    required=True,
    metavar="FILE",
    help="write to this file, which ends in .safetensors or, for the authors'"
    " format, .pth",
  )
  command = commands.add_parser(
    "publish", help="write the newest prompts of a run to a folder for the hub"
  )
  command.add_argument(
    "--workdir", required=True, help="read the prompts from this run directory"
  )
  command.add_argument(
    "--out",
    required=True,
    metavar="FOLDER",
    help="write to this folder, which must be new, empty, or contain pretrained"
    " prompts to replace",
  )
  command.add_argument(
    "--backbone",
    default="",
    metavar="OWNER/NAME",
    help="set the name of the run's backbone on the Hugging Face hub, if the"
    " run loaded it from a file or folder; the command downloads it and"
    " compares hashes",
  )
  command = commands.add_parser(
    "inspect", help="describe a file of weights or a run"
  )
  command.add_argument(
    "path", help="a file of weights or a run directory to describe"
  )
  return parser


def _list_published():
  from cops_jax.config import recipe
  from cops_jax.weights import published

  lines = []
  for name, file in published.AUTHORS_FILES.items():
    config, kept = recipe(file.recipe), published.kept_path(name)
    lines += [
      f"{name}: {config.method}, trained on {config.train.dataset};"
      f" --config={file.recipe}; {config.backbone.weights}",
      f"  from    {published.addresses(name)[0]}",
      f"  licence {file.licence}, as its repository states",
      f"  hash    {' or '.join(file.hashes)}",
      f"  copy    {kept}{'' if kept.exists() else ' (not downloaded yet)'}",
    ]
  return "\n".join(lines)


def inspect(path: str) -> str:
  """Returns a description of a file of weights or of a run directory.

  Raises:
    InputError: if the file cannot be read, or the folder holds no run.
  """
  from cops_jax.runs.record import from_json
  from cops_jax.weights import published
  from cops_jax.weights.tensor_files import read_tensor_file

  if exists(path) and not is_file(path):
    return _inspect_run(path)
  file = read_tensor_file(path)
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
    "neither CLIP nor known prompts",
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
  elif record := published.find_record(file):
    lines += _describe(record)
  return "\n".join([*lines, _table(dict(file.tensors))])


def _inspect_run(workdir):
  from cops_jax.config import complete
  from cops_jax.runs.checkpoints import Checkpoints, find_steps
  from cops_jax.runs.record import read_record

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
  from cops_jax.config import flatten

  config = flatten(record.config)
  return [
    f"run:     {record.origin or f'cops_jax {record.version}'}, trained on"
    f" {config.get('train.dataset')} on {config.get('backbone.weights')}",
    f"         backbone's sha256: {record.backbone_sha256 or 'unknown'}",
  ]


def _table(params):
  from clu import parameter_overview

  return parameter_overview.get_parameter_overview(params, include_stats=False)


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  options = _parser().parse_args(arguments)
  from cops_jax import publish
  from cops_jax.weights import prompts

  if options.command == "list":
    print(_list_published())
  elif options.command == "save":
    print(prompts.save(options.workdir, options.out))
  elif options.command == "publish":
    show_messages()
    print(publish.publish(options.workdir, options.out, options.backbone))
  else:
    print(inspect(options.path))
