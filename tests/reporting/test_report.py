"""The report, opened in a browser too."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from cops_jax.evaluation import results
from cops_jax.images.drawing import picture_strip
from cops_jax.metrics import METRICS
from cops_jax.reporting import report
from helpers.made_results import FIRST, NAN, row

PROVENANCE = {
  "version": "0.1",
  "checkpoint": "step 3 of runs/<made> & found",
  "prompts_sha256": "aa" * 32,
  "clip_sha256": "bb" * 32,
  "device": "8 x cpu",
  "versions": {"jax": "0.10"},
  "config": {"clip": {"weights": "demo"}, "seed": 0},
}
NO_PIXELS = {
  name: value if name.startswith("image") else NAN
  for name, value in FIRST.items()
}


def make_result(name, metrics, num_categories=3):
  rng = np.random.default_rng(0)
  images = [
    results.ImageResult(
      name,
      f"part {index % num_categories}",
      f"{index}<b>.png",
      index % 2,
      score,
    )
    for index, score in enumerate(rng.random(40))
  ]
  steps = np.linspace(0, 1, 50)
  rise = steps.tolist(), (steps**0.3).tolist()
  names = [
    name
    for name in ("image_roc", "image_pr", "pixel_roc", "pixel_pr", "pixel_pro")
    if not np.isnan(metrics["pixel_ap"]) or name.startswith("image")
  ]
  category = results.CategoryResult(
    metrics,
    undefined={
      metric: "no masks" for metric in METRICS if np.isnan(metrics[metric])
    },
    image_threshold=0.5,
    pixel_threshold=0.2,
    curves=dict.fromkeys(names, rise),
  )
  strip = picture_strip(
    rng.integers(0, 256, (60, 60, 3), np.uint8),
    None,
    rng.random((60, 60)),
    low=0.0,
    high=1.0,
  )
  return results.DatasetResult(
    {f"part {index}": category for index in range(num_categories)},
    images,
    [
      results.Picture(kind, image, strip)
      for kind in ("best", "worst", "random")
      for image in images[:4]
    ],
    {"x.png": "truncated"},
    identity="1.0.0",
    data_sha256="cc" * 32,
    is_published=True,
    seconds=12.5,
    peak_memory_bytes=10**9,
  )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("report")
  found = {
    "mvtec_ad": make_result("mvtec_ad", FIRST, 15),
    "head_ct": make_result("head_ct", NO_PIXELS, 1),
    "visa": make_result(
      "visa", row(0.9, 0.88, 0.7, 0.9, 0.3, 0.2, 0.1, 0.1), 12
    ),
  }
  return report.write_report(
    workdir, found, PROVENANCE, {"btad": "not prepared"}, {"isic": "broken"}
  )


def test_the_page_needs_nothing_else(page):
  text = page.read_text()
  assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", text)
  assert "http" not in re.sub(r'"data:[^"]*"', "", text)
  assert "<b>" not in text and "0&lt;b&gt;.png" in text
  assert "runs/&lt;made&gt; &amp; found" in text


def test_it_says_that_its_thresholds_saw_the_labels(page):
  for path in (page, page.parent / "report.md"):
    text = path.read_text()
    assert "largest F1 on the very labels that are shown here" in text


def test_anomalyclips_own_results_stand_beside_its(tmp_path):
  """Of MVTec AD: image AUROC 91.5, and PRO 81.4 beside AUPRO-200 alone."""
  provenance = PROVENANCE | {
    "config": {**PROVENANCE["config"], "method": "anomalyclip"}
  }
  found = {"mvtec_ad": make_result("mvtec_ad", FIRST, 15)}
  report.write_report(tmp_path, found, provenance, {}, {})
  text = (tmp_path / "report.md").read_text()
  assert text.startswith("# AnomalyCLIP: zero-shot")
  minus = "\N{MINUS SIGN}"
  assert (
    f"| mvtec_ad | 90.0 (91.5, {minus}1.5) | 80.0 (96.2, {minus}16.2) | 70.0"
    f" | 60.0 (91.1, {minus}31.1) | 50.0 | 40.0 | 30.0"
    f" | 20.0 (81.4, {minus}61.4) |" in text
  )


def test_the_papers_results_stand_beside_ours(page):
  """MVTec AD: 90.0 against 95.0; VisA: 90.0 against 85.4."""
  text = re.sub(r"\s+", " ", page.read_text())
  assert '90.0<small>95.0 <span class="down">\N{MINUS SIGN}5.0</span>' in text
  assert '90.0<small>85.4 <span class="up">+4.6</span>' in text
  # HeadCT: no number where a metric is undefined.
  assert text.count("<small>96.1 ") == 1 and "<small>41.9 " in text
  markdown = (page.parent / "report.md").read_text()
  assert "| mvtec_ad | 90.0 (95.0, \N{MINUS SIGN}5.0) |" in markdown
  assert "| **industrial mean** | 90.0 |" in markdown
  for name in ("pixel AUROC", "- btad: not prepared", "- isic: broken"):
    assert name in markdown
  assert "(no masks)" in markdown


def test_verdicts(page):
  """An anomaly from the threshold on, and right if it is one."""
  captions = re.findall(
    r'class="tag (right|wrong)">called (anomaly|normal)</span> is'
    r" (anomaly|normal); part \d, score (0\.\d+), threshold 0\.500",
    page.read_text(),
  )
  assert len(captions) == 3 * 12
  for side, verdict, truth, score in captions:
    assert verdict == ("anomaly" if float(score) >= 0.5 else "normal")
    assert side == ("right" if verdict == truth else "wrong")
  assert len({(side, verdict) for side, verdict, _, _ in captions}) >= 3


def test_the_pictures_of_the_text_are_there(page):
  markdown = (page.parent / "report.md").read_text()
  files = re.findall(r"\]\(<(pictures/[^>]*)>\)", markdown)
  assert len(files) == len(set(files)) == 3 * 12
  for file in files:
    with Image.open(page.parent / file) as picture:
      picture.load()


@pytest.mark.parametrize("width", (1280, 390))
def test_in_a_browser(page, browser, width):
  """No errors, nothing cut off, every picture shown."""
  # Windows have a least width; the page's own can be any.
  browser.execute_cdp_cmd(
    "Emulation.setDeviceMetricsOverride",
    {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
  )
  browser.get(page.as_uri())
  assert browser.get_log("browser") == []
  assert browser.execute_script("return window.innerWidth") == width
  assert browser.execute_script(
    "return document.documentElement.scrollWidth <= window.innerWidth"
  )
  sizes = browser.execute_script(
    "return Promise.all([...document.images].map(async image => {"
    "  image.loading = 'eager';"
    "  await image.decode();"
    "  return [image.naturalWidth, image.width];"
    "}))"
  )
  assert len(sizes) == 3 * 12 + 6 + 6 + 3
  for natural, shown in sizes:
    assert natural > 0 and 100 < shown <= width
  shot = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
  assert len(shot.convert("RGB").getcolors(2**24)) > 50
