"""UniADet's published recipe: trained on VisA, for all other data sets.

  cops train --config=uniadet_visa --workdir=runs/u_visa
  cops evaluate --workdir=runs/u_visa

The backbone is DINOv2 with registers, which is downloaded once;
--config=uniadet_visa:clip and --config=uniadet_visa:dinov3 use CLIP and DINOv3.
Accept the licence of DINOv3 on the Hugging Face hub before you use it.

Published image AUROC and pixel AP on MVTec AD in percent: 93.5 and 50.9; with
CLIP 92.4 and 42.8; with DINOv3 94.0 and 52.7. A reproduction with CLIP without
its projection measured 90.0 to 91.4 and 43.3 to 44.2. The time is unknown,
because this recipe has not been run with the real data yet.
"""

from cops_jax.config import default

# Weights and side of images by kind of backbone, the recipe's argument.
BACKBONES = {
  "clip": ("openai/clip-vit-large-patch14-336", 518),
  "dinov2": ("facebook/dinov2-with-registers-large", 518),
  "dinov3": ("facebook/dinov3-vitl16-pretrain-lvd1689m", 512),
}


def get_config(backbone="dinov2"):
  """Returns a config that scores five layers of a backbone.

  Args:
    backbone: a key of `BACKBONES`.
  """
  config = default()
  config.method = "uniadet"
  weights, image_size = BACKBONES[backbone]
  config.backbone.kind = backbone
  config.backbone.weights = weights
  config.backbone.clip_projection = True

  config.model.image_size_pixels = image_size
  config.model.feature_layers = (12, 15, 18, 21, 24)
  config.model.num_value_layers = 0
  config.model.temperature = 0.07

  config.train.dataset = "visa"
  config.train.augmentation = "class_aware"
  config.train.num_epochs = 15
  config.train.batch_size = 8
  config.train.learning_rate = 1e-3
  config.train.b1 = 0.5
  config.train.b2 = 0.999

  config.evaluation.datasets = ("mvtec_ad",)
  config.evaluation.beta = 0.5
  config.evaluation.blur_sigma_pixels = 4.0
  return config
