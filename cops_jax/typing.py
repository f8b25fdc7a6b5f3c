"""jaxtyping's array annotations, such as `Float[Array, "b n d"]`.

The tests check every annotated shape.

Dimension letters are the same everywhere: `b` batch, `h w` pixels, `gh gw`
patch grid, `n` patches, `f` feature layers, `l` text length, `c` tower width,
`d` joint embedding width, `k` prototypes, `z` samples, `s` states (normal,
anomaly).
"""

from jaxtyping import Array, Bool, Float, Integer

__all__ = ["Array", "Bool", "Float", "Integer"]
