"""Intact weight files of every format are read back exactly."""

import hashlib
import os
import time
import warnings
import zipfile

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from cops_jax.errors import InputError
from cops_jax.weights import torch_files
from cops_jax.weights.tensor_files import read_tensor_file
from helpers import weight_files

DTYPES = (
  *(np.float16, np.float32, np.float64, ml_dtypes.bfloat16),
  *(np.bool_, np.uint8, np.int8, np.int16, np.int32, np.int64),
)
TENSORS = {
  "a.b": np.array([[1, 2], [3, 4]], ml_dtypes.bfloat16),
  "a.c": np.array(2.5, np.float16),
  "d": np.arange(3),
}


@pytest.fixture
def path(tmp_path):
  return tmp_path / "file"


def assert_equal(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, strict=True)


def test_safetensors_and_flax_msgpack_are_read(path):
  save_file(TENSORS, path, {"record": "a record"})
  file = read_tensor_file(path)
  assert file.format == "safetensors" and file.record == "a record"
  assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
  assert_equal(file.tensors, TENSORS)
  tree = {"a": {"b": TENSORS["a.b"], "c": TENSORS["a.c"]}, "d": TENSORS["d"]}
  path.write_bytes(flax.serialization.msgpack_serialize(tree))
  file = read_tensor_file(path)
  assert file.format == "flax msgpack" and file.record == ""
  assert_equal(file.tensors, TENSORS)


@pytest.mark.parametrize("beginning", (b"\x80", b"\x88"))
def test_safetensors_can_begin_like_another_format(path, beginning):
  """The file begins with its header's length, which is any multiple of 8."""
  tensors = {"a": np.arange(3, dtype=np.float32)}
  for size in range(0, 256, 8):
    content = save(tensors, {"record": "x" * size})
    if content.startswith(beginning):
      break
  assert content.startswith(beginning)
  path.write_bytes(content)
  file = read_tensor_file(path)
  assert file.format == "safetensors" and file.record == "x" * size
  assert_equal(file.tensors, tensors)


def test_a_hash_is_checked_before_the_file_is_parsed(path):
  path.write_bytes(b"PK is not enough")
  actual = hashlib.sha256(path.read_bytes()).hexdigest()
  with pytest.raises(InputError, match=f"has the SHA-256 {actual}, .* 00ff"):
    read_tensor_file(path, "00ff")
  with pytest.raises(InputError, match="cannot be read as a torch file"):
    read_tensor_file(path, actual.upper())


def test_a_sparse_file_of_40_gigabytes_is_refused_at_once(path):
  save_file(TENSORS, path)
  os.truncate(path, 40 * 10**9)
  began = time.monotonic()
  with pytest.raises(InputError, match="safetensors file: it is damaged"):
    read_tensor_file(path)
  assert time.monotonic() - began < 5


def test_torch_files_of_every_dtype_and_shape_are_written_and_read(path):
  rng = np.random.default_rng(0)
  tensors = {
    f"{np.dtype(dtype).name}.{len(shape)}": np.asarray(
      100 * rng.random(shape), dtype
    )
    for dtype in DTYPES
    for shape in ((), (3,), (2, 3), (2, 0, 4), (2, 3, 1, 2))
  }
  tensors["transposed"] = rng.random((4, 3)).T
  torch_files.write(path, tensors, "root", "a record")
  file = read_tensor_file(path)
  assert file.record == "a record" and file.format == "torch"
  assert_equal(file.tensors, {f"root.{k}": v for k, v in tensors.items()})
  assert not any(array.flags.writeable for array in file.tensors.values())
  first = path.read_bytes()
  torch_files.write(path, tensors, "root", "a record")
  assert path.read_bytes() == first
  torch = pytest.importorskip("torch")
  loaded = torch.load(path, weights_only=True)["root"]
  assert list(loaded) == list(tensors)
  for name, array in tensors.items():
    if array.dtype != ml_dtypes.bfloat16:
      np.testing.assert_array_equal(loaded[name].numpy(), array, strict=True)
    else:
      assert loaded[name].dtype == torch.bfloat16
      assert loaded[name].tolist() == array.tolist()


@pytest.mark.parametrize("protocol", (2, 3, 4, 5))
def test_files_of_torch_save_are_read(path, protocol):
  """Views, shared storages, nested containers and parameters are included."""
  torch = pytest.importorskip("torch")
  base = torch.arange(24.0).reshape(4, 6)
  saved = {
    "view": base[1:3, 2:5],
    "transposed": base.t(),
    "nested": {"list": [base[0], 3, "text", None], "tuple": (base[1],)},
    "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
    7: torch.zeros(0, 3),
    "module": torch.nn.BatchNorm1d(3).state_dict(),
  }
  torch.save(saved, path, pickle_protocol=protocol)
  tensors = read_tensor_file(path).tensors
  for name, expected in {
    "view": saved["view"],
    "transposed": saved["transposed"],
    "nested.list.0": base[0],
    "nested.tuple.0": base[1],
    "7": saved[7],
    "module.running_var": torch.ones(3),
    "module.num_batches_tracked": torch.tensor(0),
  }.items():
    np.testing.assert_array_equal(tensors[name], expected.numpy(), strict=True)
  assert tensors["parameter"].dtype == ml_dtypes.bfloat16
  assert tensors["parameter"].tolist() == [1, 1]
  assert len(tensors) == 11


def test_the_files_in_tests_data_are_up_to_date(tmp_path):
  pytest.importorskip("torch")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    weight_files.write_all(tmp_path)
  for name in (*weight_files.FOLDER_FILES, "epoch_1.pth"):
    stored = read_tensor_file(weight_files.DATA / name).tensors
    assert_equal(read_tensor_file(tmp_path / name).tensors, stored)


def test_script_archives_with_lists_and_shared_modules_are_read(path):
  torch = pytest.importorskip("torch")

  class Inner(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.weight = torch.nn.Parameter(torch.ones(2))
      self.sizes = [1, 2]

    def forward(self, x):
      return x * self.weight + len(self.sizes)

  class Outer(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.first = self.second = Inner()
      self.register_buffer("step", torch.tensor(3))

    def forward(self, x):
      return self.first(self.second(x))

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TorchScript is deprecated.
    torch.jit.save(torch.jit.script(Outer()), path)
  file = read_tensor_file(path)
  assert file.format == "TorchScript archive"
  assert {name: array.tolist() for name, array in file.tensors.items()} == {
    "first.weight": [1, 1],
    "second.weight": [1, 1],
    "step": 3,
  }


def test_big_endian_torch_files_are_read(path, tmp_path):
  little = tmp_path / "little.pth"
  torch_files.write(little, {"x": np.array([1, 2], np.float32)}, "root")
  with zipfile.ZipFile(little) as source, zipfile.ZipFile(path, "w") as file:
    file.writestr("archive/data.pkl", source.read("archive/data.pkl"))
    file.writestr("archive/data/0", np.array([1, 2], ">f4").tobytes())
    file.writestr("archive/byteorder", "big")
  assert read_tensor_file(path).tensors["root.x"].tolist() == [1, 2]
