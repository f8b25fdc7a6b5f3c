"""What the papers' tables take: data sets, disk, memory and time."""

from __future__ import annotations

import dataclasses
import datetime
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cops_jax.clip.flops import prompt_flops, vision_flops
from cops_jax.datasets import SPECIFICATIONS, preparation
from cops_jax.errors import InputError
from cops_jax.inputs.feature_cache import FeatureCache
from cops_jax.inputs.features import features_folder
from cops_jax.paths import require_local
from cops_jax.progress import gigabytes
from cops_jax.runtime.mesh import batch_sharding, default_batch_size, make_mesh
from cops_jax.tables import align
from cops_jax.weights import PretrainedCLIP, build_model
from tools import compile_ahead
from tools.runs import is_trained

PREPARED = "prepared"


@dataclasses.dataclass(frozen=True)
class Data:
  """A data set, before anything is done with it.

  Attributes:
    num_images: of the test split, which is trained on too.
    num_bytes: that preparing it writes; 0 if it is prepared or if that is not
      known, as it is downloaded.
    state: in words.
  """

  num_images: int
  num_bytes: int
  state: str


def find_data(
  names: Sequence[str], data_dir: str | None, manual_dir: str | None
) -> dict[str, Data]:
  """Returns the state of published data sets, by name.

  Args:
    names: of the data sets.
    data_dir, manual_dir: see `preparation.prepare`.

  Raises:
    InputError: a name is not one of the thirteen, data sets are missing, or
      original files are not as expected.
  """
  if manual_dir:
    require_local(manual_dir, "the folder of original files, --manual_dir,")
  found, missing = {}, []
  for name in names:
    if name not in SPECIFICATIONS:
      raise InputError(
        f"{name!r} is not a data set of the tables; these are"
        f" {', '.join(SPECIFICATIONS)}"
      )
    row = SPECIFICATIONS[name]
    builder = preparation.make_builder(name, data_dir)
    if builder.data_path.exists():
      number = builder.info.splits["test"].num_examples
      found[name] = Data(number, 0, PREPARED)
    elif root := builder.find_original_files(manual_dir):
      listing = row.read(root, row.categories)
      number = sum(image.split == "test" for image in listing.images)
      found[name] = Data(number, _num_bytes(root), "to be prepared")
    elif row.archive:
      number = row.num_test_images or 0
      found[name] = Data(number, 0, "to be downloaded and prepared")
    else:
      missing.append((name, row.homepage, row.layout))
  if missing:
    table = align([("name", "where to get it", "files"), *missing], 3)
    raise InputError(
      f"{len(missing)} of {len(names)} data sets are missing. Unpack each as"
      " the folder of its name in --manual_dir, as `cops datasets list` says;"
      " or evaluate others, with --datasets=NAMES\n" + "\n".join(table)
    )
  return found


def _num_bytes(folder):
  return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def describe(
  configs: Mapping[str, Any],
  runs: Sequence[tuple[str, int]],
  found: Mapping[str, Data],
  clip: PretrainedCLIP,
) -> str:
  """Returns disk, memory and time of all runs, as text.

  Args:
    configs: by recipe.
    runs: recipes and seeds.
    found: see `find_data`.
    clip: of all configs.

  Raises:
    InputError: the disk, or a device's memory, is too small.
  """
  states = [data.state for data in found.values()]
  counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
  number = sum(data.num_images for data in found.values())
  recipes = ", ".join(f"{name} ({seed})" for name, seed in runs)
  lines = [
    ("data", f"{len(found)} sets, {number:,} images: {', '.join(counts)}"),
    ("runs", f"{len(runs)}: {recipes}"),
    ("disk", _describe_disk(configs, found, clip)),
    ("memory", _describe_memory(configs, clip)),
    ("time", _describe_time(configs, runs, found, clip)),
  ]
  return "\n".join(align(lines, 2))


def _caches(configs, found):
  """Returns config and number of images of each cache of features."""
  caches = {}
  for config in configs.values():
    model, dtype = config.model, config.feature_cache.dtype
    uses = [(name, 0) for name in config.evaluation.datasets]
    if is_trained(config):
      # In float32 the number of images at a time is part of a cache's key.
      batch_size = config.train.batch_size if dtype == "float32" else 0
      uses.append((config.train.dataset, batch_size))
    for name, batch_size in uses if dtype != "none" else ():
      key = (
        *(name, batch_size, dtype, model.image_size_pixels),
        *(model.feature_layers, model.num_value_layers),
      )
      caches[key] = config, found[name].num_images
  return list(caches.values())


