"""The prompt ensemble against numbers of the authors' building blocks."""

import collections
import itertools

import jax
import jax.numpy as jnp
import pytest

from cops_jax.clip.features import join_params
from cops_jax.errors import InputError
from cops_jax.evaluation.step import detect_anomalies
from cops_jax.methods import prompt_ensemble
from cops_jax.methods.prompt_ensemble import fill_templates, read_texts
from helpers import golden
from helpers.golden import assert_close

SOURCE = "anomalyclip"
NUM_NORMAL = 245


@pytest.fixture(scope="module")
def expected():
  return golden.load(SOURCE)


@pytest.fixture(scope="module")
def sentences(expected):
  """Token ids in OpenAI's vocabulary, from start to end."""
  rows = []
  for row in expected["ens.tokens"]:
    rows.append(row[: list(row).index(49407) + 1].tolist())
  return rows


def test_scores(expected, sentences):
  ids = list(expected["clip.token_embedding.ids"])
  rows = [tuple(ids.index(number) for number in row) for row in sentences]
  model = prompt_ensemble.PromptEnsemble(
    golden.config("prompt_ensemble"),
    golden.tower(SOURCE),
    (tuple(rows[:NUM_NORMAL]), tuple(rows[NUM_NORMAL:])),
  )
  clip_params = golden.clip_params(SOURCE)
  tree = model.init_trainable(jax.random.key(0), clip_params)
  text_features = tree["ensemble"]["text_features"]
  assert_close(text_features, expected["ens.text_features"])
  batch = {
    f"{name}_features": jnp.asarray(expected[f"enc.{name}_features"])
    for name in ("image", "patch")
  }
  outputs = detect_anomalies(model, join_params(tree, clip_params), batch)
  assert_close(outputs["image_score"], expected["ens.image_score"])
  # The stored map is a sum over feature layers.
  num_layers = len(model.config.model.feature_layers)
  maps = num_layers * outputs["anomaly_map"]
  assert_close(maps[:1], expected["ens.anomaly_map"])


# Of OpenAI's vocabulary.
IDS = {
  **{"a": [320], "the": [518], "one": [637], "my": [607], ".": [269]},
  **{"photo": [1125], "of": [539], "object": [14115], "bad": [2103]},
  **{"low": [1042], "resolution": [9977], "close-up": [2660, 268, 705]},
  **{"there": [997], "this": [589], "is": [533], "in": [530], "scene": [3562]},
  **{"flawless": [15531], "perfect": [1878], "damaged": [13568]},
  **{"unblemished": [569, 1447, 714, 1492], "broken": [5107]},
  **{"with": [593], "without": [2193], "flaw": [34978], "defect": [44013]},
  "damage": [6822],
}


def test_the_sentences_are_the_stored_ones(sentences):
  """In any order; words that say the same of an image are interchangeable."""

  def pattern(ids):
    is_known = [id_ in itertools.chain(*IDS.values()) for id_ in ids]
    groups = itertools.groupby(
      zip(ids, is_known, strict=True), lambda row: row[1]
    )
    return tuple(
      tuple(id_ for id_, _ in rows) if known else "other words"
      for known, rows in groups
    )

  *states, templates = read_texts("photos")
  texts = [fill_templates(templates, names, "object") for names in states]
  for part, stored in zip(
    texts, (sentences[:NUM_NORMAL], sentences[NUM_NORMAL:]), strict=True
  ):
    rows = []
    for text in part:
      words = [*text.removesuffix(".").split(), "."]
      rows.append([id_ for word in words for id_ in IDS.get(word, [-1])])
    want = collections.Counter(pattern(row[1:-1]) for row in stored)
    assert collections.Counter(map(pattern, rows)) == want
  words = {word for text in texts[0] for word in text.split()}
  assert {"cropped", "bright", "dark", "blurry", "good", "cool"} <= words
  assert {"large", "small", "black", "white", "jpeg", "corrupted"} <= words


FILE = """# My parts.
[normal]
{}
[anomalous]
{} with a crack
broken {}
[templates]
a photo of the {}.
{}
"""


def test_a_users_own_texts(tmp_path):
  path = tmp_path / "mine.txt"
  path.write_text(FILE)
  *states, templates = read_texts(str(path))
  normal, anomalous = (
    fill_templates(templates, names, "weld") for names in states
  )
  assert normal == ["a photo of the weld.", "weld"]
  assert anomalous == [
    *("a photo of the weld with a crack.", "weld with a crack"),
    *("a photo of the broken weld.", "broken weld"),
  ]
  own = ["a clean weld", "the {}"], [" An odd  one"]
  normal, anomalous, _ = read_texts(str(path), *own)
  assert (normal, anomalous) == (["clean weld", "{}"], ["odd one"])


@pytest.mark.parametrize(
  "text, expected",
  (
    (FILE.replace("a photo of the {}.\n{}\n", ""), "no texts under .templates"),
    (FILE.replace("[normal]\n{}\n", ""), r"has no texts under \[normal\]"),
    (FILE.replace("a photo of the {}.", "a photo."), "line 8 of .* 'a photo.'"),
    (
      FILE.replace("[normal]", "[good]"),
      r"line 2 of .* is '\[good\]': expected",
    ),
    ("a photo", "line 1 of"),
    (
      None,
      "no file of texts can be read there .*: give a path, or one of demo",
    ),
  ),
)
def test_wrong_texts_are_refused(tmp_path, text, expected):
  path = tmp_path / "mine.txt"
  if text is not None:
    path.write_text(text)
  with pytest.raises(InputError, match=expected):
    read_texts(str(path))
  with pytest.raises(InputError, match="normal_texts has an empty text: "):
    read_texts("photos", ["  "])
