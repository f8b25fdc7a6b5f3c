"""The result of a detector on one image."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from cops_jax import thresholds
from cops_jax.errors import InputError
from cops_jax.images import AnyImage, drawing, read
from cops_jax.images.tiles import WHOLE
from cops_jax.thresholds import Thresholds
from cops_jax.typing import Float

if TYPE_CHECKING:
  from PIL import Image

PICTURE_SIDE = 4096  # Enough for a photograph of 12 megapixels.


@dataclasses.dataclass(frozen=True)
class Detection:
  """The result of a detector on one image.

  Attributes:
    image_score: score of the image, in [0, 1].
    anomaly_map: anomaly map, (h, w), in [0, 1], at the size of the upright
      image.
    thresholds: thresholds of the verdict and the regions, or None.
    grid: rows and columns of the tiles; (1, 1) without tiles.
    notes: assumptions made when the image was read.
  """

  image_score: float
  anomaly_map: Float[np.ndarray, "h w"]
  thresholds: Thresholds | None = None
  grid: tuple[int, int] = WHOLE
  notes: tuple[str, ...] = ()

  @property
  def is_anomaly(self) -> bool | None:
    """True if the score reaches its threshold; None without thresholds."""
    if self.thresholds is None:
      return None
    return self.image_score >= self.thresholds.image

  @property
  def verdict(self) -> str | None:
    """The word "anomaly" or "normal"; None without thresholds."""
    return {True: "anomaly", False: "normal", None: None}[self.is_anomaly]

  @property
  def boxes(self) -> list[tuple[int, int, int, int]] | None:
    """Boxes around the regions at or above the pixel threshold, largest first.

    Each is (left, top, right, bottom) in pixels; right and bottom are
    exclusive. None without thresholds.
    """
    if self.thresholds is None:
      return None
    return thresholds.find_boxes(self.anomaly_map, self.thresholds.pixel)

  def picture(self, image: AnyImage, side: int = PICTURE_SIDE) -> Image.Image:
    """Returns the image next to its anomaly map, with a caption.

    The map is drawn in colours over a copy of the image. The lightest colour
    means twice the pixel threshold, and regions that reach the threshold are
    outlined. Without thresholds the lightest colour means 1, and there are no
    outlines. The caption shows the verdict, the score and the threshold.

    Args:
      image: the scored image, in any form that `images.read` accepts.
      side: longest side of each half in pixels; larger images are reduced.

    Returns:
      The picture, ready to show or save.

    Raises:
      InputError: if the image cannot be read, or its size differs from the
        map's.
    """
    upright = read(image)
    if upright.size != self.anomaly_map.shape[::-1]:
      raise InputError(
        "the image has {} x {} pixels, but".format(*upright.size)
        + " its anomaly map has {1} x {0}: pass the image that was"
        " scored".format(*self.anomaly_map.shape)
      )
    pixel, words = None, [f"score {self.image_score:.3f}"]
    if self.thresholds:
      pixel, threshold = self.thresholds.pixel, self.thresholds.image
      words = [self.verdict, *words, f"threshold {threshold:.3f}"]
    pair = drawing.pair(upright.pixels, self.anomaly_map, pixel, side)
    return drawing.caption(pair, words, bool(self.is_anomaly))
