"""The fields of a config, each with its default, comment, role and limits."""

from __future__ import annotations

import math

from cops_jax.field_types import Field, Role

_TRAINING, _RESULTS = Role.TRAINING, Role.RESULTS
_BOTH, _NOTHING = _TRAINING | _RESULTS, Role(0)

SECTIONS = {"model": _BOTH, "train": _TRAINING, "evaluation": _RESULTS}

FIELDS = {
  "method": Field(
    "cops",
    "Method of training and scoring: a module of cops_jax.methods.",
    _BOTH,
  ),
  "seed": Field(
    0,
    "Seed of the initial parameters, the order of images, noise and samples.",
    _BOTH,
    low=0,
    high=2**32 - 1,
  ),
  "data_dir": Field(
    "",
    "Folder of prepared data sets; an empty string means"
    " ~/tensorflow_datasets.",
    is_local=True,
  ),
  "manual_dir": Field(
    "",
    "Folder of original files, with a subfolder for each data set; an empty"
    " string means downloads/manual in data_dir.",
    is_local=True,
  ),
  "features_dir": Field(
    "",
    "Folder of the feature cache, which runs and evaluations share; an empty"
    " string means features in data_dir.",
    is_local=True,
  ),
  "compilation_cache": Field(
    True,
    "Stores compiled programs in the user's cache folder for the next start.",
    is_local=True,
  ),
  "feature_cache.dtype": Field(
    "none",
    "Type of the vision features that are stored on disk, so that the vision"
    ' tower computes them once for all runs and evaluations: "float32",'
    ' "bfloat16" (half the size; exact if backbone.dtype is bfloat16) or'
    ' "float16". "none" stores nothing and computes them in every step.',
    _BOTH,  # Rounded features change the last digits.
    choices=("none", "float32", "bfloat16", "float16"),
  ),
  "input.num_workers": Field(
    0,
    "Number of processes that decode images, at most four per core. 0 decodes"
    " in threads of the main process, which is enough for a few cores.",
    low=0,
    is_local=True,
  ),
  "input.unreadable_files": Field(
    "error",
    'Response to an image or mask that cannot be decoded: "error" ends the'
    ' run; "skip" warns, lists the file in the results and skips the example.',
    _RESULTS,
    choices=("error", "skip"),
  ),
  "input.compare_bytes": Field(
    False,
    "Compares all bytes of a folder's files, instead of sizes and times,"
    " before resuming a run or reusing a result.",
    _TRAINING,
  ),
  "input.max_image_megapixels": Field(
    80.0,
    "Largest image that is decoded, because some small files need gigabytes.",
    low=1e-6,
    below=math.inf,
  ),
  "input.bits_per_channel": Field(
    16,
    "Number of bits of a channel that the camera uses, such as 12, in images"
    " of more than 8 bits that do not declare it (TIFF: BitsPerSample; PNG:"
    " sBIT). Images of 32-bit integers need a value other than the default.",
    _BOTH,
    low=8,
    high=32,
  ),
  "backbone.kind": Field(
    "clip",
    "Frozen vision model that computes features: CLIP, DINOv2 with registers"
    " or DINOv3. Methods with texts need CLIP.",
    _BOTH,
    choices=("clip", "dinov2", "dinov3"),
  ),
  "backbone.weights": Field(
    "openai/clip-vit-large-patch14-336",
    "Weights of the backbone: a Hugging Face name or folder; for CLIP also a"
    ' .pt file from OpenAI, a state dict with OpenAI\'s names, or "demo" for'
    " the toy CLIP in this package.",
    is_local=True,
  ),
  "backbone.revision": Field(
    "",
    "Branch, tag or commit on the Hugging Face hub; an empty string means the"
    " newest.",
    is_local=True,
  ),
  "backbone.sha256": Field(
    "",
    "Required SHA-256 of the file with the weights; an empty string accepts"
    " any file.",
    is_local=True,
  ),
  "backbone.dtype": Field(
    "auto",
    'Type in which the backbone computes: "float32", "bfloat16", or "auto",'
    " which selects bfloat16 on GPU and TPU, and float32 on CPU, where it is"
    " faster. A run keeps the type that it began with. Everything else is"
    " computed in float32.",
    _BOTH,
    choices=("auto", "float32", "bfloat16"),
  ),
  "backbone.attention": Field(
    "auto",
    'Implementation of the vision tower\'s attention: "xla", "heads", "cudnn"'
    ' (CUDA), "splash" (TPU), or "auto", which selects one for the platform.',
    choices=("auto", "xla", "heads", "cudnn", "splash"),
  ),
  "backbone.split_over_devices": Field(
    False,
    "Splits the backbone's parameters over the devices. This saves memory, but"
    " each step exchanges them.",
  ),
  "backbone.clip_projection": Field(
    True,
    "Projects CLIP's tokens to the joint width of images and texts. Other"
    " backbones ignore this field.",
    _BOTH,
  ),
  "model.image_size_pixels": Field(
    518, "Side that images are resized to; a multiple of the patch size.", low=1
  ),
  "model.feature_layers": Field(
    (24,), "Vision layers whose patches are scored, counted from 1."
  ),
  "model.num_value_layers": Field(
    24,
    "Number of CLIP's last vision layers with a value path; 0 disables it.",
    low=0,
  ),
  "model.smoothing_window_patches": Field(
    5, "Side of the window that averages patches; odd. 1 disables it.", low=1
  ),
  "model.num_heads": Field(
    12,
    "Number of the prototype extractor's heads; divides CLIP's joint width.",
    low=1,
  ),
  "model.num_context_words": Field(
    6,
    "Number of learned context words. A prompt is: start, context words, state"
    ' words, category words, ".", end.',
    low=0,
  ),
  "model.num_state_words": Field(
    6,
    "Number of learned words, and of prototypes, of each state. 0 disables"
    " prototypes with their losses and distances.",
    low=0,
  ),
  "model.num_category_words": Field(
    2,
    "Number of words that the VAE samples. 0 disables the VAE with its losses"
    ' and samples; the prompt then ends in "object.".',
    low=0,
  ),
  "model.deep_prompt_length": Field(
    4, "Number of tokens that deep prompts replace in a layer.", low=0
  ),
  "model.deep_prompt_depth": Field(
    8, "Number of text layers with deep prompts; 0 disables them.", low=0
  ),
  "model.prototype_injection": Field(
    "crossed",
    'Prototypes that a state\'s prompt contains: "crossed" uses the other'
    " state's, as in the authors' released code; \"matched\" uses its own, as"
    " in the paper.",
    choices=("crossed", "matched"),
  ),
  "model.deep_prompt_cast": Field(
    "float16",
    'Type that deep prompts and their gradients are rounded to: "float16", as'
    ' in AnomalyCLIP\'s released code, or "none".',
    choices=("float16", "none"),
  ),
  "model.texts": Field(
    "photos",
    'Hand-written texts of the prompt ensemble: a file, or "photos" or "demo"'
    " (in words that the demo's CLIP knows) from this package.",
  ),
  "model.normal_texts": Field(
    (), "Texts for normal images, in place of those in model.texts."
  ),
  "model.anomalous_texts": Field(
    (), "Texts for anomalous images, in place of those in model.texts."
  ),
  "model.object_name": Field("object", "Word for the object in model.texts."),
  "model.use_category_names": Field(
    False, "Replaces model.object_name by the category's name in evaluations."
  ),
  "model.temperature": Field(
    0.07,
    "Number that cosine similarities are divided by before the softmax.",
    low=1e-6,
    below=math.inf,
  ),
  "train.dataset": Field(
    "visa",
    "Auxiliary data set: a name that `cops datasets list` shows, or your own"
    " images: folder:PATH in MVTec's layout, or meta_json:PATH with a"
    " meta.json.",
  ),
  "train.split": Field(
    "test", "Split to train on; the test split has the anomalies."
  ),
  "train.num_epochs": Field(
    10,
    "Number of passes over the data. 0 writes a checkpoint of the untrained"
    " prompts.",
    low=0,
  ),
  "train.batch_size": Field(
    8,
    "Number of images in a step, over all devices. The last step of an epoch"
    " can have fewer.",
    low=1,
    high=2**16,
  ),
  "train.accumulate_steps": Field(
    1, "Number of steps whose mean gradient updates the parameters once.", low=1
  ),
  "train.augmentation": Field(
    "none",
    'Change of a random half of the images in each epoch: "class_aware" crops'
    " them or joins them with images of the same category in a mosaic;"
    ' "class_agnostic" crops them or joins them with images of any category;'
    ' "none" changes nothing.',
    choices=("none", "class_aware", "class_agnostic"),
  ),
  "train.learning_rate": Field(
    1e-3, "Adam's learning rate, which is constant.", low=0, below=math.inf
  ),
  "train.b1": Field(
    0.5, "Adam's decay rate of the mean of gradients.", low=0, below=1
  ),
  "train.b2": Field(
    0.999, "Adam's decay rate of the mean of squared gradients.", low=0, below=1
  ),
  "train.eps": Field(1e-8, "Adam's epsilon.", low=1e-30, below=1),
  "train.reconstruction": Field(
    "none",
    'Loss between image features and category biases: "none", "pairwise" (each'
    ' image with every bias, as in the released code) or "matched" (each image'
    " with its own).",
    choices=("none", "pairwise", "matched"),
  ),
  "train.log_every_steps": Field(
    20, "Number of steps between lines of metrics.", low=1, role=_NOTHING
  ),
  "train.checkpoint_every_steps": Field(
    500, "Number of steps between checkpoints.", low=1, role=_NOTHING
  ),
  "train.evaluate_every_steps": Field(
    0,
    "Number of steps between evaluations; 0 disables them. An evaluation saves"
    " a checkpoint, uses the fields of the section evaluation, and adds the"
    " means to the metrics.",
    low=0,
    role=_NOTHING,
  ),
  "train.use_tensorboard": Field(
    False,
    "Also writes the metrics for TensorBoard; needs the extra [tensorboard].",
    role=_NOTHING,
  ),
  "train.num_kept_checkpoints": Field(
    3, "Number of newest checkpoints to keep.", low=1, role=_NOTHING
  ),
  "evaluation.datasets": Field(
    ("mvtec_ad",), "Data sets to score; see train.dataset.", role=_NOTHING
  ),
  "evaluation.split": Field("test", "Split of each data set to score."),
  "evaluation.batch_size": Field(
    0,
    "Number of images in a step, over all devices; 0 means 1 per CPU, 8 per"
    " GPU or TPU. No result depends on it.",
    low=0,
    high=2**16,
    role=_NOTHING,
  ),
  "evaluation.num_samples": Field(
    10, "Number of category codes that prompts are averaged over.", low=1
  ),
  "evaluation.distance_weighting": Field(
    True, "Weights a patch's probability by its distances to the prototypes."
  ),
  "evaluation.alpha": Field(
    0.26,
    "Share of the distance to normal prototypes in the weight of a patch.",
    low=0,
    high=1,
  ),
  "evaluation.beta": Field(
    0.9, "Share of the whole image's probability in its score.", low=0, high=1
  ),
  "evaluation.blur_sigma_pixels": Field(
    4.0,
    "Standard deviation of the Gaussian filter on the anomaly map; 0 disables"
    " it.",
    low=0,
    high=100,
  ),
  "evaluation.num_normal_images": Field(
    0,
    "Number of normal images of each category's training split that serve as"
    " reference images for its scored images; 0 disables the comparison.",
    low=0,
    high=2**16,
  ),
  "evaluation.memory_share": Field(
    0.5,
    "Share of the distance to reference images' patches in a patch's score.",
    low=0,
    high=1,
  ),
  "evaluation.tiles": Field(
    "",
    "Rows x columns of overlapping tiles, such as 2x3, to score in addition to"
    " each image, for small defects in large images; an empty string disables"
    " them. Maps and metrics keep the model's size.",
  ),
  "evaluation.pixel_metrics": Field(
    "binned",
    'Way of counting pixels: "binned", which needs constant memory, or "exact",'
    " which keeps every pixel and suits small data sets.",
    choices=("binned", "exact"),
  ),
  "evaluation.num_pictures": Field(
    4,
    "Number of pictures of each kind (best, worst, random) in a report.",
    low=0,
  ),
}
