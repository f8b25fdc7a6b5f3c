"""Pretrains the demo's tiny CLIP on generated images and captions.

  python tools/pretrain_demo_clip.py --output=cops_jax/weights/demo_clip

CPU only; 44 minutes on 2 cores. The demo's six evaluation categories and its
unseen defect kinds are never generated here.

A CLIP as small as this learns nothing local from captions of whole images, so
more losses stand beside CLIP's contrastive loss between images and captions: a
region-text loss between the patches of the value path and the texts of the
patch's own state (no defect, or a kind of defect) and of what else is there to
see (colour, brightness, contrast, place), an image-text loss between
the class token as CoPS reads it and the texts of the image's state, and two
losses of linear heads that are thrown away afterwards: from each patch's token,
is it defective, and what is missing to the same image without the defect?
"""

import json
import pathlib
import queue
import threading
import time

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from optax import contrib
from transformers import CLIPConfig, CLIPTokenizerFast

from cops_jax import weights
from cops_jax.datasets import generated
from cops_jax.models.clip import CLIP, normalize_images
from cops_jax.models.similarity import normalize

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
_STEPS = flags.DEFINE_integer("steps", 3000, "Optimizer steps.")
_PAIRS = flags.DEFINE_integer(
  "pairs", 16, "Pairs of a normal and a defective image in a step."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")

IMAGE_SIZE, PATCH_SIZE, NUM_LAYERS, NUM_VALUE_LAYERS = 112, 8, 5, 3
# The first part of the training sees crops: cheaper steps, more variety.
CROP_SIZE, CROP_FRACTION = 80, 0.7
PEAK_LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
TEMPERATURE = 0.07  # CoPS's.
# A patch counts as defective from this share of mask pixels; below, and above
# 0, it teaches nothing.
MIN_DEFECT_SHARE = 0.12
DEFECT_PATCH_WEIGHT = 6.0
MAX_LENGTH = 16

KINDS = tuple(generated.SEEN_DEFECTS)
GOOD = ("flawless", "perfect", "intact", "normal", "undamaged", "clean")
BAD = ("damaged", "defective", "broken", "anomalous", "flawed", "faulty")
# What else a patch shows, so that its features say more than its state.
COLORS = {
  "red": (0.75, 0.2, 0.2),
  "orange": (0.85, 0.5, 0.2),
  "yellow": (0.85, 0.8, 0.3),
  "green": (0.3, 0.65, 0.3),
  "cyan": (0.3, 0.7, 0.7),
  "blue": (0.25, 0.35, 0.75),
  "purple": (0.55, 0.3, 0.65),
  "pink": (0.85, 0.5, 0.65),
  "brown": (0.45, 0.3, 0.2),
  "grey": (0.5, 0.5, 0.5),
  "black": (0.1, 0.1, 0.1),
  "white": (0.9, 0.9, 0.9),
}
ATTRIBUTES = (
  tuple(COLORS),
  ("dark", "dim", "light", "bright"),
  ("plain", "textured", "contrasty"),
  ("upper left", "upper middle", "upper right")
  + ("middle left", "middle", "middle right")
  + ("lower left", "lower middle", "lower right"),
)
BRIGHTNESS_EDGES = (0.2, 0.4, 0.6)
CONTRAST_EDGES = (0.03, 0.09)  # Of the standard deviation in a patch.
ATTRIBUTE_WEIGHT = 0.2
TEMPLATES = (
  "a photo of a {} {} .",
  "a close-up photo of the {} {} .",
  "a {} {} .",
  "an image of a {} {} .",
)


def words(name):
  return name.replace("_", " ")


def build_tokenizer(folder, texts):
  """Writes a CLIP byte-level BPE whose merges make one token of each word."""
  base = _byte_alphabet()
  vocab = base + [symbol + "</w>" for symbol in base]
  merges = []
  for word in sorted({word for text in texts for word in text.split()}):
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
      merge = (pieces[0], pieces[1])
      pieces = [merge[0] + merge[1], *pieces[2:]]
      if merge not in merges:
        merges.append(merge)
      if pieces[0] not in vocab:
        vocab.append(pieces[0])
  vocab += ["<|startoftext|>", "<|endoftext|>"]
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "vocab.json").write_text(
    json.dumps({token: index for index, token in enumerate(vocab)})
  )
  lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
  (folder / "merges.txt").write_text("\n".join(lines) + "\n")
  tokenizer = CLIPTokenizerFast(
    str(folder / "vocab.json"),
    str(folder / "merges.txt"),
    model_max_length=77,
  )
  tokenizer.save_pretrained(folder)
  return tokenizer


