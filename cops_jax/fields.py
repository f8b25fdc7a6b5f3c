"""Every field of a config, once: default, comment, role and limits."""

from __future__ import annotations

import math

from cops_jax.field_types import Field, Role

_TRAINING, _RESULTS = Role.TRAINING, Role.RESULTS
_BOTH, _NOTHING = _TRAINING | _RESULTS, Role(0)

SECTIONS = {"model": _BOTH, "train": _TRAINING, "evaluation": _RESULTS}

FIELDS = {
  "method": Field(
    "cops",
    "How prompts are trained and images scored: a module of cops_jax.methods.",
    _BOTH,
  ),
  "seed": Field(
    0,
    "Seed of initial parameters, order of images, noise and samples.",
    _BOTH,
    low=0,
    high=2**32 - 1,
  ),
  "data_dir": Field(
    "",
    "Folder of TFDS's prepared data sets; an empty string stands for"
    " ~/tensorflow_datasets.",
    is_local=True,
  ),
  "manual_dir": Field(
    "",
    "Folder with a folder of original files for each data set; an empty string"
    " stands for downloads/manual in data_dir.",
    is_local=True,
  ),
  "features_dir": Field(
    "",
    "Folder of cached vision features, shared by runs and evaluations; an empty"
    " string stands for features in data_dir.",
    is_local=True,
  ),
  "compilation_cache": Field(
    True,
    "Keeps compiled programs in the user's cache folder, for the next start.",
    is_local=True,
  ),
  "feature_cache.dtype": Field(
    "none",
    "Type in which each image's vision features are kept on disk, so that the"
    ' vision tower computes them once for all runs and evaluations: "float32",'
    ' "bfloat16" (as exact if backbone.dtype is bfloat16, half the size) or'
    ' "float16". "none" computes them in every step.',
    _BOTH,  # Rounded features change the last digits.
    choices=("none", "float32", "bfloat16", "float16"),
  ),
  "input.num_workers": Field(
    0,
    "Processes that decode images. 0 decodes in threads of the main process,"
    " which is enough for a few cores. At most four times the cores.",
    low=0,
    is_local=True,
  ),
  "input.unreadable_files": Field(
    "error",
    'What happens if an image or mask cannot be decoded: "error" ends the run;'
    ' "skip" warns, lists the file in the results and skips the example.',
    _RESULTS,
    choices=("error", "skip"),
  ),
  "input.compare_bytes": Field(
    False,
    "Compares a folder's files by all their bytes instead of sizes and times"
    " before a run is resumed or a result used again.",
    _TRAINING,
  ),
  "input.max_image_megapixels": Field(
    80.0,
    "Larger images are not decoded, as some small files ask for gigabytes.",
    low=1e-6,
    below=math.inf,
  ),
  "input.bits_per_channel": Field(
    16,
    "Bits that a camera uses of a channel, such as 12, in images of more than 8"
    " bits that do not declare them (TIFF: BitsPerSample; PNG: sBIT). Images of"
    " 32-bit integers need another value than the default.",
    _BOTH,
    low=8,
    high=32,
  ),
  "backbone.kind": Field(
    "clip",
    "Frozen vision model that features come from: CLIP, DINOv2 with registers"
    " or DINOv3. Methods with texts need CLIP.",
    _BOTH,
    choices=("clip", "dinov2", "dinov3"),
  ),
  "backbone.weights": Field(
    "openai/clip-vit-large-patch14-336",
    "A Hugging Face name or folder; for CLIP also OpenAI's own .pt or a state"
    ' dict with OpenAI\'s names, or "demo" for the toy in this package.',
    is_local=True,
  ),
  "backbone.revision": Field(
    "",
    "Branch, tag or commit on the Hugging Face hub; an empty string stands for"
    " the newest.",
    is_local=True,
  ),
  "backbone.sha256": Field(
    "",
    "Required SHA-256 of the file with the weights; an empty string accepts"
    " any.",
    is_local=True,
  ),
  "backbone.dtype": Field(
    "auto",
    'Type of its computation: "float32", "bfloat16", or "auto": bfloat16 on'
    " GPU and TPU, float32 on CPU, where it is faster. A run keeps the type it"
    " began with. All else is computed in float32.",
    _BOTH,
    choices=("auto", "float32", "bfloat16"),
  ),
  "backbone.attention": Field(
    "auto",
    'How the vision tower computes attention: "auto" as suits the platform, or'
    ' "xla", "heads", "cudnn" (CUDA), "splash" (TPU).',
    choices=("auto", "xla", "heads", "cudnn", "splash"),
  ),
  "backbone.split_over_devices": Field(
    False,
    "Splits its parameters over the devices: saves memory, and costs their"
    " exchange in every step.",
  ),
  "backbone.clip_projection": Field(
    True,
    "Projects CLIP's tokens to the width that it shares with texts. Does not"
    " concern other backbones.",
    _BOTH,
  ),
  "model.image_size_pixels": Field(
    518, "Side that images are resized to; a multiple of the patch size.", low=1
  ),
  "model.feature_layers": Field(
    (24,),
    "Vision layers, counted from 1, whose patches are scored.",
  ),
  "model.num_value_layers": Field(
    24,
    "Last layers of CLIP's vision tower that have a value path; 0 for none.",
    low=0,
  ),
  "model.smoothing_window_patches": Field(
    5, "Side of the neighbourhood average, in patches; odd. 1 for none.", low=1
  ),
  "model.num_heads": Field(
    12,
    "Heads of the prototype extractor's attention; divides CLIP's joint width.",
    low=1,
  ),
  "model.num_context_words": Field(
    6,
    'A prompt is: start, context words, state words, category words, ".", end.',
    low=0,
  ),
  "model.num_state_words": Field(
    6,
    "Learned words for each state, and prototypes of it. 0 for no prototypes,"
    " losses of them or distances to them.",
    low=0,
  ),
  "model.num_category_words": Field(
    2,
    "Words that the VAE samples. 0 for no VAE, losses of it or samples; the"
    ' prompt then ends in "object.".',
    low=0,
  ),
  "model.deep_prompt_length": Field(
    4, "Tokens that a layer of the text tower replaces.", low=0
  ),
  "model.deep_prompt_depth": Field(
    8,
    "Layers of the text tower that replace them; 0 for no deep prompts.",
    low=0,
  ),
  "model.prototype_injection": Field(
    "crossed",
    "Which prototypes a state's prompt gets: \"crossed\", the other state's, as"
    ' in the authors\' released code; "matched", its own, as in the paper.',
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
    "Hand-written texts of the prompt ensemble: a file, or one of this project"
    ' by its name: "photos" or, in the words of the demo\'s CLIP, "demo".',
  ),
  "model.normal_texts": Field(
    (), "Texts for normal, in place of that file's states."
  ),
  "model.anomalous_texts": Field(
    (), "Texts for anomalous, in place of that file's states."
  ),
  "model.object_name": Field("object", "Word for the object in those texts."),
  "model.use_category_names": Field(
    False, "In an evaluation, the category's name is that word."
  ),
  "model.temperature": Field(
    0.07,
    "Cosines are divided by it before the softmax.",
    low=1e-6,
    below=math.inf,
  ),
  "train.dataset": Field(
    "visa",
    'Auxiliary data set: a name that "cops datasets list" shows, or your own'
    " images: folder:PATH in MVTec's layout, meta_json:PATH with a meta.json.",
  ),
  "train.split": Field(
    "test", "Split that is trained on; test has the anomalies."
  ),
  "train.num_epochs": Field(
    10,
    "Passes over the data. 0 writes a checkpoint of the untrained prompts.",
    low=0,
  ),
  "train.batch_size": Field(
    8,
    "Images in a step, over all devices. An epoch's last step may have fewer.",
    low=1,
    high=2**16,
  ),
  "train.accumulate_steps": Field(
    1, "Steps whose mean gradient updates the parameters once.", low=1
  ),
  "train.augmentation": Field(
    "none",
    'Changes half of the images, anew at every visit: "class_aware" makes a'
    ' mosaic with images of the same category or a crop; "class_agnostic", with'
    ' images of any category. "none" leaves them whole.',
    choices=("none", "class_aware", "class_agnostic"),
  ),
  "train.learning_rate": Field(
    1e-3, "Adam's learning rate; constant.", low=0, below=math.inf
  ),
  "train.b1": Field(
    0.5, "Adam's decay of the gradients' mean.", low=0, below=1
  ),
  "train.b2": Field(
    0.999, "Adam's decay of their squares' mean.", low=0, below=1
  ),
  "train.eps": Field(1e-8, "Adam's addend to the divisor.", low=1e-30, below=1),
  "train.reconstruction": Field(
    "none",
    'Loss between image features and category biases: "none", "pairwise" (every'
    ' image with every bias, as in the released code) or "matched".',
    choices=("none", "pairwise", "matched"),
  ),
  "train.log_every_steps": Field(
    20, "Steps between lines of metrics.", low=1, role=_NOTHING
  ),
  "train.checkpoint_every_steps": Field(
    500, "Steps between checkpoints.", low=1, role=_NOTHING
  ),
  "train.evaluate_every_steps": Field(
    0,
    "Steps between evaluations, which save a checkpoint, follow the section"
    " evaluation and write means into the metrics; 0 for none.",
    low=0,
    role=_NOTHING,
  ),
  "train.use_tensorboard": Field(
    False,
    "Writes the metrics for TensorBoard too; needs the extra [tensorboard].",
    role=_NOTHING,
  ),
  "train.num_kept_checkpoints": Field(
    3, "Newest checkpoints that are kept.", low=1, role=_NOTHING
  ),
  "evaluation.datasets": Field(
    ("mvtec_ad",), "Names as train.dataset's.", role=_NOTHING
  ),
  "evaluation.split": Field("test", "Split of each data set that is scored."),
  "evaluation.batch_size": Field(
    0,
    "Images in a step, over all devices; 0 for 1 per CPU, 8 per GPU or TPU."
    " No result depends on it.",
    low=0,
    high=2**16,
    role=_NOTHING,
  ),
  "evaluation.num_samples": Field(
    10, "Category codes that prompts are averaged over.", low=1
  ),
  "evaluation.distance_weighting": Field(
    True, "Weights a patch's probability by its distances to the prototypes."
  ),
  "evaluation.alpha": Field(
    0.26,
    "Share of the distance to normal prototypes in that weight.",
    low=0,
    high=1,
  ),
  "evaluation.beta": Field(
    0.9, "Share of the whole image's probability in its score.", low=0, high=1
  ),
  "evaluation.blur_sigma_pixels": Field(
    4.0,
    "Sigma of the anomaly map's Gaussian filter; 0 for none.",
    low=0,
    high=100,
  ),
  "evaluation.num_normal_images": Field(
    0,
    "Normal images of each category, drawn from the training split, that the"
    " patches of its other images are compared with; 0 for none.",
    low=0,
    high=2**16,
  ),
  "evaluation.memory_share": Field(
    0.5,
    "Share of the distance to normal images' patches in a patch's score, if"
    " there are normal images.",
    low=0,
    high=1,
  ),
  "evaluation.tiles": Field(
    "",
    "Rows x columns of overlapping tiles that are scored beside the whole of"
    " each image, such as 2x3, for small defects in large images; an empty"
    " string scores the whole only. Maps and metrics keep the model's size.",
  ),
  "evaluation.pixel_metrics": Field(
    "binned",
    'How pixels are counted: "binned", in constant memory, or "exact", which'
    " keeps them all: for small data.",
    choices=("binned", "exact"),
  ),
  "evaluation.num_pictures": Field(
    4,
    "Images of each kind, best, worst and random, in a data set's report.",
    low=0,
  ),
}
