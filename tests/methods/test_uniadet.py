"""UniADet on three backbones against stored numbers of two reproductions."""

import dataclasses
import json
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cops_jax import config as configuration
from cops_jax import scoring
from cops_jax.backbones.features import encode_images, join_params
from cops_jax.backbones.vision import resize_position_embedding
from cops_jax.errors import InputError
from cops_jax.evaluation.step import detect_anomalies
from cops_jax.weights.clip import PretrainedCLIP
from cops_jax.weights.dino import load_dino
from cops_jax.weights.model import build_model
from cops_jax.weights.prompts import load_prompts
from helpers import dino, golden
from helpers.golden import assert_close
from helpers.steps import take_five_adam_steps

KINDS = ("clip", "dinov2", "dinov3")
STORED = golden.load("uniadet")
SIZES = json.loads(str(STORED["config"]))


def make_model(kind, backbone, fields=None):
  config = configuration.recipe(f"uniadet_visa:{kind}")
  values = {
    "model.image_size_pixels": SIZES[kind]["image"],
    "model.feature_layers": tuple(SIZES[kind]["features"]),
    "backbone.dtype": "float32",
  }
  config.update_from_flattened_dict(values | (fields or {}))
  return build_model(ml_collections.FrozenConfigDict(config), backbone)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
  """Stored towers; the two DINO towers are loaded from folders."""
  root = tmp_path_factory.mktemp("backbones")
  loaded = {
    kind: load_dino(kind, str(dino.write_golden(kind, root / kind)))
    for kind in KINDS[1:]
  }
  clip = PretrainedCLIP(
    golden.clip_config(), golden.backbone_params(), tokens=None, sha256=""
  )
  return {
    kind: dataclasses.replace(one, params=jax.tree.map(jnp.asarray, one.params))
    for kind, one in {"clip": clip, **loaded}.items()
  }


@pytest.fixture(scope="module", params=KINDS)
def case(request, backbones):
  """Model on one kind of backbone, with the backbone, features and a batch."""
  kind, backbone = request.param, backbones[request.param]
  model = make_model(kind, backbone)
  side = SIZES[kind]["image"]
  images = jnp.asarray(STORED[f"in{side}.image"], jnp.float32)
  features = encode_images(model, backbone.params, images.transpose(0, 2, 3, 1))
  batch = {
    "image_features": features[0],
    "patch_features": features[1],
    "mask": jnp.asarray(STORED[f"in{side}.mask"]),
    "label": jnp.asarray(STORED["in.label"], jnp.int32),
    "padding_mask": jnp.ones(4, bool),
  }
  return SimpleNamespace(
    kind=kind, backbone=backbone, model=model, features=features, batch=batch
  )


def weights_from(prefix, kind):
  """Returns stored weights or gradients as a trainable tree."""
  return {
    f"{ours}_weights": {
      f"layer_{number}": jnp.asarray(rows, jnp.float32)
      for number, rows in zip(
        SIZES[kind]["features"],
        STORED[f"{prefix}.{kind}.{theirs}"],
        strict=True,
      )
    }
    for ours, theirs in (("image", "cls"), ("patch", "seg"))
  }


def test_tokens_match_the_stored_ones(case):
  for actual, name in zip(case.features, ("class", "patch"), strict=True):
    assert_close(actual, STORED[f"enc.{case.kind}.{name}_tokens"])


def test_unprojected_tokens_of_clip_match_the_stored_ones(backbones):
  fields = {"backbone.clip_projection": False}
  model = make_model("clip", backbones["clip"], fields)
  images = jnp.asarray(STORED["in98.image"], jnp.float32).transpose(0, 2, 3, 1)
  found = encode_images(model, backbones["clip"].params, images)
  wanted = STORED["enc.clip.unprojected"]
  assert_close(found[0], wanted[:, :, 0])
  assert_close(found[1], wanted[:, :, 1:])


@pytest.mark.parametrize("grid", (5, 9))
def test_dinov2_positions_of_another_grid_match_the_stored_ones(grid):
  table = STORED["dinov2.embeddings.position_embeddings"][0]
  found = resize_position_embedding(
    jnp.asarray(table, jnp.float32), grid, "cubic", antialias=True
  )
  assert_close(found, STORED[f"enc.dinov2.position_embedding_{grid}"])


