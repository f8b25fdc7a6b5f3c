# make demo: train on generated data, and find anomalies in unseen categories.
# make test: run the tests.
# make numbers: run the numerical tests with the compiler options of users.
# make stacks: run the numerical tests, and train, resume, evaluate, predict and
#   export the demo, with four sets of versions: pinned, newest, newest with the
#   extra onnx, and oldest.
# make soak: kill training 48 times at random and other commands 100 times; flip
#   bits, send bad input, crowd the page, and check that training the demo helps.
# make docs: build the documentation in site/; a dead link is an error.
# All targets except stacks create and use .venv, with the versions of
# constraints.txt.

PYTHON ?= python3
NEWEST_PYTHON ?= $(shell for name in python3.14 python3.13 python3.12 python3; do \
  $$name -c "" 2>/dev/null && echo $$name && break; done)
PIP_INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --constraint constraints.txt

EXTRAS =  # Extras to install with the package, such as [docs,test].

NUMBERS = tests/test_losses.py \
  tests/methods/test_cops.py::test_vision_features_match_the_authors \
  tests/methods/test_cops.py::test_training_outputs_match_the_authors \
  tests/methods/test_cops.py::test_evaluation_outputs_match_the_authors \
  tests/methods/test_anomalyclip.py tests/methods/test_prompt_ensemble.py \
  tests/training/test_step.py::test_gradients_and_five_adam_steps_match_the_authors \
  tests/training/test_step.py::test_devices_order_and_padding_do_not_matter \
  tests/inputs/test_feature_cache.py::test_training_and_evaluation_share_a_cache

.PHONY: demo docs numbers soak stacks test

demo: .venv/core
	.venv/bin/python train.py --config=configs/demo.py --workdir=runs/demo
	.venv/bin/python eval.py --workdir=runs/demo
	.venv/bin/python -m tools.check_demo --workdir=runs/demo

docs: .venv/docs
	.venv/bin/python -m mkdocs build --strict

test: .venv/test
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m pytest --quiet --durations=5 --numprocesses=auto \
	  --dist=loadfile --no-loadscope-reorder

numbers: .venv/test
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv/bin/python -m pytest --quiet \
	  --numprocesses=auto $(NUMBERS)

stacks: stack-pinned stack-newest stack-onnx stack-oldest

stack-%: .venv/stack-%/installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 .venv/stack-$*/bin/python -m pytest --quiet \
	  --numprocesses=2 --dist=loadfile -m "not soak" \
	  tests/test_version_set.py $(NUMBERS)

soak: .venv/test
	.venv/bin/python -m pytest --quiet --capture=no -m soak

.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable '.$(EXTRAS)'
	touch $@

.venv/docs: .venv/core
	$(PIP_INSTALL) --editable '.[docs]'
	touch $@

.venv/test: .venv/core
	$(PIP_INSTALL) --editable '.[test]'
	touch $@

.venv/stack-pinned/installed: PIP_ARGUMENTS = '.[onnx,test]' --constraint constraints.txt
.venv/stack-newest/installed: PIP_ARGUMENTS = '.[test]'
.venv/stack-onnx/installed: PIP_ARGUMENTS = '.[onnx,test]'
.venv/stack-newest/installed .venv/stack-onnx/installed: PYTHON = $(NEWEST_PYTHON)

.venv/stack-%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable $(PIP_ARGUMENTS)
	touch $@

# pip cannot install the lowest versions; uv can.
.venv/stack-oldest/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
	  --resolution lowest-direct --editable '.[onnx,test]'
	touch $@
