"""Array annotations such as `Float[Array, "b n d"]`.

They are jaxtyping's where it is installed, as it is for the tests, which check
every annotated shape. The library itself does not need it: its annotations are
never evaluated outside the tests.

Dimension letters, the same everywhere: `b` batch, `h w` pixels, `gh gw` patch
grid, `n` patches, `f` feature layers, `l` text length, `c` tower width, `d`
joint embedding width, `k` prototypes, `z` samples, `s` states (normal,
anomaly).
"""

try:
  from jaxtyping import Array, Bool, Float, Integer
except ImportError:
  Array = Bool = Float = Integer = None

__all__ = ["Array", "Bool", "Float", "Integer"]
