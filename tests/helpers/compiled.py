"""Compiler settings of the tests; see conftest."""

import os

# Two equivalent programs agree in the last digits only if XLA optimizes both.
# `make numbers` compares them with optimization.
AS_FOR_USERS = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "0"
