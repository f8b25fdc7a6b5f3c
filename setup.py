"""Adds the recipes in configs/ to the package; see pyproject.toml."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["cops_jax*"]), "cops_jax.configs"],
  package_dir={"cops_jax.configs": "configs"},
)
