"""Digests tell examples and data sets from others."""

import os

import pytest

from cops_jax import digests
from cops_jax.files import digest_file, seal, unseal

EXAMPLE = {
  "id": "a/0.png",
  "category": "a",
  "anomaly_kind": "dent",
  "label": 1,
  "has_mask": True,
}


@pytest.mark.parametrize(
  "changed",
  (
    {"id": "a/1.png"},
    {"category": "b"},
    {"anomaly_kind": "hole"},
    {"label": 0},
    {"has_mask": False},
    # The same characters, in other fields.
    {"id": "a/0.pnga", "category": ""},
  ),
)
def test_every_fact_counts(changed):
  one = digests.digest_example(EXAMPLE, "image", "mask")
  assert digests.digest_example(EXAMPLE | changed, "image", "mask") != one
  assert digests.digest_example(EXAMPLE, "imagem", "ask") != one
  assert digests.digest_example(dict(EXAMPLE), "image", "mask") == one


def test_the_order_of_examples_does_not_count():
  one, other = {"a": "1", "b": "2"}, {"b": "2", "a": "1"}
  assert digests.combine(one) == digests.combine(other)
  assert digests.combine(one) != digests.combine({"a": "2", "b": "1"})


def test_a_difference_names_examples():
  before = {f"{number}": "x" for number in range(6)}
  now = {"0": "x", "1": "y", "7": "x"}
  assert digests.describe_difference(before, now) == (
    "1 added (7); 4 gone (2, 3, 4, ...); 1 changed (1)"
  )


def test_the_digest_of_a_file(tmp_path):
  path = tmp_path / "a"
  path.write_bytes(b"one")
  assert digest_file(path) == digest_file(b"one")
  path.write_bytes(b"two")
  assert digest_file(path) == digest_file(b"two")
  os.mkfifo(tmp_path / "pipe")
  for name in ("pipe", "absent"):
    assert digest_file(tmp_path / name) == "unreadable"
  assert digests.file_state(tmp_path / "absent") == "unreadable"


def test_every_changed_byte_of_a_sealed_file_is_noticed():
  values = {"score": 0.25, "list": [1, None, "x"], "tree": {"a": True}}
  text = seal(values, indent=2).encode()
  assert unseal(text) == values
  same = 0
  for place in range(len(text)):
    for bit in (1, 2, 16):
      changed = bytearray(text)
      changed[place] ^= bit
      try:
        found = unseal(bytes(changed))
      except ValueError:
        continue
      # White space, or the name of the digest, which readers do not know.
      assert found == values or len(found) == len(values) + 1
      same += found == values
  assert same < 40


@pytest.mark.parametrize("text", ("[]", "1", "{", "[" * 100_000, b"\xff"))
def test_what_is_not_sealed_is_refused(text):
  with pytest.raises(ValueError):
    unseal(text)


def test_text_of_earlier_versions_has_no_digest():
  assert unseal('{"a": 1}') == {"a": 1}
