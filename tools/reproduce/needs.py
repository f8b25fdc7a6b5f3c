"""What a table takes: data sets, disk, memory of a device, and time."""

from __future__ import annotations

import dataclasses
import datetime
import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
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
from cops_jax.runtime.mesh import (
  batch_sharding,
  default_batch_size,
  make_mesh,
)
from cops_jax.tables import align
from cops_jax.weights import PretrainedCLIP, build_model
from tools.compile_ahead import (
  CACHED_TRAINING,
  EVALUATION,
  TRAINING,
  compile_steps,
)
from tools.reproduce.plan import is_trained, needed_datasets

PREPARED = "prepared"


@dataclasses.dataclass(frozen=True)
class Data:
  """A data set, before anything is done with it.

  Attributes:
    num_images: of the test split, which is trained on too.
    num_bytes: that preparing it writes; 0 if it is prepared or if that is not
      known, as it is downloaded.
    state: in words; "" if it is missing.
  """

  num_images: int
  num_bytes: int
  state: str


def inspect(
  names: Sequence[str], data_dir: str | None, manual_dir: str | None
) -> dict[str, Data]:
  """The state of published data sets, by name.

  Args:
    names: of the data sets.
    data_dir, manual_dir: see `preparation.prepare`.

  Raises:
    InputError: a name is not one of the thirteen, or original files are there
      and not as expected.
  """
  if manual_dir:
    require_local(manual_dir, "the folder of original files, --manual_dir,")
  found = {}
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
      number = sum(record.split == "test" for record in listing.images)
      size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
      found[name] = Data(number, size, "to be prepared")
    else:
      state = "to be downloaded and prepared" if row.archive else ""
      found[name] = Data(row.num_test_images or 0, 0, state)
  return found


def require_all(found: Mapping[str, Data]) -> None:
  """Raises InputError, with where to get them, if data sets are missing."""
  missing = [name for name, data in found.items() if not data.state]
  if not missing:
    return
  rows = [
    (name, SPECIFICATIONS[name].homepage, SPECIFICATIONS[name].layout)
    for name in missing
  ]
  table = "\n".join(align([("name", "where to get it", "files"), *rows], 3))
  raise InputError(
    f"{len(missing)} of {len(found)} data sets are missing. Unpack each as the"
    " folder of its name in --manual_dir, as `cops datasets list` says; or"
    f" evaluate others, with --datasets=NAMES\n{table}"
  )


def describe(
  configs: Mapping[str, Any],
  runs: Sequence[tuple[str, int]],
  finished: Collection[tuple[str, int]],
  found: Mapping[str, Data],
  clip: PretrainedCLIP,
  *,
  is_begun: bool,
) -> str:
  """Disk, memory and time of all runs that are not finished, as text.

  Args:
    configs: by recipe.
    runs: recipes and seeds.
    finished: those of them that are.
    found: see `inspect`.
    clip: of all configs.
    is_begun: whether a run is: what fits memory is known then, and not found
      out again.

  Raises:
    InputError: the disk, or a device's memory, is too small.
  """
  to_do = [run for run in runs if run not in finished]
  any_config = next(iter(configs.values()))
  lines = [("data", _describe_data(needed_datasets(configs), found))]
  recipes = ", ".join(f"{name} ({seed})" for name, seed in runs)
  lines.append(
    ("runs", f"{len(runs)}, {len(runs) - len(to_do)} finished: {recipes}")
  )
  if to_do:
    used = {name: configs[name] for name, _ in to_do}
    lines.append(("disk", _describe_disk(used, found, clip, any_config)))
    if not is_begun:
      lines.append(("memory", _describe_memory(used, clip)))
    lines.append(("time", _describe_time(configs, to_do, found, clip)))
  return "\n".join(align(lines, 2))


def _describe_data(names, found):
  number = sum(found[name].num_images for name in names)
  states = [found[name].state for name in names]
  counts = ", ".join(
    f"{states.count(state)} {state}" for state in dict.fromkeys(states)
  )
  return f"{len(names)} sets, {number:,} images: {counts}"


def _caches(configs, found):
  """Images of each cache of features, by all that tells caches apart."""
  caches = {}
  for config in configs.values():
    model, dtype = config.model, config.feature_cache.dtype
    if dtype == "none":
      continue
    uses = [(name, 0) for name in config.evaluation.datasets]
    if is_trained(config.method):
      # In float32 the number of images at a time is part of a cache's key.
      batch_size = config.train.batch_size if dtype == "float32" else 0
      uses.append((config.train.dataset, batch_size))
    for name, batch_size in uses:
      key = (
        *(name, batch_size, dtype, model.image_size_pixels),
        *(model.feature_layers, model.num_value_layers),
      )
      caches[key] = (config, found[name].num_images)
  return list(caches.values())


