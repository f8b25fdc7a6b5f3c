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

from cops_jax.backbones.clip import CLIP
from cops_jax.commands import TOOL, command_line, make_parser
from tools.pretrain_demo_clip import batches, captions, loop, model, tokenizers


def _parser():
  parser = make_parser("pretrain_demo_clip", __doc__, TOOL)
  parser.add_argument("--output", required=True, help="folder to write")
  parser.add_argument("--steps", type=int, default=3000, help="optimizer steps")
  parser.add_argument(
    "--pairs",
    type=int,
    default=16,
    help="pairs of a normal and a defective image in a step",
  )
  parser.add_argument("--seed", type=int, default=0, help="of all randomness")
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """Writes tokenizer and weights into --output, in Hugging Face's layout."""
  options = _parser().parse_args(arguments)
  folder = pathlib.Path(options.output)
  tokenizer = tokenizers.build_tokenizer(folder, captions.vocabulary())
  config = model.clip_config(len(tokenizer))
  rng = np.random.default_rng(options.seed)
  params = {
    "clip": model.initial_params(config, rng),
    "heads": model.initial_heads(config, rng),
  }
  count = sum(leaf.size for leaf in jax.tree.leaves(params["clip"]))
  print(f"{count:,} parameters, {len(tokenizer)} tokens", flush=True)
  loop.train(
    CLIP(config),
    params,
    batches.prefetched_batches(
      options.seed,
      tokenizers.fixed_length(tokenizer),
      options.pairs,
      loop.image_sizes(options.steps),
    ),
    options.steps,
    lambda params: model.save_clip(folder, config, params["clip"]),
  )


if __name__ == "__main__":
  main()
