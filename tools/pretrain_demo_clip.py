"""Pretrains the demo's tiny CLIP on generated images and captions.

  python tools/pretrain_demo_clip.py --output=cops_jax/assets/demo_clip

CPU only; about an hour and a half on 2 cores. The demo's six evaluation
categories and its unseen defect kinds are never generated here.

A CLIP as small as this learns nothing local from captions of whole images, so
three losses are summed: CLIP's contrastive loss between images and captions, a
region-text loss between the patches of the value path and the texts of the
patch's own state (no defect, or a kind of defect), and an image-text loss
between the class token as CoPS reads it and the texts of the image's state.
"""

import json
import pathlib
import queue
import threading
import time

from absl import app
from absl import flags
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformers import CLIPConfig
from transformers import CLIPTokenizerFast

from cops_jax import weights
from cops_jax.datasets import demo
from cops_jax.models.clip import CLIP, normalize_images
from cops_jax.scoring import normalize

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
_STEPS = flags.DEFINE_integer("steps", 6000, "Optimizer steps.")
_PAIRS = flags.DEFINE_integer(
  "pairs", 16, "Pairs of a normal and a defective image in a step."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")

IMAGE_SIZE, PATCH_SIZE, NUM_LAYERS, NUM_VALUE_LAYERS = 112, 8, 5, 3
# The first part of the training sees crops: cheaper steps, more variety.
CROP_SIZE, CROP_FRACTION = 80, 0.6
PEAK_LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
TEMPERATURE = 0.07  # CoPS's.
# A patch counts as defective from this share of mask pixels; below, and above
# 0, it teaches nothing.
MIN_DEFECT_SHARE = 0.12
DEFECT_PATCH_WEIGHT = 6.0
MAX_LENGTH = 16

KINDS = tuple(demo.SEEN_DEFECTS)
GOOD = ("flawless", "perfect", "intact", "normal", "undamaged", "clean")
BAD = ("damaged", "defective", "broken", "anomalous", "flawed", "faulty")
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
  """Kernels with 1/sqrt(fan-in): transformers' own suit larger models."""
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
  return flax.traverse_util.unflatten_dict(params)


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
  names = rng.permutation(demo.PRETRAINING_CATEGORIES)[:num_pairs]
  rows = []
  for name in names:
    kind = int(rng.integers(len(KINDS)))
    defective, normal, mask = demo.generate_pair(
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


def cross_entropy(logits, labels, weight):
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return (losses * weight).sum() / weight.sum()


def losses(model, batch):
  images = normalize_images(batch["image"])
  image_features, patches = model.encode_images(
    images, feature_layers=(NUM_LAYERS,), num_value_layers=NUM_VALUE_LAYERS
  )
  patches = normalize(patches[:, 0])
  image_features = normalize(image_features)

  captions = text_features(model, batch["caption"])
  scale = jnp.exp(jnp.minimum(model.logit_scale, jnp.log(100.0)))
  logits = scale * image_features @ captions.T
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
  image = cross_entropy(image_features @ pair.T / TEMPERATURE, label, ones)
  terms = dict(
    contrastive=contrastive, region=region, region_kind=region_kind, image=image
  )
  total = 0.3 * contrastive + region + 0.5 * region_kind + image
  return total, terms


def main(_):
  folder = pathlib.Path(_OUTPUT.value)
  vocabulary = ["object . with without the an image close-up", *TEMPLATES]
  vocabulary += [*GOOD, *BAD, *map(words, KINDS)]
  vocabulary += map(words, demo.PRETRAINING_CATEGORIES)
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
  params = initial_params(config, np.random.default_rng(_SEED.value))
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(f"{count:,} parameters, {len(tokenizer)} tokens", flush=True)

  steps = _STEPS.value
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, PEAK_LEARNING_RATE, min(300, steps // 10), steps
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      schedule,
      b2=0.98,
      weight_decay=WEIGHT_DECAY,
      mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
    ),
  )
  state = optimizer.init(params)

  @jax.jit
  def train_step(params, state, batch):
    def loss(params):
      return model.apply({"params": params}, batch, method=losses)

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
      weights.save_clip(folder, config, params)


if __name__ == "__main__":
  app.run(main)
