"""Kept for code written for earlier versions: see `cops_jax.runtime.mesh`."""

from cops_jax.runtime.mesh import make_mesh, replicate, shard_batch

__all__ = ["make_mesh", "replicate", "shard_batch"]
