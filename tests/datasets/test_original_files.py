"""Published data sets, prepared from tiny trees in their original layouts."""

import dataclasses
import functools
import hashlib
import http.server
import io
import logging
import multiprocessing
import os
import shutil
import tarfile
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from cops_jax import datasets
from cops_jax.commands.datasets import main
from cops_jax.datasets import builders, preparation, prepared
from cops_jax.errors import InputError
from cops_jax.images import read
from cops_jax.images.masks import EMPTY, FULL
from helpers import original_layouts
from helpers.original_layouts import write_tree


def load(tree, split="test"):
  manual_dir = tree.root.parent
  return datasets.load(
    tree.root.name, split, str(manual_dir / "prepared"), str(manual_dir)
  )


def pixels(data):
  with Image.open(io.BytesIO(data)) as image:
    return np.asarray(image)


@pytest.mark.parametrize("name", original_layouts.NAMES)
def test_original_files_are_read_back(name, tmp_path):
  tree = write_tree(name, tmp_path)
  for split in ("train", "test"):
    expected = {
      path: row for path, row in tree.expected.items() if row.split == split
    }
    if not expected:
      with pytest.raises(InputError, match="no split 'train'; it has: test"):
        load(tree, split)
      continue
    examples = list(load(tree, split))
    assert len(examples) == len(expected)
    assert {example["path"] for example in examples} == expected.keys()
    assert len({example["id"] for example in examples}) == len(examples)
    for example in examples:
      row = expected[example["path"]]
      data = (tree.root / example["path"]).read_bytes()
      assert example["image"] == data
      assert example["label"] == row.label
      assert example["category"] == row.category
      assert example["anomaly_kind"] == row.anomaly_kind
      assert example["dataset"] == name
      assert example["has_mask"] == (name not in original_layouts.WITHOUT_MASKS)
      with Image.open(io.BytesIO(data)) as image:
        size = image.size[::-1]
      mask = pixels(example["mask"])
      if not row.mask:
        assert mask.shape == size and not mask.any()
        continue
      files = [tree.root / row.mask]
      if name == "mvtec_loco":
        files = sorted(files[0].iterdir())
      united = sum((pixels(file.read_bytes()) for file in files), start=0) > 0
      # These have several masks, class numbers and JPEG masks.
      if name in ("mvtec_loco", "visa", "kvasir"):
        assert set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(mask > 0, united)
      else:
        assert example["mask"] == files[0].read_bytes()


def test_unusual_masks_are_noted_and_stored_with_plain_values(
  tmp_path, monkeypatch, caplog
):
  tree = write_tree("btad", tmp_path)
  folder = tree.root / "02/ground_truth/ko"
  drawn = pixels((folder / "0000.png").read_bytes())
  alpha = np.dstack([np.full_like(drawn, 255), drawn])
  Image.fromarray(alpha).save(folder / "0000.png")
  Image.new("L", (11, 9)).save(folder / "0001.png")
  first = tree.root / "01/ground_truth/ko/0000.png"
  Image.new("RGB", (11, 9), "white").save(first)
  monkeypatch.setattr(logging.getLogger("cops_jax"), "propagate", True)
  examples = load(tree)
  masks = {example["path"]: example["mask"] for example in examples}
  np.testing.assert_array_equal(pixels(masks["02/test/ko/0000.png"]), drawn)
  assert masks["01/test/ko/0000.bmp"] == first.read_bytes()
  for note in (
    f"1 image: {EMPTY} (02/test/ko/0001.png: 11 x 9 pixels)",
    f"1 image: {FULL} (01/test/ko/0000.bmp: 11 x 9 pixels)",
  ):
    assert note in examples.notes
    assert f"data set btad: {note}" in caplog.messages


def test_soft_edges_are_anomalous_as_in_the_authors_code(tmp_path):
  tree = write_tree("kvasir", tmp_path)
  drawn = np.zeros((64, 64), np.uint8)
  drawn[20:41, 13:50] = 255
  path = tree.root / "masks/k1.jpg"
  Image.fromarray(drawn).convert("RGB").save(path, quality=60)
  with Image.open(path) as image:
    expected = np.asarray(image.convert("L")) > 0
  (stored,) = (
    example["mask"]
    for example in load(tree)
    if example["path"] == "images/k1.jpg"
  )
  assert (drawn > 0).sum() < expected.sum()
  np.testing.assert_array_equal(pixels(stored), 255 * expected)


