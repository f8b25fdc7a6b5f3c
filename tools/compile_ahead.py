"""Compiles the steps for a TPU slice that this machine does not have.

  python -m tools.compile_ahead --config=configs/visa.py --topology=v5e:4x4

Needs the extra [tpu-aot], and no TPU. Prints for the training step, the one
from cached features and the evaluation step what the compiler says: memory of a
chip, operations and bytes, what chips exchange; and the least time that the
chip's published peak rates allow for these. Nothing is run. Fields of the
config can be set: --config.model.image_size_pixels=336. CLIP is OpenAI's
ViT-L/14@336 unless config.clip.weights is a folder or "demo".
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from benchmarks.common import clip_config
from cops_jax.clip.attention import padded_length
from cops_jax.clip.flops import PEAK_TERA_FLOPS
from cops_jax.clip.towers import cast_matrices
from cops_jax.commands import command_line, flags, make_parser
from cops_jax.errors import InputError, shorten
from cops_jax.evaluation.step import make_predict_step
from cops_jax.progress import show_messages
from cops_jax.runtime.mesh import (
  batch_sharding,
  clip_shardings,
  make_mesh,
  replicated_sharding,
)
from cops_jax.tables import align
from cops_jax.training.step import (
  create_train_state,
  make_optimizer,
  make_train_step,
)
from cops_jax.weights import (
  PretrainedCLIP,
  build_model,
  load_clip,
  trainable_shapes,
)
from cops_jax.weights.clip import OPENAI_TOKENS
from cops_jax.weights.clip_names import clip_param_shapes

_logger = logging.getLogger("cops_jax.compile_ahead")

_OPENAI_CLIP = "openai/clip-vit-large-patch14-336"

TRAINING, CACHED_TRAINING = "training", "training, cached features"
EVALUATION = "evaluation"
STEPS = (TRAINING, CACHED_TRAINING, EVALUATION)


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published rates of a chip.

  Attributes:
    tera_flops: a second, in bfloat16.
    giga_bytes: of memory.
    bandwidth: of the memory, in GB a second.
  """

  tera_flops: float
  giga_bytes: float
  bandwidth: float


# By the names that JAX gives to the kinds of devices.
CHIPS = {
  kind: Chip(PEAK_TERA_FLOPS[kind], *memory)
  for kind, memory in {
    "TPU v4": (32, 1228),
    "TPU v5 lite": (16, 819),
    "TPU v5": (95, 2765),
    "TPU v6 lite": (32, 1640),
  }.items()
}


@dataclasses.dataclass(frozen=True)
class Report:
  """What the compiler says of a step; all numbers are for one chip.

  Attributes:
    step: its name.
    compile_seconds: that compiling took.
    argument_bytes, temporary_bytes: of memory.
    flops: operations; the compiler's count, and the attention kernels', which
      it does not count.
    accessed_bytes: of memory that is read or written.
    collectives: bytes that chips exchange, by kind of exchange and type.
    outputs: types of what the step gives.
  """

  step: str
  compile_seconds: float
  argument_bytes: int
  temporary_bytes: int
  flops: float
  accessed_bytes: float
  collectives: dict[tuple[str, str], int]
  outputs: tuple[str, ...]


def tpu_mesh(topology: str) -> Mesh:
  """The devices of a slice, as `make_mesh` gives a machine's own.

  Raises:
    InputError: there is no such slice, or libtpu is missing.
  """
  # Otherwise libtpu asks the cloud which TPU this machine has, for minutes.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  # Several programs may compile at a time: there is no TPU to be fought for.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise InputError(
      "compiling for a TPU needs libtpu: pip install --editable '.[tpu-aot]'"
    ) from error
  # A v4 chip's two cores are one device, unless this is left out.
  options = {"chip_config_name": "megacore"} if "v4" in topology else {}
  try:
    slice_ = topologies.get_topology_desc(
      platform="tpu", topology_name=topology, **options
    )
  except Exception as error:  # JAX and libtpu raise many kinds.
    raise InputError(
      f"--topology={topology} is no slice that libtpu knows; examples are"
      f" v5e:4x4, v4:2x2x2 and v6e:8x8 ({shorten(error)})"
    ) from error
  # Programs for chips that are not here could be kept, and not read again.
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  return make_mesh(slice_.devices)