def _num_feature_bytes(config, clip):
  model = config.model
  side = model.image_size_pixels // clip.config.vision_config.patch_size
  shape = (len(model.feature_layers), side**2, clip.config.projection_dim)
  dtype = config.feature_cache.dtype
  return FeatureCache(features_folder(config), dtype, shape, 1).num_bytes


def _describe_disk(configs, found, clip, config):
  prepared = sum(data.num_bytes for data in found.values())
  features = sum(
    number * _num_feature_bytes(config, clip)
    for config, number in _caches(configs, found)
  )
  folder = place = features_folder(config)
  text = (
    f"{gigabytes(prepared)} of prepared data and {gigabytes(features)} of"
    f" features in {folder}"
  )
  there = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
  while not place.exists():
    place = place.parent
  free = shutil.disk_usage(place).free
  text += f", {gigabytes(there)} of them there, {gigabytes(free)} free"
  if prepared + features - there > free:
    raise InputError(
      f"the disk is too small: {text}. Set --config.data_dir or"
      " --config.features_dir to another place, or"
      " --config.feature_cache.dtype=none, which computes features in every"
      " step"
    )
  return text


def _describe_memory(configs, clip):
  """The compiler's count; these programs are kept and not compiled again."""
  mesh = make_mesh()
  needed = 4 * sum(leaf.size for leaf in jax.tree.leaves(clip.params))
  what = "CLIP alone"
  # A method's recipes differ little; every program takes a while to compile.
  for config in {config.method: config for config in configs.values()}.values():
    if not is_trained(config.method):
      continue
    is_cached = config.feature_cache.dtype != "none"
    images = {
      CACHED_TRAINING if is_cached else TRAINING: config.train.batch_size,
      EVALUATION: default_batch_size(mesh),
    }
    for step, number in images.items():
      number = -(-number // mesh.size)
      (report,) = compile_steps(config, clip, mesh, number, [step])
      size = report.argument_bytes + report.temporary_bytes
      if size > needed:
        needed = size
        what = f"{step} by {config.method}, {number} images at a time"
  statistics = mesh.devices.flat[0].memory_stats() or {}
  limit = statistics.get("bytes_limit", _host_memory() // mesh.size)
  text = (
    f"{gigabytes(needed)} of {gigabytes(limit)} on each of {mesh.size}"
    f" devices ({what})"
  )
  if needed > limit:
    raise InputError(
      f"a device's memory is too small: {text}. Set"
      " --config.clip.split_over_devices=True where there are several devices"
    )
  return text


def _host_memory():
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _describe_time(configs, to_do, found, clip):
  seconds = tera_flops = 0.0
  rates = {}
  for dtype, flops in _flops(configs, to_do, found, clip):
    if dtype not in rates:
      rates[dtype] = measure_rate(dtype)
    seconds += flops / rates[dtype]
    tera_flops += flops / 1e12
  measured = ", ".join(
    f"{rate / 1e12:.3g} TFLOP/s in {dtype}" for dtype, rate in rates.items()
  )
  duration = datetime.timedelta(seconds=round(seconds))
  return (
    f"at least {duration}: {tera_flops:,.3g} TFLOP, where products of matrices"
    f" reach {measured}; an earlier call's work is not done again"
  )


def _flops(configs, to_do, found, clip):
  """Types and operations: of features once, of prompts in every run."""
  used = {name: configs[name] for name, _ in to_do}
  for config, number in _caches(used, found):
    yield config.clip.dtype, number * vision_flops(config, clip.config)
  for name, _ in to_do:
    config = configs[name]
    model = build_model(config, clip)
    passes = {
      False: sum(found[n].num_images for n in config.evaluation.datasets)
    }
    if is_trained(config.method):
      passes[True] = (
        config.train.num_epochs * found[config.train.dataset].num_images
      )
    for is_training, number in passes.items():
      tokens = model.num_prompt_tokens(is_training=is_training)
      flops = prompt_flops(tokens, clip.config, is_training=is_training)
      if config.feature_cache.dtype == "none":
        flops += vision_flops(config, clip.config)
      yield config.clip.dtype, number * flops


def measure_rate(dtype: str) -> float:
  """FLOP a second of all devices at products as in ViT-L's MLP.

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

  multiply(x, up, down).block_until_ready()
  seconds = []
  for _ in range(3):
    start = time.perf_counter()
    multiply(x, up, down).block_until_ready()
    seconds.append(time.perf_counter() - start)
  flops = 4 * shape[0] * tokens * width * hidden * repeats
  return flops / float(np.min(seconds))