def test_tfds_returns_pixels_without_a_file_format(tmp_path, capsys):
  """TFDS is used in its usual way: a builder by name, then a data source."""
  tree = write_tree("mpdd", tmp_path)
  builder = tfds.builder("mpdd", data_dir=tmp_path / "prepared")
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir=tmp_path)
  )
  source = tfds.data_source(
    "mpdd", split="test", data_dir=tmp_path / "prepared"
  )
  assert len(source) == 6 * 5
  for example in source:
    path = example["path"].decode()
    pixels = read(tree.root / path).pixels
    np.testing.assert_array_equal(example["image"], pixels)
    mask = tree.expected[path].mask
    if mask:
      with Image.open(tree.root / mask) as image:
        np.testing.assert_array_equal(example["mask"][..., 0], image)
    else:
      assert not example["mask"].any()


def test_large_splits_are_written_in_shards(tmp_path, monkeypatch):
  tree = write_tree("btad", tmp_path)
  monkeypatch.setattr(builders, "_SHARD_BYTES", 500)
  examples = load(tree)
  assert len(list((tmp_path / "prepared/btad/1.1.0").glob("*test*"))) > 3
  # The examples are stored in the order of the files.
  assert [example["path"] for example in examples] == [
    f"{category}/test/{kind}/000{number}.{suffix}"
    for category, suffix in (("01", "bmp"), ("02", "png"), ("03", "bmp"))
    for kind, number in (("ko", 0), ("ko", 1), ("ok", 0))
  ]


def test_a_prepared_copy_needs_no_original_files(tmp_path):
  tree = write_tree("isic", tmp_path)
  leftover = tmp_path / "prepared" / "isic" / "incomplete.ABCDEF_1.1.0"
  leftover.mkdir(parents=True)  # An interrupted preparation leaves it.
  before = list(load(tree))
  assert not leftover.exists()
  shutil.rmtree(tree.root)
  assert list(load(tree)) == before


def prepare_in_process(name, root):
  preparation.prepare(name, str(root / "prepared"), str(root))


def test_several_processes_can_prepare_at_once(tmp_path):
  write_tree("dtd_synthetic", tmp_path)
  context = multiprocessing.get_context("spawn")
  processes = [
    context.Process(target=prepare_in_process, args=("dtd_synthetic", tmp_path))
    for _ in range(3)
  ]
  for process in processes:
    process.start()
  for process in processes:
    process.join()
    assert process.exitcode == 0


def test_all_problems_are_reported_before_anything_is_written(tmp_path):
  tree = write_tree("mvtec_ad", tmp_path)
  (tree.root / "bottle").rename(tree.root / "botle")
  (tree.root / "pill/ground_truth/crack/001_mask.png").unlink()
  with pytest.raises(InputError) as error:
    load(tree)
  assert "category 'bottle' has no test images" in str(error.value)
  assert f"rename {tree.root}/botle to bottle\n" in str(error.value)
  assert (
    "pill/ground_truth/crack cannot be assigned to the anomalous images"
    in str(error.value)
  )
  assert "no mask is named after 001.PNG" in str(error.value)
  assert not list(tmp_path.glob("prepared/mvtec_ad/*1.1.0*"))


def test_missing_original_files_are_reported_in_one_sentence(tmp_path):
  with pytest.raises(InputError) as error:
    tfds.data_source("btad", split="test", data_dir=tmp_path)
  text = str(error.value)
  assert "\n" not in text and ". " not in text
  assert f"'btad' is not prepared in {tmp_path}" in text
  assert "unpack it as the folder btad in manual_dir" in text
  assert "VT-ADL" in text and "CATEGORY/{train,test}/{ok,ko}" in text


def test_both_folders_are_required(tmp_path):
  tree = write_tree("brain_mri", tmp_path)
  shutil.rmtree(next(tree.root.rglob("no")))
  with pytest.raises(InputError, match="no has no images"):
    load(tree)


def test_an_unwritable_data_directory_is_reported(tmp_path):
  tree = write_tree("head_ct", tmp_path)
  (tmp_path / "prepared").write_text("a file")
  with pytest.raises(InputError, match="cannot be prepared in .*/prepared"):
    load(tree)


def test_inverted_masks_change_the_fingerprint(tmp_path):
  """Preparing the same files again does not change it."""
  tree = write_tree("kvasir", tmp_path)
  before = load(tree).fingerprint()
  shutil.rmtree(tmp_path / "prepared")
  assert load(tree).fingerprint() == before
  for mask in (tree.root / "masks").glob("[!.T]*.*"):
    with Image.open(mask) as image:
      inverted = ImageOps.invert(image.convert("L"))
    inverted.save(mask)
  assert load(tree).fingerprint() == before  # The prepared copy is unchanged.
  shutil.rmtree(tmp_path / "prepared")
  assert load(tree).fingerprint() != before