def read_clip(name: str) -> PretrainedCLIP:
  """CLIP's sizes and tokens; of OpenAI's published one without its weights."""
  if name != _OPENAI_CLIP:
    return load_clip(name)
  config = clip_config()
  return PretrainedCLIP(config, clip_param_shapes(config), OPENAI_TOKENS, "")


def compile_steps(
  config: Any,
  clip: PretrainedCLIP,
  mesh: Mesh,
  images_per_chip: int,
  steps: Sequence[str] = STEPS,
) -> Iterator[Report]:
  """Compiles steps, one after the other.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`; its batch sizes
      are not read.
    clip: see `read_clip`.
    mesh: see `tpu_mesh`.
    images_per_chip: in a step.
    steps: some of `STEPS`.
  """
  config = config.copy_and_resolve_references()
  if config.clip.dtype == "auto":
    config.clip.dtype = "bfloat16"  # As on any TPU.
  model = build_model(config, clip)
  replicated, split = replicated_sharding(mesh), batch_sharding(mesh)

  def shape(shape, dtype, sharding):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  def placed(tree, shardings):
    if not isinstance(shardings, dict):
      shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
      lambda leaf, sharding: shape(leaf.shape, leaf.dtype, sharding),
      tree,
      shardings,
    )

  clip_params = jax.eval_shape(
    lambda params: cast_matrices(params, model.clip.dtype), clip.params
  )
  shardings = clip_shardings(clip_params, mesh, config.clip.split_over_devices)
  clip_params = placed(clip_params, shardings)
  optimizer = make_optimizer(config.train, num_steps=1)
  trainable = trainable_shapes(model, clip, replicated)
  state = placed(
    jax.eval_shape(
      lambda params: create_train_state(params, optimizer), trainable
    ),
    replicated,
  )
  train_step = make_train_step(model, optimizer, mesh, shardings)
  predict_step = make_predict_step(model, mesh, shardings)
  number = images_per_chip * mesh.size
  fields = {
    name: shape((number, *rest), dtype, split)
    for name, (rest, dtype) in _batch_shapes(config, model).items()
  }
  inputs = {
    TRAINING: (train_step, state, ("image", *_TRAINING)),
    CACHED_TRAINING: (train_step, state, (*_FEATURES, *_TRAINING)),
    EVALUATION: (predict_step, trainable, ("image", "example_id")),
  }
  for name in steps:
    step, first, names = inputs[name]
    batch = {field: fields[field] for field in names if field in fields}
    report = _compile(name, step, first, clip_params, batch)
    if "image" in batch:
      flops = report.flops + images_per_chip * _kernel_flops(
        model, config.model.image_size_pixels
      )
      report = dataclasses.replace(report, flops=flops)
    yield report


