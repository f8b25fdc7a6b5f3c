"""Custom data sets in folders, in MVTec's and other layouts."""

import errno
import os
import shutil

import pytest

from cops_jax import datasets
from cops_jax.errors import InputError
from cops_jax.inputs import pipeline
from helpers.listings import check_examples, plates
from helpers.original_layouts import Expected, write_files, write_tree


def test_a_folder_is_read(tree):
  check_examples(tree, f"folder:{tree.root}")
  check_examples(tree, f"folder:{tree.root}", "train")


def test_a_folder_of_one_category_is_read(tree):
  examples = datasets.load(f"folder:{tree.root / 'long'}", "test")
  assert examples.name == "long"
  assert {e["path"] for e in examples} == {"test/good/0.jpg", "test/bent/1.jpg"}
  assert {e["category"] for e in examples} == {"long"}


@pytest.mark.parametrize("kind", ("folder", "meta_json"))
def test_a_missing_folder_is_refused(kind, tmp_path):
  with pytest.raises(InputError, match=f"nowhere is not a folder.*{kind}:PATH"):
    datasets.load(f"{kind}:{tmp_path / 'nowhere'}", "test")
  with pytest.raises(InputError, match="the path is not a folder"):
    datasets.load(f"{kind}:", "test")


# The files; category, kind and masks of each file that is read; and notes.
FORMS = {
  "folders of each kind": (
    "Normal/0.png ABNORMAL/1.png",
    {
      "Normal/0.png": ("parts", "good", None),
      "ABNORMAL/1.png": ("parts", "ABNORMAL", None),
    },
    ("images in Normal count as normal, images in ABNORMAL as anomalous",),
  ),
  "with a folder of masks": (
    "ok/0.png NG/1.png crack/2.png Masks/1.png Masks/2_mask.png",
    {
      "ok/0.png": ("parts", "good", []),
      "NG/1.png": ("parts", "NG", ["Masks/1.png"]),
      "crack/2.png": ("parts", "crack", ["Masks/2_mask.png"]),
    },
    ("images in NG, crack as anomalous",),
  ),
  "with masks of each kind": (
    "nut/good/0.png nut/bad/0.png nut/ground_truth/Bad/0.png",
    {
      "nut/good/0.png": ("nut", "good", []),
      "nut/bad/0.png": ("nut", "bad", ["nut/ground_truth/Bad/0.png"]),
    },
    ("nut: images in good count as normal",),
  ),
  "with masks next to the images": (
    "good/0.png good/0_mask.png bad/1.jpg bad/1.png bad/2.png bad/2_mask.png",
    {
      "good/0.png": ("parts", "good", []),
      "bad/1.jpg": ("parts", "bad", ["bad/1.png"]),
      "bad/2.png": ("parts", "bad", ["bad/2_mask.png"]),
    },
    ("masks are read from the folders of the images",),
  ),
  "in any case": (
    "nut/Test/Good/0.png nut/Test/Dent/1.png nut/Ground_Truth/dent/1_mask.png",
    {
      "nut/Test/Good/0.png": ("nut", "good", []),
      "nut/Test/Dent/1.png": (
        *("nut", "Dent"),
        ["nut/Ground_Truth/dent/1_mask.png"],
      ),
    },
    (),
  ),
  "an empty ground_truth": (
    "nut/test/OK/0.png nut/test/a/b/1.png nut/ground_truth/Thumbs.db",
    {
      "nut/test/OK/0.png": ("nut", "good", None),
      "nut/test/a/b/1.png": ("nut", "a", None),
    },
    ("ground_truth is empty", "hidden files skipped: 1"),
  ),
  "hidden files": (
    "good/0.png good/._0.png bad/.ipynb_checkpoints/1.png bad/1.png"
    " bad/@eaDir/1.png bad/2.gif __MACOSX/good/0.png",
    {
      "good/0.png": ("parts", "good", None),
      "bad/1.png": ("parts", "bad", None),
    },
    ("bad/2.gif is not an image file", "hidden files skipped: 4"),
  ),
  "Real-IAD without its lists": (
    "toy/OK/S1/t_1_OK_C1.jpg toy/NG/HS/S2/t__2_NG_HS_C1.jpg"
    " toy/NG/HS/S2/t__2_NG_HS_C1.png toy/NG/HS/S2/t__2_NG_HS_C2.jpg",
    {
      "toy/OK/S1/t_1_OK_C1.jpg": ("toy", "good", []),
      "toy/NG/HS/S2/t__2_NG_HS_C1.jpg": (
        *("toy", "NG"),
        ["toy/NG/HS/S2/t__2_NG_HS_C1.png"],
      ),
    },
    ("1 of 2 anomalous images have no mask in their folder and are skipped",),
  ),
}


@pytest.mark.parametrize("form", FORMS)
def test_folders_are_read_in_many_layouts(tmp_path, form):
  files, expected, notes = FORMS[form]
  root = tmp_path / "parts"
  write_files(root, files.split())
  examples = datasets.load(f"folder:{root}", "test")
  found = {}
  for row in examples:
    masks = row["mask"] if isinstance(row["mask"], list) else [row["mask"]]
    masks = [
      str(m.relative_to(root)) for m in masks if not isinstance(m, bytes)
    ]
    facts = row["category"], row["anomaly_kind"]
    found[row["path"]] = (*facts, masks if row["has_mask"] else None)
  assert found == expected
  for note in notes:
    assert sum(note in found for found in examples.notes) == 1