def test_shards_are_hashed_once(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(logging.getLogger("cops_jax"), "propagate", True)
  tree = write_tree("kvasir", tmp_path)
  before = load(tree)
  read = []
  real = prepared.digest_file

  def digest_file(path):
    read.append(path.name)
    return real(path)

  def shards_read():
    found = [name for name in read if "record" in name]
    read.clear()
    return len(found)

  monkeypatch.setattr(prepared, "digest_file", digest_file)
  assert load(tree).fingerprint() == before.fingerprint()
  assert not shards_read() and load(tree).notes == before.notes != ()
  path = tmp_path / "prepared/kvasir/1.1.0/contents.json"
  text = path.read_text()
  for damage in (text.replace('": "', '": "0', 1), text[:-9], "[]"):
    path.write_text(damage)
    assert load(tree).fingerprint() == before.fingerprint()
    assert shards_read() == 1 and f"{path} is damaged" in caplog.text
  # A shard with another time is read once.
  shard = next(path.parent.glob("*test*record*"))
  os.utime(shard, (0, 0))
  for number in (1, 0):
    assert load(tree).fingerprint() == before.fingerprint()
    assert shards_read() == number


@pytest.mark.parametrize(
  "name", ("*test*record*", "dataset_info.json", "features.json")
)
def test_a_flipped_bit_in_prepared_data_is_detected(name, tmp_path, capsys):
  tree = write_tree("kvasir", tmp_path)
  load(tree)
  (path,) = (tmp_path / "prepared/kvasir/1.1.0").glob(name)
  content = path.read_bytes()
  stat = path.stat()
  damaged = bytearray(content)
  damaged[len(content) // 2] ^= 1
  path.write_bytes(damaged)
  # A shard with unchanged size and time is not hashed again.
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  with pytest.raises(InputError, match="kvasir.* is damaged .* Delete"):
    list(load(tree))
  os.utime(path, (0, 0))
  with pytest.raises(InputError, match="kvasir.* is damaged .* Delete"):
    load(tree)
  path.unlink()
  with pytest.raises(InputError, match="kvasir.* is damaged .* Delete"):
    load(tree)


def test_changed_original_files_are_detected(tmp_path, capsys):
  tree = write_tree("kvasir", tmp_path)
  load(tree)
  flags = (f"--data_dir={tmp_path}/prepared", f"--manual_dir={tmp_path}")
  assert main(["check", "kvasir", "--deep", *flags]) == 0
  assert "prepared copy" not in capsys.readouterr().out
  image = next((tree.root / "images").glob("[!.T]*.*"))
  image.write_bytes(image.read_bytes() + b"x")
  main(["check", "kvasir", "--deep", *flags])
  expected = f"prepared copy: 1, such as images/{image.name}"
  assert expected in capsys.readouterr().out


@pytest.fixture
def visa(tmp_path):
  return write_tree("visa", tmp_path)


@pytest.mark.parametrize(
  "row, expected",
  (
    (None, "lacks the column 'mask'"),
    (("test", "anomaly", "{image}", ""), "1 of 2 anomalous images have no"),
    (("test", "odd", "{image}", ""), "test pcb1: .* anomaly .0 or 1."),
  ),
)
def test_bad_tables_of_visa_are_refused(visa, row, expected):
  table = visa.root / "split_csv/1cls.csv"
  if row is None:
    table.write_text("object,split,label,image\npcb1,test,normal,x.png\n")
  else:
    image = "pcb1/Data/Images/Normal/test.JPG"
    with table.open("a") as file:
      file.write(",".join(("pcb1", *row)).format(image=image) + "\n")
  with pytest.raises(InputError, match=expected):
    load(visa)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *_):
    pass


@pytest.fixture
def server(tmp_path):
  """Serves a folder on localhost."""
  folder = tmp_path / "served"
  folder.mkdir()
  handler = functools.partial(QuietHandler, directory=folder)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    threading.Thread(target=server.serve_forever).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_visa_is_downloaded(visa, server, monkeypatch):
  folder, url = server
  with tarfile.open(folder / "visa.tar", "w") as tar:
    tar.add(visa.root, arcname="VisA_20220922")
  digest = hashlib.sha256((folder / "visa.tar").read_bytes()).hexdigest()
  data_dir = visa.root.parent / "prepared"
  real = builders.BUILDERS["visa"].specification

  def load_from(name, sha256):
    row = dataclasses.replace(real, url=f"{url}/{name}", sha256=sha256)
    monkeypatch.setattr(builders.BUILDERS["visa"], "specification", row)
    return datasets.load("visa", "test", str(data_dir))

  for name, reason in (("absent.tar", "404"), ("visa.tar", "hash")):
    with pytest.raises(InputError, match=reason):
      load_from(name, "0" * 64)
  assert len(load_from("visa.tar", digest)) == 24
  downloads = data_dir / "downloads"
  assert not list(downloads.glob("*visa*.*")) + list(downloads.glob(".visa*"))
