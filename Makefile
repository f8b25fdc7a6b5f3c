# make demo: train on generated data, find anomalies in categories never seen.
# make test: run the tests.
# Both first create .venv with the versions of constraints.txt.

PYTHON ?= python3
PIP_INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --constraint constraints.txt

.PHONY: demo test

demo: .venv/core
	.venv/bin/python train.py --config=configs/demo.py --workdir=runs/demo
	.venv/bin/python eval.py --config=configs/demo.py --workdir=runs/demo

test: .venv/test
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m pytest --quiet --durations=5

.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable .
	touch $@

.venv/test: .venv/core
	$(PIP_INSTALL) --editable '.[test]'
	touch $@
