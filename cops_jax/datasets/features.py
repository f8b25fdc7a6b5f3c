"""What every example of every data set holds."""

import numpy as np
import tensorflow_datasets as tfds


def example_features() -> tfds.features.FeaturesDict:
  """TFDS features; images and masks keep their files' bytes and format."""
  features = tfds.features
  return features.FeaturesDict(
    {
      "image": features.Image(shape=(None, None, None)),
      "mask": features.Image(shape=(None, None, None)),
      "has_mask": np.bool_,
      "label": features.ClassLabel(names=["normal", "anomaly"]),
      "category": features.Text(),
      "anomaly_kind": features.Text(),
      "dataset": features.Text(),
      "path": features.Text(),
      "id": features.Text(),
    }
  )