@pytest.mark.parametrize(
  "name", ("mvtec_ad_2", "mvtec_loco", "real_iad", "mvtec_ad", "btad")
)
def test_published_sets_are_read_as_folders(tmp_path, name):
  tree = write_tree(name, tmp_path)
  found = {}
  for split in ("train", "test"):
    examples = datasets.load(f"folder:{tree.root}", split)
    for row in examples:
      masks = row["mask"] if isinstance(row["mask"], list) else [row["mask"]]
      mask = masks[0].parent if masks[1:] else masks[0]
      mask = None if row["label"] == 0 else str(mask.relative_to(tree.root))
      facts = split, row["category"], row["anomaly_kind"], mask
      found[row["path"]] = Expected(*facts)
      assert row["has_mask"]
  assert found == tree.expected
  notes = "\n".join(examples.notes)
  assert (
    "test_private is not read, because it has no ground truth" in notes
  ) == (name == "mvtec_ad_2")


@pytest.mark.parametrize(
  "files, reason",
  (
    ("nut/testing/good/0.png", "rename {root}/nut/testing to test$"),
    ("nut/tset/good/0.png", "rename {root}/nut/tset to test$"),
    ("clean/0.png bad/1.png", "rename {root}/clean to good$"),
    ("test/goood/0.png test/a/1.png", "rename {root}/test/goood to good$"),
    (
      "test/good/0.png test/a/1.png ground_truths/a/1.png",
      "rename {root}/ground_truths to ground_truth$",
    ),
    (
      "test/good/0.png test/a/1.png ground_truth/aa/1.png",
      "rename the folder in {root}/ground_truth .* masks of a to a$",
    ),
    ("0.png 1.png", "move the normal images in {root} into a folder good"),
    ("test/0.png", "move the normal images in {root}/test into a folder good"),
    ("test/nut/good/0.png test/nut/bad/0.png", "use {root}/test instead$"),
    ("good/0.png nut/ok/0.png", "use {root}/nut instead$"),
    ("x/nut/test/good/0.png", "use {root}/x instead$"),
    (
      "images/0.png masks/0.png",
      "expected CATEGORY/test/good/[*], .*DEFECT/[*]$",
    ),
  ),
)
def test_almost_correct_layouts_are_refused_with_advice(
  tmp_path, files, reason
):
  write_files(tmp_path, files.split())
  with pytest.raises(InputError, match=reason.format(root=tmp_path)):
    datasets.load(f"folder:{tmp_path}", "test")


def test_names_of_anomalies_do_not_count_as_normal(tmp_path):
  write_files(tmp_path, ["test/abnormal/0.png", "test/nok/0.png"])
  found = datasets.load(f"folder:{tmp_path}", "test")
  assert {row["label"] for row in found} == {1}
  assert any(
    "no folder is named good, normal or ok" in note for note in found.notes
  )


def test_a_folder_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
  tree = plates(tmp_path / "plates")
  real = os.scandir

  def scandir(path):
    if os.path.basename(path) == "dent":
      raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return real(path)

  monkeypatch.setattr(os, "scandir", scandir)
  with pytest.raises(InputError, match="dent cannot be read: Permission"):
    datasets.load(f"folder:{tree.root}", "test")


def test_file_names_can_have_any_bytes(tmp_path):
  tree = plates(tmp_path / "plates")
  for name in ("a b|c.png", "line\nbreak.png", os.fsdecode(b"\xff\xfe.png")):
    shutil.copy(
      tree.root / "nut/test/good/0.png", tree.root / "nut/test/good" / name
    )
  found = datasets.load(f"folder:{tree.root}", "test")
  paths = sorted(example["path"] for example in found)
  assert "nut/test/good/\\xff\\xfe.png" in paths and len(set(paths)) == 5
  assert len(found.fingerprint()) == 64


def test_the_fingerprint_of_a_folder_depends_on_its_files(tmp_path):
  """It changes with the state and label of any file, not with the location."""
  tree = plates(tmp_path / "plates")

  def find(root, by_contents=False):
    return datasets.load(f"folder:{root}", "test", by_contents=by_contents)

  by_times, by_bytes = (find(tree.root, flag) for flag in (False, True))
  by_times, by_bytes = by_times.fingerprint(), by_bytes.fingerprint()
  root = tree.root.rename(tmp_path / "moved")
  assert find(root).fingerprint() == by_times
  mask = root / "nut/ground_truth/dent/1.png"
  os.utime(mask, (0, 0))
  touched = find(root).fingerprint()
  assert touched != by_times
  assert find(root, by_contents=True).fingerprint() == by_bytes
  content = bytearray(mask.read_bytes())
  content[-1] ^= 1
  mask.write_bytes(content)
  os.utime(mask, (0, 0))
  assert find(root).fingerprint() == touched
  assert find(root, by_contents=True).fingerprint() != by_bytes
  (root / "nut/test/dent").rename(root / "nut/test/hole")
  (root / "nut/ground_truth/dent").rename(root / "nut/ground_truth/hole")
  assert find(root).fingerprint() != touched


def test_training_noise_is_keyed_by_path_and_content(tmp_path):
  tree = plates(tmp_path / "one")
  shutil.copytree(tree.root, tmp_path / "two")
  options = pipeline.BatchOptions(28, 14, batch_size=2, example_ids=True)

  def ids(name):
    examples = datasets.load(f"folder:{tmp_path}/{name}", "test")
    (batch,) = pipeline.iterate_batches(examples, options, range(1))
    ids = batch["example_id"].tolist()
    return dict(zip(batch["path"].tolist(), ids, strict=True))

  assert ids("one") == ids("two")
  shutil.copy(
    tmp_path / "two/nut/test/dent/1.png", tmp_path / "two/nut/test/good/0.png"
  )
  one, two = ids("one"), ids("two")
  assert [path for path in one if one[path] != two[path]] == [
    "nut/test/good/0.png"
  ]
  assert two["nut/test/good/0.png"] != two["nut/test/dent/1.png"]
