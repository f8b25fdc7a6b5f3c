"""The config that the others override; train.py's fields.

`FIELDS` in cops_jax/config.py has every field, once: its default, what it says,
what it may be and what depends on it. The defaults are the values that both
published recipes share.
"""

from cops_jax.config import default as get_config

__all__ = ["get_config"]
