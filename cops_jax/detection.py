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

# As a photograph of 12 megapixels has.
PICTURE_SIDE = 4096


@dataclasses.dataclass(frozen=True)
class Detection:
  """The result of one image.

  Attributes:
    image_score: anomaly score of the image, in [0, 1].
    anomaly_map: anomaly score of each pixel, in [0, 1], at the upright image's
      size.
    thresholds: used for verdicts; None without any.
    grid: rows and columns of the tiles; (1, 1) for the whole alone.
    notes: what was guessed when the image was read.
  """

  image_score: float
  anomaly_map: Float[np.ndarray, "h w"]
  thresholds: Thresholds | None = None
  grid: tuple[int, int] = WHOLE
  notes: tuple[str, ...] = ()

  @property
  def is_anomaly(self) -> bool | None:
    """Whether the score reaches the threshold; None without a threshold."""
    if self.thresholds is None:
      return None
    return self.image_score >= self.thresholds.image

  @property
  def verdict(self) -> str | None:
    """The word "anomaly" or "normal"; None without a threshold."""
    return {True: "anomaly", False: "normal", None: None}[self.is_anomaly]

  @property
  def boxes(self) -> list[tuple[int, int, int, int]] | None:
    """Regions at or above the pixel threshold, largest first.

    Each is (left, top, right, bottom) in pixels, the last two exclusive; None
    without a threshold.
    """
    if self.thresholds is None:
      return None
    return thresholds.find_boxes(self.anomaly_map, self.thresholds.pixel)

  def picture(self, image: AnyImage, side: int = PICTURE_SIDE) -> Image.Image:
    """Returns the image beside its map, and score and verdict below them.

    The map lies in colours over the image. The lightest colour stands for twice
    the pixel threshold, and lines surround the regions that reach it. Without
    thresholds it stands for 1, and there are no lines.

    Args:
      image: the one that was scored, see `images.read`.
      side: longest side of each of the two, in pixels; larger ones are reduced.

    Raises:
      InputError: the image cannot be read, or is not of the map's size.
    """
    upright = read(image)
    if upright.size != self.anomaly_map.shape[::-1]:
      raise InputError(
        "the image has {} x {} pixels".format(*upright.size)
        + " and its anomaly map {1} x {0}".format(*self.anomaly_map.shape)
      )
    pixel, words = None, [f"score {self.image_score:.3f}"]
    if self.thresholds:
      pixel, threshold = self.thresholds.pixel, self.thresholds.image
      words = [self.verdict, *words, f"threshold {threshold:.3f}"]
    pair = drawing.pair(upright.pixels, self.anomaly_map, pixel, side)
    return drawing.caption(pair, words, bool(self.is_anomaly))
