"""Every command block of the README and the pages runs, with listed exceptions.

Commands run in a folder with a tiny run, photographs and data sets, on a random
CLIP. Training ends before its first step, because other tests train.
"""

import glob
import inspect
import os
import pkgutil
import re
import shlex
import shutil

import pytest
import yaml

from cops_jax import config as configuration
from helpers.config import small_fields
from helpers.images import make_image, write_folder
from helpers.original_layouts import write_tree
from helpers.scripts import ROOT, call, capture

PAGES = ("README.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))

# Reasons why blocks are not run, or the tests that run them, by first line.
NOT_RUN = {
  "python -m venv .venv && . .venv/bin/activate": "installs",
  "cops demo --workdir=runs/visa": "serves a page until Ctrl-C: tests/demo",
  'pip install "cops-jax[onnx]"': "installs",
  "cops demo": "serves until Ctrl-C, and takes minutes: tests/demo/test_page.py"
  " and tests/test_demo_run.py",
  "import onnxruntime": "needs the extra onnx: tests/export/test_onnx.py",
  "python -m tools.compare_methods --workdir=runs/methods --seeds=0,1,2": (
    "tests/tools/test_runs.py"
  ),
  "python -m tools.reproduce --manual_dir=DIR --workdir=runs/paper"
  " --seeds=0,1,2": "tests/tools/test_reproduce.py",
  '"""CoOp: learned words before "object." and "damaged object."."""': (
    "tests/methods/test_documentation.py"
  ),
  "pip install -e .": "tests/methods/test_documentation.py",
  "pip install notebook": "installs, and serves: tests/test_notebooks.py",
  "python -m benchmarks": "takes minutes; tests/benchmarks/test_benchmarks.py",
}
# They need Slurm, gcloud, kubectl, several hosts or buckets; see
# tests/tools/test_launch.py, tests/runtime and tests/test_runs_in_buckets.py.
NOT_RUN_PAGES = ("docs/buckets.md", "docs/scaling.md")
# Lines that other tests run. The first asks a question (test_commands.py), the
# second takes minutes (tools/test_runs.py), and the third needs the extra onnx
# (export/test_onnx.py).
NOT_RUN_LINES = (
  "cops cache remove",
  "python -m tools.ablate",
  "cops export --workdir=runs/visa --out=visa.onnx",
)

NAMES = {
  # The toy CLIP knows no other words.
  "--clip=openai/clip-vit-large-patch14-336": "--clip=demo",
  "a clean weld": "a clean photo",
  "a weld with a crack": "a damaged photo",
  "openai/clip-vit-base-patch16": "{backbone}",
  "manual_dir=DIR": "manual_dir={root}/data/downloads/manual",
  "/data/screws": "{root}/screws",
  "OWNER/visa": "published/visa",
  "cops-visa": "published/visa",
  "configs/ablations.py": f"{ROOT}/configs/ablations.py",
}


def blocks(page):
  """Yields the language and logical lines of each fenced block."""
  text = (ROOT / page).read_text()
  for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
    if language == "python":
      yield language, body.splitlines()
    else:
      joined = re.sub(r"\s*\\\n\s*", " ", body)
      yield language, [re.sub(r"\s+# .*", "", s) for s in joined.splitlines()]


@pytest.fixture(scope="module")
def root(trained, clip_folder, tmp_path_factory):
  """Returns a reader's folder with a run, photographs and data sets."""
  root = tmp_path_factory.mktemp("reader")
  shutil.copytree(trained[0], root / "runs" / "visa")
  names = ("1.png", "good/2.png", "good/3.png", "bad/4.png", "more/5.png")
  for name in names:
    path = root / "photos" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(0).save(path)
  (root / "more").mkdir()
  for name in ("more/4.jpg", "photo.jpg", "large.jpg", "a.png", "b.png"):
    make_image(1).save(root / name)
  write_folder(root / "screws", 6)
  (root / "screws/train/good").mkdir(parents=True)
  for index in range(4):
    make_image(index).save(root / "screws/train/good" / f"{index}.png")
  for name in ("visa", "mvtec_ad"):
    write_tree(name, root / "data" / "downloads" / "manual")
  return root


def overrides(command, words, root, backbone):
  """Returns flags that make training and evaluation tiny."""
  recipe = next((w[9:] for w in words if w.startswith("--config=")), "demo")
  if recipe not in configuration.recipe_names():
    recipe = "demo"
  method = configuration.recipe(recipe).method
  values = {"data_dir": root / "data", "evaluation.batch_size": 8}
  # An evaluated run has its own config.
  if command == "train" or any(w.startswith("--config=") for w in words):
    values = small_fields(backbone, root / "data", method)
    values["features_dir"] = root / "features"
    values["train.dataset"] = f"folder:{root}/screws"
    values["train.num_epochs"] = 0
    if method == "prompt_ensemble":
      values["model.texts"] = "demo"
  if command == "evaluate" and not any("datasets=" in word for word in words):
    values["evaluation.datasets"] = f"('folder:{root}/screws',)"
  return [f"--config.{name}={value}" for name, value in values.items()]


def prepare(words, root):
  """Creates the files that a command reads and that do not exist yet."""
  for word in words:
    path = root / word.removeprefix("--workdir=")
    if re.fullmatch(r"(--workdir=)?runs/\w+", word) and not path.exists():
      shutil.copytree(root / "runs" / "visa", path)
  run = f"--workdir={root}/runs/visa"
  if "--pretrained=published/visa" in words:
    call("weights", "publish", run, "--out=published/visa")
  if any("epoch_10.pth" in word for word in words):
    call("weights", "save", run, f"--out={root}/epoch_10.pth")


def execute(line, root, backbone):
  """Runs a line of a block; returns its exit status, output and errors."""
  for name, value in NAMES.items():
    line = line.replace(name, value.format(root=root, backbone=backbone))
  program, command, *words = shlex.split(line)
  assert program == "cops", line
  arguments = []
  for word in words:
    found = glob.glob(word) if "*" in word else [word]
    assert found, f"no file is {word}"
    arguments += found
  if command == "datasets":
    arguments.append(f"--data_dir={root}/data")
  is_run = command in ("train", "evaluate") and "--verify" not in arguments
  # The prompts here were trained with the demo's config.
  if is_run and "--checkpoint" in line:
    arguments = [w.replace("--config=visa", "--config=demo") for w in arguments]
  if is_run and ("--config=" in line or "--checkpoint" in line):
    # The existing run has another config.
    arguments = [w.replace("=runs/", "=new/") for w in arguments]
  prepare(arguments, root)
  if is_run:  # The last value of a flag counts.
    arguments += overrides(command, arguments, root, backbone)
  return call(command, *arguments)


@pytest.mark.parametrize("page", [p for p in PAGES if p not in NOT_RUN_PAGES])
def test_every_command_block_runs(page, root, clip_folder, monkeypatch):
  monkeypatch.chdir(root)
  for language, lines in blocks(page):
    if language == "text" or lines[0] in NOT_RUN:
      continue
    if language == "python":
      text = "\n".join(lines).replace(
        'split="test")', f'split="test", data_dir="{root}/data")'
      )
      text = text.replace("cops-visa", "published/visa")
      with capture():
        exec(compile(text, page, "exec"), {})
      continue
    for line in lines:
      if not line.startswith(NOT_RUN_LINES):
        code, out, err = execute(line, root, clip_folder)
        assert code == 0, f"{page}: {line}\n{code}\n{out}{err}"


def test_the_lists_of_blocks_not_run_are_current():
  first_lines = {lines[0] for page in PAGES for _, lines in blocks(page)}
  assert set(NOT_RUN) <= first_lines
  assert set(NOT_RUN_PAGES) <= set(PAGES)


def test_the_troubleshooting_page_quotes_messages_exactly():
  text = (ROOT / "docs" / "troubleshooting.md").read_text()
  sources = "".join(
    re.sub(r'"\s*\n\s*f?"', "", path.read_text())
    for path in (ROOT / "cops_jax").rglob("*.py")
  )
  messages = re.findall(r"^\| `([^`]+)` \|", text, re.M)
  assert len(messages) > 10
  for message in messages:
    assert message in sources, message


def test_all_pages_are_in_the_site_and_their_links_work():
  """`make docs` also checks anchors; this test does not build the site."""
  site = (ROOT / "mkdocs.yml").read_text()
  for page in PAGES[1:]:
    assert f" {os.path.basename(page)}\n" in site, page
    for link in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
      assert link.startswith("https://") or (ROOT / "docs" / link).exists()


def test_searching_the_site_finds_buckets_flags_and_fields():
  """The separator splits pages and queries alike."""
  site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
  (separator,) = (
    plugin["search"]["separator"]
    for plugin in site["plugins"]
    if "search" in plugin
  )
  for text, words in (
    ("gs://bucket/run", ["gs", "//bucket", "run"]),
    ("--config.train.num_epochs=2", ["config", "train", "num_epochs", "2"]),
    ("AUROC at 0.3.", ["AUROC", "at", "0.3"]),
  ):
    assert [word for word in re.split(separator, text) if word] == words


def test_examples_in_the_reference_are_code_blocks():
  page = (ROOT / "docs" / "reference.md").read_text()
  names = re.findall(r"^::: (.+)$", page, re.M)
  assert len(names) == len(set(names)) > 40
  for name in names:
    found = pkgutil.resolve_name(name)
    assert found.__doc__, name
    for member in (found, *getattr(found, "__dict__", {}).values()):
      if inspect.isroutine(member) or isinstance(member, (type, property)):
        prose = re.sub(r"(?s)```python\n.*?```", "", member.__doc__ or "")
        assert not re.search(r"(?m)^ *(\w+ = |print\(|>>> )", prose), name
