"""Compiles the steps for a TPU slice that this machine does not have.

  python -m tools.compile_ahead --config=configs/visa.py --topology=v5e:4x4

Requires the extra [tpu-aot], but no TPU. Prints the compiler's numbers for the
training step, the training step from cached features and the evaluation step:
memory of a chip, operations, bytes accessed and bytes that chips exchange. Also
prints the shortest times that the chip's published peak rates allow. Nothing is
run. --config.model.image_size_pixels=336 sets a field of the config. The
recipes' backbones are not downloaded; config.backbone.weights can also be a
folder or "demo".
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from benchmarks.common import without_weights
from cops_jax.backbones.attention import padded_length
from cops_jax.backbones.flops import PEAK_TERA_FLOPS
from cops_jax.backbones.vision import cast_matrices, sizes_of
from cops_jax.commands import TOOL, command_line, flags, make_parser
from cops_jax.errors import InputError, shorten
from cops_jax.evaluation.step import make_predict_step
from cops_jax.progress import show_messages
from cops_jax.runtime.mesh import (
  backbone_shardings,
  batch_sharding,
  make_mesh,
  replicated_sharding,
)
from cops_jax.tables import align
from cops_jax.training.step import (
  create_train_state,
  make_optimizer,
  make_train_step,
)
from cops_jax.weights.backbone import PretrainedBackbone, load_backbone
from cops_jax.weights.model import build_model, trainable_shapes

# Weights that are not downloaded, because `benchmarks.common` has their sizes.
_PUBLISHED = (
  "openai/clip-vit-large-patch14-336",
  "facebook/dinov2-with-registers-large",
  "facebook/dinov3-vitl16-pretrain-lvd1689m",
)

# Published memory of a chip in GB and its bandwidth in GB/s, by JAX's device
# kind.
CHIPS = {
  "TPU v4": (32, 1228),
  "TPU v5 lite": (16, 819),
  "TPU v5": (95, 2765),
  "TPU v6 lite": (32, 1640),
}


@dataclasses.dataclass(frozen=True)
class Report:
  """The compiler's numbers for a step on one chip.

  Attributes:
    step: name of the step.
    argument_bytes, temporary_bytes: memory of arguments and temporary arrays.
    flops: operations, including those of attention kernels, which the compiler
      does not count.
    accessed_bytes: bytes of memory that are read or written.
    collectives: bytes that chips exchange, by kind of exchange and type.
    outputs: types of the step's outputs.
  """

  step: str
  argument_bytes: int
  temporary_bytes: int
  flops: float
  accessed_bytes: float
  collectives: dict[tuple[str, str], int]
  outputs: tuple[str, ...]


def tpu_mesh(topology: str) -> Mesh:
  """Returns a mesh of the devices of a slice.

  Args:
    topology: kind of TPU and grid of its chips, such as "v5e:4x4".

  Raises:
    InputError: if libtpu is missing or does not know the slice.
  """
  # By default, libtpu asks the cloud for minutes which TPU this machine has.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  # Several programs can compile at a time, because none uses a TPU.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise InputError(
      "compiling for a TPU requires libtpu. Run"
      " `pip install --editable '.[tpu-aot]'`"
    ) from error
  # Makes the two cores of a v4 chip one device.
  options = {"chip_config_name": "megacore"} if "v4" in topology else {}
  try:
    slice_ = topologies.get_topology_desc(
      platform="tpu", topology_name=topology, **options
    )
  except Exception as error:  # JAX and libtpu raise many types of errors.
    raise InputError(
      f"--topology={topology} is not a slice that libtpu knows"
      f" ({shorten(error)}). Choose one such as v5e:4x4, v4:2x2x2 or v6e:8x8"
    ) from error
  # The cache could store programs for absent chips, but not load them again.
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  return make_mesh(slice_.devices)


def read_backbone(config: Any) -> PretrainedBackbone:
  """Returns a config's backbone; a published one has shapes but no weights."""
  is_published = config.backbone.weights in _PUBLISHED
  return (without_weights if is_published else load_backbone)(config)


def compile_steps(
  config: Any, backbone: PretrainedBackbone, mesh: Mesh, images_per_chip: int
) -> Iterator[Report]:
  """Yields reports on both training steps and the evaluation step.

  Args:
    config: a ConfigDict with the fields of `cops_jax.config`; its batch sizes
      are not read.
    backbone: backbone from `read_backbone`.
    mesh: mesh from `tpu_mesh`.
    images_per_chip: number of images in a step for each chip.
  """
  config = config.copy_and_resolve_references()
  if config.backbone.dtype == "auto":
    config.backbone.dtype = "bfloat16"  # "auto" means bfloat16 on TPUs.
  model = build_model(config, backbone, "tpu")
  replicated, split = replicated_sharding(mesh), batch_sharding(mesh)

  def placed(tree, shardings):
    if not isinstance(shardings, dict):
      shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      tree,
      shardings,
    )

  backbone_params = jax.eval_shape(
    lambda params: cast_matrices(params, model.backbone.dtype), backbone.params
  )
  shardings = backbone_shardings(
    backbone_params, mesh, config.backbone.split_over_devices
  )
  backbone_params = placed(backbone_params, shardings)
  optimizer = make_optimizer(config.train, num_steps=1)
  trainable = trainable_shapes(model, backbone, replicated)
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
    name: jax.ShapeDtypeStruct((number, *rest), dtype, sharding=split)
    for name, (rest, dtype) in _batch_shapes(config, model).items()
  }
  cached = "image_features", "patch_features"
  for name, step, first, unread in (
    ("training", train_step, state, cached),
    ("training, cached features", train_step, state, ("image",)),
    ("evaluation", predict_step, trainable, set(fields) - {"image"}),
  ):
    batch = {key: fields[key] for key in fields if key not in unread}
    number = images_per_chip if "image" in batch else 0
    flops = number * _kernel_flops(model, config.model.image_size_pixels)
    yield _compile(name, step, (first, backbone_params, batch), flops)