def test_scores_and_maps_match_the_stored_ones(case):
  kind, side = case.kind, SIZES[case.kind]["image"]
  variables = join_params(weights_from("start", kind), case.backbone.params)
  image_logits, patch_logits = case.model.apply(variables, *case.features)
  assert_close(image_logits, STORED[f"eval.{kind}.class_logits"])
  probability = jax.nn.softmax(patch_logits)
  assert_close(probability, STORED[f"eval.{kind}.patch_probability"])
  found = detect_anomalies(case.model, variables, case.batch)
  assert_close(found["image_score"], STORED[f"eval.{kind}.image_score"])
  assert_close(found["anomaly_map"], STORED[f"eval.{kind}.anomaly_map"])
  unblurred = scoring.anomaly_maps(
    probability[..., scoring.ANOMALY].mean(axis=1), side, "bilinear", 0.0
  )
  assert_close(unblurred[1:2], STORED[f"eval.{kind}.map_unblurred"])


def test_scores_with_reference_images_match_the_stored_ones(case):
  """Shares other than 0.5 show that no share is swapped with its complement."""
  kind, weights = case.kind, weights_from("start", case.kind)
  memory = np.array(SIZES["memory"])
  patches = scoring.make_memory(case.features[1][memory])
  trainable = {**weights, "memory": {"patches": patches}}
  variables = join_params(trainable, case.backbone.params)
  found = detect_anomalies(case.model, variables, case.batch)
  assert_close(found["image_score"], STORED[f"few.{kind}.image_score"])
  first = next(row for row in range(4) if row not in memory)
  wanted = STORED[f"few.{kind}.anomaly_map"][0]
  assert_close(found["anomaly_map"][first], wanted)
  distances = scoring.memory_distances(case.features[1], patches)
  assert_close(distances, STORED[f"few.{kind}.distance"])
  plain = STORED[f"eval.{kind}.patch_probability"][..., 1].mean(axis=1)
  image = jax.nn.softmax(STORED[f"eval.{kind}.class_logits"])[..., 1].mean(1)
  fields = {"evaluation.memory_share": 0.2, "evaluation.beta": 0.9}
  model = make_model(kind, case.backbone, fields)
  found, fused = model.apply(
    join_params(weights, case.backbone.params),
    *(case.features, {"memory_distances": distances}),
    method="score",
  )
  assert_close(fused, 0.8 * plain + 0.2 * distances)
  assert_close(found, 0.9 * image + 0.1 * fused.max(axis=1))


@pytest.mark.parametrize("beta", (0.0, 0.2, 1.0))
def test_the_image_score_is_a_mean_over_layers(case, beta):
  """Beta is the share of the class token, which 0.5 would not show."""
  fields = {"evaluation.beta": beta}
  model = make_model(case.kind, case.backbone, fields)
  variables = join_params(
    weights_from("start", case.kind), case.backbone.params
  )
  scores, _ = model.apply(variables, case.features, {}, method="score")
  image = jax.nn.softmax(STORED[f"eval.{case.kind}.class_logits"])[..., 1]
  patch = STORED[f"eval.{case.kind}.patch_probability"][..., 1].max(axis=-1)
  wanted = beta * image + (1 - beta) * patch
  assert_close(scores, wanted.mean(axis=1))


def test_a_reproductions_file_is_read(case, tmp_path):
  torch = pytest.importorskip("torch")
  stored = weights_from("start", case.kind)
  head = {
    f"{name}.{layer.removeprefix('layer_')}": torch.tensor(np.asarray(rows))
    for name, ours in (("w_cls", "image_weights"), ("w_seg", "patch_weights"))
    for layer, rows in stored[ours].items()
  }
  path, facts = tmp_path / "epoch_15.pth", {"layers": [2], "tau": 0.07}
  torch.save({**facts, "backbone": "dinov2", "head": head}, path)
  found, _ = load_prompts(path, stored, "uniadet")
  chex.assert_trees_all_equal(found, stored)
  with pytest.raises(InputError, match="has prompts of the method 'uniadet'"):
    load_prompts(path, stored, "cops")


def test_gradients_and_five_adam_steps_match_the_stored_ones(case):
  rows, first_gradients = take_five_adam_steps(
    case.model,
    weights_from("start", case.kind),
    case.backbone.params,
    case.batch,
  )
  assert_close(rows, STORED[f"train.{case.kind}.losses"])
  wanted = weights_from("grad", case.kind)
  for name in wanted:
    stack = [list(tree[name].values()) for tree in (first_gradients, wanted)]
    assert_close(np.stack(stack[0]), np.stack(stack[1]))
