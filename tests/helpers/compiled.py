"""How the tests' programs are compiled, see conftest."""

import os

# Two programs that do the same have the same last digits only if XLA optimizes
# them; `make numbers` compares them then.
AS_FOR_USERS = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "0"