def _kernel_flops(model, side):
  """Returns the attention kernels' operations for one image and its padding."""
  if model.backbone.attention not in ("auto", "splash"):
    return 0
  sizes = sizes_of(model.backbone.config)
  num_patches = (side // sizes.patch_size) ** 2
  length = padded_length(num_patches + sizes.num_other_tokens)
  num_kernels = sizes.num_layers
  if num_value := model.config.model.num_value_layers:
    # In the last layer, CLIP's own stream computes one token, without a kernel.
    num_kernels += min(num_value, sizes.num_layers) - 1
  return num_kernels * 4 * length**2 * sizes.width


def _batch_shapes(config, model):
  """Returns the shape of one row and the type of each field of a batch."""
  side = config.model.image_size_pixels
  patches = (side // sizes_of(model.backbone.config).patch_size) ** 2
  width = model.backbone.feature_width
  num_layers = len(config.model.feature_layers)
  targets = {"mask_counts": ((patches,), np.int32)}
  if model.needs_masks:
    targets = {"mask": ((side, side), np.uint8)}
  return {
    "image": ((side, side, 3), np.uint8),
    "image_features": (
      (num_layers, width) if model.has_layer_tokens else (width,),
      jnp.bfloat16,
    ),
    "patch_features": ((num_layers, patches, width), jnp.bfloat16),
    **targets,
    "label": ((), np.int32),
    "example_id": ((), np.uint32),
    "padding_mask": ((), np.bool_),
  }


def _compile(name, step, arguments, kernel_flops):
  compiled = step.lower(*arguments).compile()
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  outputs = jax.tree.leaves(jax.eval_shape(step, *arguments))
  return Report(
    name,
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
    cost["flops"] + kernel_flops,
    cost["bytes accessed"],
    dict(exchanges(compiled.as_text())),
    tuple(str(leaf.dtype) for leaf in outputs),
  )


_COLLECTIVE = re.compile(
  r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all"
  r"|collective-permute|collective-broadcast)(?:-start)?\("
)
_ARRAY = re.compile(r"([a-z]+)(\d+)?\[([\d,]*)\]")


def exchanges(text: str) -> collections.Counter[tuple[str, str]]:
  """Returns the bytes that devices exchange, from a compiled program's text.

  The keys are the kind of exchange and the type of the array.
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


def table(reports: Sequence[Report], kind: str) -> str:
  """Returns a text table with a column for each step.

  Times are omitted if the kind of the chip is not in `CHIPS`.
  """
  rows = [["", *(report.step for report in reports)]]

  def add(title, text):
    rows.append([title, *map(text, reports)])

  add("arguments, GB", lambda r: f"{r.argument_bytes / 1e9:.2f}")
  add("temporary, GB", lambda r: f"{r.temporary_bytes / 1e9:.2f}")
  add("TFLOP", lambda r: f"{r.flops / 1e12:.2f}")
  add("GB accessed", lambda r: f"{r.accessed_bytes / 1e9:.1f}")
  if kind in CHIPS:
    (size, bandwidth), rate = CHIPS[kind], PEAK_TERA_FLOPS[kind]
    add(
      f"share of {size} GB",
      lambda r: f"{(r.argument_bytes + r.temporary_bytes) / size / 1e9:.2f}",
    )
    add("compute, ms", lambda r: f"{r.flops / rate / 1e9:.1f}")
    add("memory, ms", lambda r: f"{r.accessed_bytes / bandwidth / 1e6:.1f}")
  for exchange in sorted({key for r in reports for key in r.collectives}):
    add(
      f"{' '.join(exchange)}, MB",
      lambda r, key=exchange: f"{r.collectives.get(key, 0) / 1e6:.2f}",
    )
  return "\n".join(align(rows, 1))


def _parser():
  parser = make_parser("compile_ahead", __doc__, TOOL)
  parser.add_argument(
    "--topology",
    default="v5e:4x4",
    help="compile for this kind of TPU and grid of chips; default %(default)s",
  )
  parser.add_argument(
    "--images_per_chip",
    type=int,
    default=8,
    help="compute this many images per chip and step; default %(default)s",
  )
  flags.add_config(parser)
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  options = _parser().parse_args(arguments)
  show_messages()
  jax.config.update("jax_platforms", "cpu")  # JAX must not search for a TPU.
  config, topology = flags.read_config(options), options.topology
  images_per_chip = max(options.images_per_chip, 1)
  mesh = tpu_mesh(topology)
  backbone = read_backbone(config)
  kind = mesh.devices.flat[0].device_kind
  print(
    f"{topology}: {mesh.size} x {kind}, {images_per_chip} images per chip;"
    " all numbers are for one chip"
  )
  reports = list(compile_steps(config, backbone, mesh, images_per_chip))
  print(table(reports, kind))


if __name__ == "__main__":
  main()