def _describe_disk(configs, found, clip):
  needed = sum(data.num_bytes for data in found.values())
  text = f"{gigabytes(needed)} of prepared data"
  folder = place = features_folder(next(iter(configs.values())))
  for config, number in _caches(configs, found):
    size = config.model.image_size_pixels
    num_patches = (size // clip.config.vision_config.patch_size) ** 2
    num_layers = len(config.model.feature_layers)
    shape = num_layers, num_patches, clip.config.projection_dim
    dtype = config.feature_cache.dtype
    needed += number * FeatureCache(folder, dtype, shape, 1).num_bytes
  there = _num_bytes(place)
  while not place.exists():
    place = place.parent
  free = shutil.disk_usage(place).free
  text += (
    f", {gigabytes(needed)} with features in {folder}, {gigabytes(there)} of"
    f" them there, {gigabytes(free)} free"
  )
  if needed - there > free:
    raise InputError(
      f"the disk is too small: {text}. Set --config.data_dir or"
      " --config.features_dir to another place, or"
      " --config.feature_cache.dtype=none, which computes features in every"
      " step"
    )
  return text


def _describe_memory(configs, clip):
  """Compiles the steps; the compiled programs are kept for the runs."""
  mesh = make_mesh()
  sizes = {
    "CLIP alone": 4 * sum(leaf.size for leaf in jax.tree.leaves(clip.params))
  }
  # A method's recipes differ little, and compiling takes a while.
  for config in {config.method: config for config in configs.values()}.values():
    if not is_trained(config):
      continue
    is_cached = config.feature_cache.dtype != "none"
    training = (
      compile_ahead.CACHED_TRAINING if is_cached else compile_ahead.TRAINING
    )
    for step, number in (
      (training, config.train.batch_size),
      (compile_ahead.EVALUATION, default_batch_size(mesh)),
    ):
      number = -(-number // mesh.size)
      (report,) = compile_ahead.compile_steps(
        config, clip, mesh, number, [step]
      )
      name = f"{step} by {config.method}, {number} images at a time"
      sizes[name] = report.argument_bytes + report.temporary_bytes
  largest = max(sizes, key=sizes.get)
  host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  statistics = mesh.devices.flat[0].memory_stats() or {}
  limit = statistics.get("bytes_limit", host // mesh.size)
  text = (
    f"{gigabytes(sizes[largest])} of {gigabytes(limit)} on each of {mesh.size}"
    f" devices ({largest})"
  )
  if sizes[largest] > limit:
    raise InputError(
      f"a device's memory is too small: {text}. Set"
      " --config.clip.split_over_devices=True where there are several devices"
    )
  return text


def _describe_time(configs, runs, found, clip):
  flops = {}  # By type.
  for config, number in _caches(configs, found):
    dtype = config.clip.dtype
    work = number * vision_flops(config, clip.config)
    flops[dtype] = flops.get(dtype, 0) + work
  for name, _ in runs:
    config = configs[name]
    model, names = build_model(config, clip), config.evaluation.datasets
    passes = {False: sum(found[dataset].num_images for dataset in names)}
    if is_trained(config):
      number = found[config.train.dataset].num_images
      passes[True] = config.train.num_epochs * number
    for is_training, number in passes.items():
      tokens = model.num_prompt_tokens(is_training=is_training)
      work = prompt_flops(tokens, clip.config, is_training=is_training)
      if config.feature_cache.dtype == "none":
        work += vision_flops(config, clip.config)
      flops[config.clip.dtype] = flops.get(config.clip.dtype, 0) + number * work
  rates = {dtype: measure_rate(dtype) for dtype in flops}
  seconds = sum(flops[dtype] / rates[dtype] for dtype in flops)
  measured = ", ".join(
    f"{rate / 1e12:.3g} TFLOP/s in {dtype}" for dtype, rate in rates.items()
  )
  return (
    f"at least {datetime.timedelta(seconds=round(seconds))}:"
    f" {sum(flops.values()) / 1e12:,.3g} TFLOP, where products of matrices"
    f" reach {measured}; work of an earlier call is not done again"
  )


def measure_rate(dtype: str) -> float:
  """Returns FLOP a second of all devices at products as in ViT-L's MLP.

  Args:
    dtype: of the matrices.
  """
  mesh = make_mesh()
  tokens, width, hidden = 1370, 1024, 4096
  repeats = 1 if jax.default_backend() == "cpu" else 50
  shape = (default_batch_size(mesh), tokens, width)
  x = jax.device_put(jnp.ones(shape, dtype), batch_sharding(mesh))
  up = jnp.full((width, hidden), 1 / width, dtype)
  down = jnp.full((hidden, width), 1 / hidden, dtype)

  @jax.jit
  def multiply(x, up, down):
    return jax.lax.fori_loop(0, repeats, lambda _, y: (y @ up) @ down, x)

  seconds = []
  for _ in range(4):  # The first compiles.
    start = time.perf_counter()
    multiply(x, up, down).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 4 * np.prod(shape) * hidden * repeats / min(seconds)
