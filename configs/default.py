"""Every field, once. The values are those both published recipes share."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The configuration that the others override."""
  config = ml_collections.ConfigDict()

  # Seed of everything random: initial parameters, order, noise.
  config.seed = 0
  # Where TFDS keeps prepared data sets; "" for its own default,
  # ~/tensorflow_datasets.
  config.data_dir = ""
  # Where data sets' original files lie, each in a folder of its name; "" for
  # downloads/manual in data_dir.
  config.manual_dir = ""
  # Where vision features are cached, a folder for each data set and model; ""
  # for features in data_dir. Runs and evaluations share it.
  config.features_dir = ""

  config.input = inputs = ml_collections.ConfigDict()
  # Processes that decode images; 0 for threads of the main one, which is enough
  # for a few cores.
  inputs.num_workers = 0
  # What an image or mask that cannot be decoded does: "error" ends the run;
  # "skip" warns, lists the file in the results and leaves the example out.
  inputs.unreadable_files = "error"

  config.clip = clip = ml_collections.ConfigDict()
  # A Hugging Face name or folder, OpenAI's own .pt or a state dict in OpenAI's
  # names, or "demo" for the toy in this package.
  clip.weights = "openai/clip-vit-large-patch14-336"
  # Branch, tag or commit on the Hugging Face hub; "" for the newest.
  clip.revision = ""
  # SHA-256 that the file with the weights must have; "" accepts any.
  clip.sha256 = ""
  # Of CLIP's computation: "float32" or "bfloat16". The rest is float32.
  clip.dtype = "bfloat16"
  # Whether each device holds a part of CLIP's parameters instead of all: saves
  # memory, and costs their exchange in every step.
  clip.split_over_devices = False

  config.model = model = ml_collections.ConfigDict()
  # Side that images are resized to, in pixels; a multiple of the patch size.
  model.image_size_pixels = 518
  # Vision layers, counted from 1, whose patches are compared with the prompts.
  model.feature_layers = (24,)
  # Vision layers with a value path, counted from the last; 0 for none.
  model.num_value_layers = 24
  # Side of the neighbourhood average, in patches; odd. 1 for none.
  model.smoothing_window_patches = 5
  # Heads of the prototype extractor's attention; divides CLIP's joint width.
  model.num_heads = 12
  # A prompt is: start, context words, state words, category words, ".", end.
  # There are as many prototypes per state as state words. 0 state words: no
  # prototypes, their losses or distances. 0 category words: no VAE, its losses
  # or samples, and the prompt ends in "object." instead.
  model.num_context_words = 6
  model.num_state_words = 6
  model.num_category_words = 2
  # Tokens of the text tower that a layer replaces, and layers that do; 0 for
  # no deep prompts.
  model.deep_prompt_length = 4
  model.deep_prompt_depth = 8
  # Which prototypes a state's prompt gets: "crossed", the other state's, as in
  # the authors' released code; "matched", its own, as in the paper.
  model.prototype_injection = "crossed"
  # Cosines are divided by it before the softmax.
  model.temperature = 0.07

  config.train = train = ml_collections.ConfigDict()
  # The auxiliary data set; its test split has the anomalies. A name that
  # "python -m cops_jax.datasets list" shows, or your own images: folder:PATH in
  # MVTec's layout, meta_json:PATH with a meta.json.
  train.dataset = "visa"
  train.split = "test"
  # 0 writes a checkpoint of the untrained prompts.
  train.num_epochs = 10
  # Images in a step, over all devices. An epoch's last step may have less.
  train.batch_size = 8
  # Steps whose mean gradient makes one update of the parameters.
  train.accumulate_steps = 1
  # Adam's; constant.
  train.learning_rate = 1e-3
  train.b1 = 0.5
  train.b2 = 0.999
  train.eps = 1e-8
  # Loss between image features and category biases: "none", "pairwise" (every
  # image with every bias, as in the released code) or "matched".
  train.reconstruction = "none"
  # Type in which the vision features of each image are kept on disk, so that
  # the vision tower runs once for an image, in this run, in others and in their
  # evaluations: "float32", "bfloat16" (as exact where clip.dtype is bfloat16,
  # and half as large) or "float16". "none" runs it in every step.
  train.cache_features = "none"
  train.log_every_steps = 20
  train.checkpoint_every_steps = 500
  # Evaluates as the section below says, and writes the means into the metrics;
  # 0 for never.
  train.evaluate_every_steps = 0
  # Writes the metrics for TensorBoard too; needs the extra [tensorboard].
  train.use_tensorboard = False
  # Newest checkpoints that are kept.
  train.num_kept_checkpoints = 3

  config.evaluation = evaluation = ml_collections.ConfigDict()
  # As train.dataset.
  evaluation.datasets = ("mvtec_ad",)
  evaluation.split = "test"
  # Images in a step, over all devices. No result depends on it.
  evaluation.batch_size = 8
  # Category codes sampled for an image.
  evaluation.num_samples = 10
  # Whether a patch's probability is weighted by its distances to the
  # prototypes, if there are any.
  evaluation.distance_weighting = True
  # Share of the distance to normal prototypes in that weight.
  evaluation.alpha = 0.26
  # Share of the whole image's probability in its score.
  evaluation.beta = 0.9
  # How pixels are counted: "binned", in memory that does not grow, or "exact",
  # which keeps all of them: for small data.
  evaluation.pixel_metrics = "binned"
  # Images of each kind, best, worst and random, in a data set's report.
  evaluation.num_pictures = 4

  return config.lock()
