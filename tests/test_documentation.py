"""The README and the pages: every command block runs, or says here why not.

Commands run in a folder with a run, photographs and data sets, all tiny, on a
random CLIP. Training ends before its first step: it has tests of its own.
"""

import contextlib
import glob
import importlib
import io
import os
import re
import shlex
import shutil

import numpy as np
import pytest

from cops_jax import config as configuration
from cops_jax import methods
from helpers.images import make_image, write_folder
from helpers.original_layouts import write_tree
from helpers.scripts import ROOT, run

PAGES = ("README.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))

# By the block's first line.
NOT_RUN = {
  "python -m venv .venv && . .venv/bin/activate": "installs",
  'pip install "cops-jax[demo]"': "installs; tests/demo serves the page",
  'pip install "cops-jax[onnx]"': "installs",
  "cops demo": "serves until Ctrl-C, and takes minutes: tests/demo/test_page.py"
  " and tests/test_demo_run.py",
  "import numpy as np": "needs the extra onnx: tests/export/test_onnx.py",
  "python -m tools.compare_methods --workdir=runs/methods --seeds=0,1,2": (
    "tests/tools/test_runs.py"
  ),
  "python -m tools.reproduce --manual_dir=DIR --workdir=runs/paper"
  " --seeds=0,1,2": "tests/tools/test_reproduce.py",
  '"""CoOp: learned words before "object." and "damaged object."."""': (
    "tests/methods/test_documentation.py"
  ),
  "cops train --config=visa --config.method=coop --workdir=runs/coop"
  " --config.model.num_context_words=16": "tests/methods/test_documentation.py",
  "python -m benchmarks": "takes minutes; tests/benchmarks/test_benchmarks.py",
}
# Slurm, gcloud, kubectl, several hosts and buckets: tests/tools/test_launch.py,
# tests/runtime and tests/test_runs_in_buckets.py.
NOT_RUN_PAGES = ("docs/scaling.md",)
# In blocks that are run: what takes minutes, tests/tools/test_runs.py, and
# what needs the extra onnx, tests/export/test_onnx.py.
NOT_RUN_LINES = (
  "python -m tools.ablate",
  "cops export --workdir=runs/visa --out=visa.onnx",
)

NAMES = {
  # The toy knows no other words.
  "--clip=openai/clip-vit-large-patch14-336": "--clip=demo",
  "a clean weld": "a clean photo",
  "a weld with a crack": "a damaged photo",
  "openai/clip-vit-base-patch16": "{clip}",
  "manual_dir=DIR": "manual_dir={root}/data/downloads/manual",
  "/data/screws": "{root}/screws",
  "OWNER/visa": "published/visa",
  "configs/ablations.py": f"{ROOT}/configs/ablations.py",
}


def blocks(page):
  """Language and logical lines of each fenced block."""
  text = (ROOT / page).read_text()
  for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
    if language == "python":
      yield language, body.splitlines()
    else:
      joined = re.sub(r"\s*\\\n\s*", " ", body)
      yield language, [re.sub(r"\s+# .*", "", s) for s in joined.splitlines()]


@pytest.fixture(scope="module")
def root(trained, clip_folder, tmp_path_factory):
  """The folder in which a reader is."""
  root = tmp_path_factory.mktemp("reader")
  shutil.copytree(trained[0], root / "runs" / "visa")
  for name in ("photos/1.png", "photos/good/2.png", "photos/good/3.png"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(0).save(path)
  (root / "more").mkdir()
  for name in ("more/4.jpg", "photo.jpg", "large.jpg", "a.png", "b.png"):
    make_image(1).save(root / name)
  write_folder(root / "screws", 6)
  for name in ("visa", "mvtec_ad"):
    write_tree(name, root / "data" / "downloads" / "manual")
  return root


def overrides(command, words, root, clip):
  """Flags that make train's and evaluate's work tiny."""
  recipe = next(
    (w[9:].partition(":")[0] for w in words if w.startswith("--config=")),
    "visa",
  )
  if recipe not in configuration.recipe_names() or recipe == "ablations":
    recipe = "demo"
  values = {
    "clip.weights": clip,
    "clip.dtype": "float32",
    "data_dir": root / "data",
    "features_dir": root / "features",
    "model.image_size_pixels": 48,
    "model.feature_layers": "(2,3)",
    "model.num_value_layers": 2,
    "model.num_heads": 4,
    "model.deep_prompt_depth": 2,
    "train.dataset": f"folder:{root}/screws",
    "train.num_epochs": 0,
    "evaluation.batch_size": 8,
  }
  if command == "evaluate" and not any(
    w.startswith("--config=") for w in words
  ):
    # The run has a config of its own.
    values = {
      name: values[name] for name in ("data_dir", "evaluation.batch_size")
    }
  has_data = any("datasets=" in word for word in words)
  if command == "evaluate" and not has_data:
    values["evaluation.datasets"] = f"('folder:{root}/screws',)"
  method = configuration.recipe(recipe).method
  if method == "prompt_ensemble":
    values["model.texts"] = "demo"
  unread = methods.unread_fields(method)
  return [f"--config.{k}={v}" for k, v in values.items() if k not in unread]


def prepare(words, root):
  """Puts there what a command is told to read and nobody has made yet."""
  for word in words:
    path = root / word.removeprefix("--workdir=")
    if re.fullmatch(r"(--workdir=)?runs/\w+", word) and not path.exists():
      shutil.copytree(root / "runs" / "visa", path)
  if "--pretrained=published/visa" in words:
    importlib.import_module("cops_jax.commands.weights").main(
      ["publish", "--workdir=runs/visa", "--out=published/visa"]
    )
  if any("epoch_10.pth" in word for word in words):
    arguments = [f"--workdir={root}/runs/visa", f"--out={root}/epoch_10.pth"]
    importlib.import_module("cops_jax.commands.weights").main(
      ["export", *arguments]
    )


def execute(line, root, clip):
  """Runs a line of a block as a shell would: exit status, output."""
  for name, value in NAMES.items():
    line = line.replace(name, value.format(root=root, clip=clip))
  words = shlex.split(line)
  assert words[0] == "cops", line
  command, arguments = words[1], []
  for word in words[2:]:
    found = glob.glob(word) if "*" in word else [word]
    assert found, f"no file is {word}"
    arguments += found
  if command not in ("train", "evaluate"):
    prepare(arguments, root)
    if command == "datasets":
      arguments += [f"--data_dir={root}/data"]
    module = importlib.import_module(f"cops_jax.commands.{command}")
    try:
      return module.main(arguments) or 0, ""
    except SystemExit as ended:
      return ended.code, ""
  if "--checkpoint" in line:  # The prompts here are of a run of the demo.
    arguments = [w.replace("--config=visa", "--config=demo") for w in arguments]
  is_new = any(w.startswith(("--config=", "--checkpoint")) for w in arguments)
  if is_new:  # A run here has another config.
    arguments = [w.replace("=runs/", "=new/") for w in arguments]
  prepare(arguments, root)
  if "--verify" not in arguments:
    tiny = overrides(command, arguments, root, clip)
    names = {flag.partition("=")[0] for flag in tiny}
    arguments = [w for w in arguments if w.partition("=")[0] not in names]
    arguments += tiny
  code, out, err = run("-m", "cops_jax", command, *arguments, folder=root)
  return code, out + err


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
      images = np.zeros((1, 48, 48, 3), np.uint8)
      with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, page, "exec"), {"images": images})
      continue
    for line in lines:
      if line.startswith(NOT_RUN_LINES):
        continue
      code, text = execute(line, root, clip_folder)
      assert code == 0, f"{page}: {line}\n{code}\n{text}"


def test_what_is_not_run_is_still_there():
  first_lines = {lines[0] for page in PAGES for _, lines in blocks(page)}
  assert set(NOT_RUN) <= first_lines
  assert set(NOT_RUN_PAGES) <= set(PAGES)


def test_messages_of_the_troubleshooting_page_are_ones():
  text = (ROOT / "docs" / "troubleshooting.md").read_text()
  sources = "".join(
    re.sub(r'"\s*\n\s*f?"', "", path.read_text())
    for path in (ROOT / "cops_jax").rglob("*.py")
  )
  messages = re.findall(r"^\| `([^`]+)` \|", text, re.M)
  assert len(messages) > 10
  for message in messages:
    assert message in sources, message


def test_the_readme_is_short():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_is_in_the_site():
  site = (ROOT / "mkdocs.yml").read_text()
  for page in PAGES[1:]:
    assert f" {os.path.basename(page)}\n" in site, page


@pytest.mark.parametrize("page", PAGES[1:])
def test_links_between_pages_lead_somewhere(page):
  """`make docs` compares anchors too; this needs no site."""
  links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text())
  for link in links:
    assert link.startswith("https://") or (ROOT / "docs" / link).exists(), link
