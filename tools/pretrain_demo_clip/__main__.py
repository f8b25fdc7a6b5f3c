"""Pretrains the toy CLIP on generated images and captions.

  python -m tools.pretrain_demo_clip --output=cops_jax/weights/demo_clip

Runs on a CPU and takes 44 minutes on 2 cores. Each pair is an image with and
without a defect. The demo's six evaluation categories and its unseen kinds of
defects are never generated.
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
  for name, default, text in (
    ("steps", 3000, "run this many steps; default %(default)s"),
    ("pairs", 16, "draw this many pairs in a step; default %(default)s"),
    ("seed", 0, "seed all randomness with this number; default %(default)s"),
  ):
    parser.add_argument(f"--{name}", type=int, default=default, help=text)
  parser.add_argument(
    "--output", required=True, help="write tokenizer and weights to this folder"
  )
  return parser


@command_line
def main(arguments: Sequence[str] | None = None) -> None:
  """Writes tokenizer and weights to --output in Hugging Face's format."""
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