def _byte_alphabet():
  from transformers.models.clip.tokenization_clip import bytes_to_unicode

  return list(bytes_to_unicode().values())


def clip_config(vocab_size):
  return CLIPConfig(
    text_config=dict(
      vocab_size=vocab_size,
      hidden_size=128,
      intermediate_size=512,
      num_hidden_layers=4,
      num_attention_heads=4,
      max_position_embeddings=77,
      bos_token_id=vocab_size - 2,
      eos_token_id=vocab_size - 1,
      pad_token_id=vocab_size - 1,
    ),
    vision_config=dict(
      hidden_size=192,
      intermediate_size=768,
      num_hidden_layers=NUM_LAYERS,
      num_attention_heads=3,
      image_size=IMAGE_SIZE,
      patch_size=PATCH_SIZE,
    ),
    projection_dim=128,
    torch_dtype="float16",
  )


def initial_params(config, rng):
  """Kernels of scale 1/sqrt(fan-in), and vision attention that compares.

  transformers' own initial values suit larger models. Here every vision head
  begins by subtracting from a token what the tokens that look alike or lie near
  have in common: query and key are equal, output is minus the inverse of value,
  positions are sines (after Trockman and Kolter 2023). It learns several times
  faster.
  """
  shapes = flax.traverse_util.flatten_dict(weights.clip_param_shapes(config))
  params = {}
  for path, leaf in shapes.items():
    if path[-1] == "kernel":
      fan_in = np.prod(leaf.shape[:-1])
      scale = fan_in**-0.5
      if path[-2] in ("out_proj", "fc2"):
        scale /= (2 * NUM_LAYERS) ** 0.5
    elif path[-1] in ("embedding", "class_embedding"):
      scale = 0.3 if path[-2] == "token_embedding" else 0.1
    else:
      constant = {"scale": 1.0, "logit_scale": np.log(1 / TEMPERATURE)}
      params[path] = jnp.full(leaf.shape, constant.get(path[-1], 0.0))
      continue
    params[path] = jnp.asarray(rng.normal(0, scale, leaf.shape), jnp.float32)

  def orthogonal(scale):
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return scale * rotation

  def set_noisy(path, kernel):
    noise = 0.02 * rng.normal(size=kernel.shape)
    params[path] = jnp.asarray(kernel + noise, jnp.float32)

  width = config.vision_config.hidden_size
  for layer in range(NUM_LAYERS):
    attention = ("vision_model", "encoder", "layers", str(layer), "self_attn")
    query, value = orthogonal(1.0), orthogonal(0.7)
    set_noisy((*attention, "q_proj", "kernel"), query)
    set_noisy((*attention, "k_proj", "kernel"), query)
    set_noisy((*attention, "v_proj", "kernel"), value)
    set_noisy((*attention, "out_proj", "kernel"), -0.5 / 0.7 * value.T)
  embeddings = ("vision_model", "embeddings", "position_embedding", "embedding")
  params[embeddings] = sine_positions(IMAGE_SIZE // PATCH_SIZE, width)
  return flax.traverse_util.unflatten_dict(params)


def sine_positions(side, width):
  """Zeros for the class token, then sines and cosines of row and column."""
  frequencies = 2 * 10 ** (-1.5 * np.arange(width // 4) / (width // 4))
  angles = np.arange(side)[:, None] * frequencies
  axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
  rows, columns = np.repeat(axis, side, axis=0), np.tile(axis, (side, 1))
  patches = 0.5 * np.concatenate([rows, columns], axis=1)
  return jnp.asarray(
    np.concatenate([np.zeros((1, width)), patches]), jnp.float32
  )


def initial_heads(config, rng):
  """Linear heads on the last layer's tokens: defective or not, and repair."""
  width = config.vision_config.hidden_size
  return {
    "defective": jnp.asarray(rng.normal(0, 0.05, width), jnp.float32),
    "bias": jnp.zeros(()),
    "repair": jnp.asarray(
      rng.normal(0, 0.01, (width, 3 * PATCH_SIZE**2)), jnp.float32
    ),
  }


def make_optimizer(steps):
  """Muon for the layers' matrices, Adam for the rest."""

  def muon_dimensions(params):
    def choose(path, leaf):
      name = jax.tree_util.keystr(path)
      is_hidden = "layers" in name and leaf.ndim == 2
      return contrib.MuonDimensionNumbers() if is_hidden else None

    return jax.tree_util.tree_map_with_path(choose, params)

  schedule = optax.warmup_cosine_decay_schedule(
    0.0, PEAK_LEARNING_RATE, min(300, steps // 10), steps
  )
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    contrib.muon(
      schedule,
      weight_decay=WEIGHT_DECAY,
      weight_decay_mask=lambda tree: jax.tree.map(
        lambda leaf: leaf.ndim > 1, tree
      ),
      muon_weight_dimension_numbers=muon_dimensions,
      adam_b2=0.98,
      consistent_rms=0.2,
    ),
  )


def augment(rng, images, mask):
  """The same flip, turn and colour change for every image of a pair."""
  turns, flip = rng.integers(4), rng.random() < 0.5
  channels, invert = rng.permutation(3), rng.random() < 0.25

  def turn(array):
    array = np.rot90(array, turns)
    return array[:, ::-1] if flip else array

  images = [turn(image)[..., channels] for image in images]
  if invert:
    images = [255 - image for image in images]
  return images, turn(mask)


def draw_batch(rng, tokenize, num_pairs, size):
  """A batch of pairs: first the normal images, then the defective ones."""
  names = rng.permutation(generated.PRETRAINING_CATEGORIES)[:num_pairs]
  rows = []
  for name in names:
    kind = int(rng.integers(len(KINDS)))
    defective, normal, mask = generated.generate_pair(
      name, KINDS[kind], rng, IMAGE_SIZE
    )
    (defective, normal), mask = augment(rng, (defective, normal), mask)
    top, left = rng.integers(0, IMAGE_SIZE - size + 1, 2)
    crop = np.s_[top : top + size, left : left + size]
    rows.append((normal[crop], defective[crop], mask[crop], kind, name))
  normal, defective, mask, kind, names = zip(*rows, strict=True)
  mask, kind = np.stack(mask), np.array(kind)
  grid = size // PATCH_SIZE
  share = mask.reshape(num_pairs, grid, PATCH_SIZE, grid, PATCH_SIZE)
  share = share.mean(axis=(2, 4)).reshape(num_pairs, -1)
  is_defective = mask.any(axis=(1, 2))

  def caption(name, bad, kind):
    if bad and rng.random() < 0.6:
      text = f"{words(name)} with a {words(KINDS[kind])}"
      return rng.choice(TEMPLATES).format("", text)
    return rng.choice(TEMPLATES).format(
      rng.choice(BAD if bad else GOOD), words(name)
    )

  captions = [caption(name, False, 0) for name in names]
  captions += [
    caption(name, bad, k)
    for name, bad, k in zip(names, is_defective, kind, strict=True)
  ]
  template = rng.choice(TEMPLATES)
  state_texts = [
    template.format(rng.choice(GOOD), "object"),
    template.format(rng.choice(BAD), "object"),
    template.format(rng.choice(GOOD), "object"),
    *(template.format("", f"object with a {words(k)}") for k in KINDS),
  ]
  zeros = np.zeros_like(share)
  # Texts that say the same of the same category are no negatives.
  said = np.array(
    [f"{name} good" for name in names]
    + [
      f"{name} {'bad' if bad else 'good'}"
      for name, bad in zip(names, is_defective, strict=True)
    ]
  )
  return dict(
    image=np.stack(normal + defective),
    share=np.concatenate([zeros, share]),
    kind=np.tile(kind, 2),
    is_defective=np.concatenate([np.zeros(num_pairs, bool), is_defective]),
    same_text=said[:, None] == said[None],
    caption=tokenize(captions),
    state_text=tokenize(state_texts),
    attribute_text=tokenize(
      [f"a {word} region ." for group in ATTRIBUTES for word in group]
    ),
  )


def prefetched_batches(seed, tokenize, num_pairs, sizes):
  """Draws batches in a thread; XLA leaves Python's lock free meanwhile."""
  batches = queue.Queue(maxsize=4)

  def work():
    for step, size in enumerate(sizes):
      rng = np.random.default_rng((seed, step))
      batches.put(draw_batch(rng, tokenize, num_pairs, size))

  threading.Thread(target=work, daemon=True).start()
  return (batches.get() for _ in sizes)


def text_features(model, ids):
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  hidden = model.text_model(ids, jnp.ones_like(ids), positions)
  return normalize(model.text_projection(hidden[1]))


def weighted_mean(values, weight):
  return (values * weight).sum() / weight.sum()


def cross_entropy(logits, labels, weight):
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return weighted_mean(losses, weight)


def losses(model, batch, heads):
  images = normalize_images(batch["image"])
  original, value_path = model.vision_streams(
    images, feature_layers=(NUM_LAYERS,), num_value_layers=NUM_VALUE_LAYERS
  )
  tower, project = model.vision_model, model.visual_projection
  patches = normalize(project(tower.post_layernorm(value_path[:, 0, 1:])))
  pooled = normalize(project(tower.post_layernorm(original[:, 0])))
  class_token = normalize(project(original[:, 0]))

  captions = text_features(model, batch["caption"])
  scale = jnp.exp(jnp.minimum(model.logit_scale, jnp.log(100.0)))
  logits = scale * pooled @ captions.T
  target = batch["same_text"] / batch["same_text"].sum(axis=1, keepdims=True)
  contrastive = (
    optax.softmax_cross_entropy(logits, target).mean()
    + optax.softmax_cross_entropy(logits.T, target).mean()
  ) / 2

  states = text_features(model, batch["state_text"])
  pair, kinds = states[:2], states[2:]
  share = batch["share"]
  is_bad = share >= MIN_DEFECT_SHARE
  weight = jnp.where(is_bad, DEFECT_PATCH_WEIGHT, (share == 0) * 1.0)
  kind_label = jnp.where(is_bad, 1 + batch["kind"][:, None], 0)
  region = cross_entropy(
    patches @ pair.T / TEMPERATURE, is_bad.astype(jnp.int32), weight
  )
  region_kind = cross_entropy(
    patches @ kinds.T / TEMPERATURE, kind_label, weight
  )

  label = batch["is_defective"].astype(jnp.int32)
  ones = jnp.ones_like(label, jnp.float32)
  image = cross_entropy(class_token @ pair.T / TEMPERATURE, label, ones)

  tokens = original[:, 1:]
  defective = weighted_mean(
    optax.sigmoid_binary_cross_entropy(
      tokens @ heads["defective"] + heads["bias"], is_bad * 1.0
    ),
    weight,
  )
  described = text_features(model, batch["attribute_text"])
  sizes = np.cumsum([len(group) for group in ATTRIBUTES])[:-1]
  attributes = sum(
    cross_entropy(
      patches @ texts.T / TEMPERATURE, labels, jnp.ones(share.shape)
    )
    for texts, labels in zip(
      jnp.split(described, sizes),
      attribute_labels(batch["image"] / 255.0),
      strict=True,
    )
  )

  pixels = patch_pixels(images)
  normal_pixels = jnp.tile(pixels[: len(pixels) // 2], (2, 1, 1))
  error = tokens @ heads["repair"] - (normal_pixels - pixels)
  repair = weighted_mean((error**2).mean(axis=-1), weight)
  terms = dict(
    contrastive=contrastive,
    region=region,
    region_kind=region_kind,
    image=image,
    defective=defective,
    repair=repair,
    attributes=attributes,
  )
  weights_of_terms = dict(
    contrastive=0.3, region_kind=0.5, attributes=ATTRIBUTE_WEIGHT
  )
  total = sum(
    weights_of_terms.get(name, 1.0) * term for name, term in terms.items()
  )
  return total, terms


def attribute_labels(images):
  """The index of each patch's word in each group of `ATTRIBUTES`, (b, n)."""
  pixels = patch_pixels(images)
  pixels = pixels.reshape(*pixels.shape[:2], -1, 3)
  color = pixels.mean(axis=2)
  anchors = jnp.array(list(COLORS.values()))
  distance = jnp.square(color[:, :, None] - anchors).sum(axis=-1)
  grey = pixels.mean(axis=3)
  brightness = jnp.digitize(grey.mean(axis=2), jnp.array(BRIGHTNESS_EDGES))
  contrast = jnp.digitize(grey.std(axis=2), jnp.array(CONTRAST_EDGES))
  batch, patches = contrast.shape
  grid = round(patches**0.5)
  third = jnp.arange(grid) * 3 // grid
  place = (3 * third[:, None] + third).reshape(1, -1)
  place = jnp.broadcast_to(place, (batch, patches))
  return distance.argmin(axis=-1), brightness, contrast, place


def patch_pixels(images):
  """Each patch's pixels in a row: b h w 3 -> b n (P P 3)."""
  batch, size, _, _ = images.shape
  grid = size // PATCH_SIZE
  blocks = images.reshape(batch, grid, PATCH_SIZE, grid, PATCH_SIZE, 3)
  return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid**2, -1)


def main(_):
  folder = pathlib.Path(_OUTPUT.value)
  vocabulary = ["object . with without the an image close-up", *TEMPLATES]
  vocabulary += [*GOOD, *BAD, *map(words, KINDS)]
  vocabulary += map(words, generated.PRETRAINING_CATEGORIES)
  vocabulary += ["region", *(word for group in ATTRIBUTES for word in group)]
  texts = [text.replace("{}", "") for text in vocabulary]
  tokenizer = build_tokenizer(folder, texts)

  def tokenize(texts):
    return tokenizer(
      [str(text) for text in texts],
      padding="max_length",
      max_length=MAX_LENGTH,
      truncation=True,
      return_tensors="np",
    ).input_ids.astype(np.int32)

  config = clip_config(len(tokenizer))
  model = CLIP(config)
  rng = np.random.default_rng(_SEED.value)
  params = {
    "clip": initial_params(config, rng),
    "heads": initial_heads(config, rng),
  }
  count = sum(leaf.size for leaf in jax.tree.leaves(params["clip"]))
  print(f"{count:,} parameters, {len(tokenizer)} tokens", flush=True)

  steps = _STEPS.value
  optimizer = make_optimizer(steps)
  state = optimizer.init(params)

  @jax.jit
  def train_step(params, state, batch):
    def loss(params):
      return model.apply(
        {"params": params["clip"]}, batch, params["heads"], method=losses
      )

    gradients, terms = jax.grad(loss, has_aux=True)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, terms

  num_crops = int(steps * CROP_FRACTION)
  sizes = [CROP_SIZE] * num_crops + [IMAGE_SIZE] * (steps - num_crops)
  start, history = time.time(), []
  batches = prefetched_batches(_SEED.value, tokenize, _PAIRS.value, sizes)
  for step, batch in enumerate(batches, start=1):
    params, state, terms = train_step(params, state, batch)
    history.append(jax.device_get(terms))
    if step % 50 == 0 or step == steps:
      means = {k: np.mean([row[k] for row in history]) for k in history[0]}
      history.clear()
      rate = step / (time.time() - start)
      text = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
      left = (steps - step) / rate / 60
      print(
        f"{step}/{steps}  {text}  {rate:.2f} steps/s  {left:.0f} min left",
        flush=True,
      )
    if step % 500 == 0 or step == steps:
      weights.save_clip(folder, config, params["clip"])


if __name__ == "__main__":
  app.run(main)
