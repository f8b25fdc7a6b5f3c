"""Pretrains the demo's tiny CLIP on generated images and captions.

  python -m tools.pretrain_demo_clip --output=cops_jax/weights/demo_clip

CPU only; 44 minutes on 2 cores. The demo's six evaluation categories and its
unseen defect kinds are never generated here.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import app, flags

from cops_jax.backbones.clip import CLIP
from tools.pretrain_demo_clip import batches, captions, loop, model, tokenizers

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
_STEPS = flags.DEFINE_integer("steps", 3000, "Optimizer steps.")
_PAIRS = flags.DEFINE_integer(
  "pairs", 16, "Pairs of a normal and a defective image in a step."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.")


def main(_: Sequence[str]) -> None:
  """Writes tokenizer and weights into --output, in Hugging Face's layout."""
  folder = pathlib.Path(_OUTPUT.value)
  tokenizer = tokenizers.build_tokenizer(folder, captions.vocabulary())
  config = model.clip_config(len(tokenizer))
  rng = np.random.default_rng(_SEED.value)
  params = {
    "clip": model.initial_params(config, rng),
    "heads": model.initial_heads(config, rng),
  }
  count = sum(leaf.size for leaf in jax.tree.leaves(params["clip"]))
  print(f"{count:,} parameters, {len(tokenizer)} tokens", flush=True)
  steps = _STEPS.value
  loop.train(
    CLIP(config),
    params,
    batches.prefetched_batches(
      _SEED.value,
      tokenizers.fixed_length(tokenizer),
      _PAIRS.value,
      loop.image_sizes(steps),
    ),
    steps,
    lambda params: model.save_clip(folder, config, params["clip"]),
  )


if __name__ == "__main__":
  app.run(main)