def _kernel_flops(model, side):
  """Returns an image's: products of padded queries, keys and values."""
  if model.clip.attention not in ("auto", "splash"):
    return 0
  vision = model.clip.config.vision_config
  length = padded_length((side // vision.patch_size) ** 2 + 1)
  num_kernels = (
    vision.num_hidden_layers
    - 1
    + min(model.config.model.num_value_layers, vision.num_hidden_layers)
  )
  return num_kernels * 4 * length**2 * vision.hidden_size


_FEATURES = ("image_features", "patch_features")
_TRAINING = ("mask_counts", "mask", "label", "example_id", "padding_mask")


def _batch_shapes(config, model):
  """For each field of a batch the shape of a row, and its type."""
  side = config.model.image_size_pixels
  patches = (side // model.clip.config.vision_config.patch_size) ** 2
  width = model.clip.config.projection_dim
  targets = {"mask_counts": ((patches,), np.int32)}
  if model.needs_masks:
    targets = {"mask": ((side, side), np.uint8)}
  return {
    "image": ((side, side, 3), np.uint8),
    "image_features": ((width,), jnp.bfloat16),
    "patch_features": (
      (len(config.model.feature_layers), patches, width),
      jnp.bfloat16,
    ),
    **targets,
    "label": ((), np.int32),
    "example_id": ((), np.uint32),
    "padding_mask": ((), np.bool_),
  }


def _compile(name, step, *arguments):
  start = time.monotonic()
  compiled = step.lower(*arguments).compile()
  seconds = time.monotonic() - start
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  return Report(
    name,
    seconds,
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
    cost["flops"],
    cost["bytes accessed"],
    dict(exchanges(compiled.as_text())),
    tuple(
      str(leaf.dtype)
      for leaf in jax.tree.leaves(jax.eval_shape(step, *arguments))
    ),
  )


_COLLECTIVE = re.compile(
  r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all"
  r"|collective-permute|collective-broadcast)(?:-start)?\("
)
_ARRAY = re.compile(r"([a-z]+)(\d+)?\[([\d,]*)\]")


def exchanges(text: str) -> collections.Counter[tuple[str, str]]:
  """Bytes that devices exchange, by kind of exchange and type.

  Args:
    text: of a compiled program.
  """
  found = collections.Counter()
  for line in text.splitlines():
    match = _COLLECTIVE.search(line)
    if not match:
      continue
    for kind, bits, sizes in _ARRAY.findall(match[1]):
      number = np.prod([int(size) for size in sizes.split(",") if size])
      bytes_ = int(number) * int(bits or 8) // 8
      found[match[2], f"{kind}{bits}"] += bytes_
  return found


# Lines of the table: what a report says, and what it takes on a chip.
_OF_REPORT = {
  "compiled in, s": lambda report: f"{report.compile_seconds:.0f}",
  "arguments, GB": lambda report: f"{report.argument_bytes / 1e9:.2f}",
  "temporary, GB": lambda report: f"{report.temporary_bytes / 1e9:.2f}",
  "TFLOP": lambda report: f"{report.flops / 1e12:.2f}",
  "GB accessed": lambda report: f"{report.accessed_bytes / 1e9:.1f}",
  "FLOP a byte": lambda report: f"{report.flops / report.accessed_bytes:.0f}",
}
_ON_CHIP = {
  "fits the chip": lambda report, chip: (
    "yes"
    if report.argument_bytes + report.temporary_bytes < chip.giga_bytes * 1e9
    else "NO"
  ),
  "compute, ms": lambda report, chip: (
    f"{report.flops / chip.tera_flops / 1e9:.1f}"
  ),
  "memory, ms": lambda report, chip: (
    f"{report.accessed_bytes / chip.bandwidth / 1e6:.1f}"
  ),
}


def table(reports: Sequence[Report], chip: Chip | None) -> str:
  """Returns the reports as text, a column for each step."""
  rows = [["", *(report.step for report in reports)]]
  for title, text in _OF_REPORT.items():
    rows.append([title, *map(text, reports)])
  for title, text in _ON_CHIP.items() if chip else ():
    rows.append([title, *(text(report, chip) for report in reports)])
  for kind in sorted(
    {kind for report in reports for kind in report.collectives}
  ):
    sizes = (report.collectives.get(kind, 0) for report in reports)
    rows.append([f"{' '.join(kind)}, MB", *(f"{n / 1e6:.2f}" for n in sizes)])
  return "\n".join(align(rows, 1))


def _parser():
  parser = make_parser("compile_ahead", __doc__)
  parser.prog = "python -m tools.compile_ahead"
  parser.add_argument(
    "--topology",
    default="v5e:4x4",
    help="slice: a kind of TPU and its chips' grid; default %(default)s",
  )
  parser.add_argument(
    "--images_per_chip",
    type=int,
    default=8,
    help="images in a step for each chip; default %(default)s",
  )
  flags.add_config(parser)
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  options = flags.parse(_parser(), arguments)
  show_messages()
  jax.config.update("jax_platforms", "cpu")  # No TPU is looked for here.
  config, topology = flags.read_config(options), options.topology
  images_per_chip = max(options.images_per_chip, 1)
  mesh = tpu_mesh(topology)
  clip = read_clip(config.clip.weights)
  kind = mesh.devices.flat[0].device_kind
  chip = CHIPS.get(kind)
  print(
    f"{topology}: {mesh.size} x {kind}, {images_per_chip} images a chip;"
    " all numbers are for one chip"
  )
  reports = []
  for report in compile_steps(config, clip, mesh, images_per_chip):
    _logger.info("%s: %.0f s", report.step, report.compile_seconds)
    reports.append(report)
  print(table(reports, chip))


if __name__ == "__main__":
  main()
