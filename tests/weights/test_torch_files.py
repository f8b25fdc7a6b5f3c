"""torch's format without torch: what its files hold."""

import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from cops_jax.weights.torch_files import read_tensors, write_tensors

DTYPES = (
  *(np.float16, np.float32, np.float64, ml_dtypes.bfloat16),
  *(np.bool_, np.uint8, np.int8, np.int16, np.int32, np.int64),
)


@pytest.fixture
def path(tmp_path):
  return tmp_path / "file.pth"


def test_round_trip_of_every_dtype_and_shape(path):
  rng = np.random.default_rng(0)
  tensors = {
    f"{np.dtype(dtype).name}.{len(shape)}": np.asarray(
      100 * rng.random(shape), dtype
    )
    for dtype in DTYPES
    for shape in ((), (3,), (2, 3), (2, 0, 4), (2, 3, 1, 2))
  }
  tensors["transposed"] = rng.random((4, 3)).T
  write_tensors(path, tensors, "root", "a record")
  file = read_tensors(path)
  assert file.record == "a record" and not file.is_script
  assert list(file.tensors) == [f"root.{name}" for name in tensors]
  for name, array in tensors.items():
    actual = file.tensors[f"root.{name}"]
    assert actual.dtype == array.dtype and not actual.flags.writeable
    np.testing.assert_array_equal(actual, array)
  first = path.read_bytes()
  write_tensors(path, tensors, "root", "a record")
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
def test_what_torch_saves(path, protocol):
  """Views, shared and transposed storages, nested containers, parameters."""
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
  tensors = read_tensors(path).tensors
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


def test_script_archives_with_lists_and_shared_modules(path, tmp_path):
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
  file = read_tensors(path)
  assert file.is_script
  assert {name: array.tolist() for name, array in file.tensors.items()} == {
    "first.weight": [1, 1],
    "second.weight": [1, 1],
    "step": 3,
  }


def test_big_endian_files(path, tmp_path):
  little = tmp_path / "little.pth"
  write_tensors(little, {"x": np.array([1, 2], np.float32)}, "root")
  with zipfile.ZipFile(little) as source, zipfile.ZipFile(path, "w") as file:
    file.writestr("archive/data.pkl", source.read("archive/data.pkl"))
    file.writestr("archive/data/0", np.array([1, 2], ">f4").tobytes())
    file.writestr("archive/byteorder", "big")
  assert read_tensors(path).tensors["root.x"].tolist() == [1, 2]
