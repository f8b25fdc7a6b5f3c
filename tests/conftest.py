"""Hostile defaults: eight devices, no rank promotion, every shape checked."""

import os

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
# Parity is claimed in full float32, whatever the hardware's default.
jax.config.update("jax_default_matmul_precision", "highest")
install_import_hook("cops_jax", "beartype.beartype")
