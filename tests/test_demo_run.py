"""The whole demo: training must improve the results."""

import pytest

from cops_jax.reporting import tables
from helpers.scripts import run


@pytest.mark.soak
def test_trained_prompts_beat_untrained_ones(tmp_path, data_dir):
  """Both AUROCs are ten points higher on categories never seen in training."""
  means = {}
  for name, num_epochs in (("trained", 10), ("untrained", 0)):
    workdir = tmp_path / name
    code, _, err = run(
      *("train.py", "--config=configs/demo.py", f"--workdir={workdir}"),
      *(
        f"--config.train.num_epochs={num_epochs}",
        f"--config.data_dir={data_dir}",
      ),
    )
    assert code == 0, err
    code, _, err = run("eval.py", f"--workdir={workdir}")
    assert code == 0, err
    means[name] = tables.means_of(tables.read_results(workdir))["demo_unseen"]
  for metric in ("image_auroc", "pixel_auroc"):
    gain = means["trained"][metric] - means["untrained"][metric]
    print(f"{metric}: {100 * gain:.1f} points above untrained prompts")
    assert gain >= 0.1
