"""The command `cops datasets`, called as by a user."""

import pytest

from helpers.original_layouts import NAMES, write_tree
from helpers.scripts import call


@pytest.fixture
def directories(tmp_path):
  return [f"--data_dir={tmp_path / 'prepared'}", f"--manual_dir={tmp_path}"]


def cells(out):
  return {line.split()[0]: line for line in out.splitlines() if line}


def test_check_reports_unreadable_files(tmp_path, directories):
  tree = write_tree("btad", tmp_path)
  code, out, _ = call("datasets", "check", "btad", *directories)
  assert code == 0 and "problems: none" in out
  (tree.root / "02/test/ok/0000.png").write_bytes(b"")
  code, out, err = call(
    "datasets", "check", "btad", f"folder:{tmp_path}", *directories
  )
  assert code == 1
  assert "02/test/ok/0000.png: its image cannot be read" in out
  assert "checking btad: 12/12 images" in err


def test_prepare_prepares_what_it_can_and_list_shows_it(tmp_path, directories):
  """Data sets that cannot be prepared are reported at the end."""
  for name in ("mpdd", "kvasir", "btad"):
    write_tree(name, tmp_path)
  names = ("mpdd", "endo", "kvasir")
  code, out, err = call("datasets", "prepare", *names, *directories)
  assert code == 1
  prepared = cells(out)
  assert prepared["mpdd"].split() == ["mpdd", "6", "30"]
  assert prepared["kvasir"].split() == ["kvasir", "-", "3"]
  assert err.splitlines()[-1].startswith(
    "error: data set 'endo' is not prepare"
  )
  # A second call only reports.
  code, out, err = call("datasets", "prepare", "mpdd", "kvasir", *directories)
  assert (code, err) == (0, "") and cells(out) == prepared
  code, out, _ = call("datasets", "list", *directories)
  rows = cells(out)
  assert code == 0 and {"name", *NAMES} < set(rows)
  assert "figshare.21221579" in out
  assert out.index("endotect.com") < out.index("Further") < out.index("elpv")
  assert "1568" in rows["mvtec_loco"] and "over 8,000" in rows["mvtec_ad_2"]
  assert "prepared" in rows["mpdd"] and "prepared" in rows["kvasir"]
  assert "original files found" in rows["btad"]
  assert "can be downloaded" in rows["visa"] and "CC BY 4.0" in rows["visa"]
  assert "no original files" in rows["isic"]
  assert "https://endotect.com" in rows["endo"]
  write_tree("visa", tmp_path)  # Otherwise it is downloaded.
  code, out, _ = call("datasets", "prepare", "--all", *directories)
  assert code == 0 and "elpv" not in out
  assert "visa: 24 images in the test split" in out
  rows = cells(out)
  assert rows["visa"].split() == ["visa", "12", "24"]
  assert (
    rows["isic:"]
    == "isic: skipped; no original files, see `cops datasets list`"
  )


@pytest.mark.parametrize(
  "arguments, expected",
  (
    (["prepare"], "needs either names of data sets or --all"),
    (["prepare", "visa", "--all"], "needs either names of data sets or --all"),
    (["prepare", "mvtec"], "unknown data set 'mvtec' (did you mean mvtec_ad"),
    (["check", "folder:/nowhere"], "/nowhere is not a folder"),
    ([], "required: command"),
  ),
)
def test_bad_arguments_are_reported(arguments, expected):
  code, _, err = call("datasets", *arguments)
  assert code and expected in err


def test_a_data_set_is_read_from_an_installed_package(tmp_path, monkeypatch):
  prepare = [
    "datasets",
    "prepare",
    "elpv",
    f"--data_dir={tmp_path / 'prepared'}",
  ]
  code, _, err = call(*prepare)
  assert code and "not found: pip install elpv_dataset, or get ELPV from" in err
  tree = write_tree("elpv", tmp_path / "there")
  package = tmp_path / "site" / "elpv_dataset"
  package.mkdir(parents=True)
  (package / "__init__.py").write_text("raise AssertionError('imported')")
  tree.root.rename(package / "data")
  monkeypatch.syspath_prepend(package.parent)
  code, out, _ = call(*prepare)
  assert code == 0 and cells(out)["elpv"].split() == ["elpv", "-", "3"]
  assert "images with an anomaly probability between 0 and 1 skipped: 1" in out
