# Every target sets up .venv by itself, once: `make train` and `make test` work on a fresh machine with Python and make.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Most tests wait: for processes to start, or to notice that another is gone. So several files run beside each other.
# Those of many short tests, tests/unit, come last, as their folder does: none is left alone for minutes at the end.
BESIDE := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help install train test test-fast test-long test-oldest test-services check format docs bench bench-pipeline clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

install: .venv/installed ## Make .venv with the package and its development tools

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed; name one by make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev,tensorboard,export,dashboard]'
	@touch $@

train: install ## Train a first network: CIFAR-10, or scikit-learn's digits where the Hub cannot be reached
	launch/node.sh --config recipes/first-run.yaml

test-fast: install ## Run the tests of single modules, about two minutes on two cores
	$(BIN)/pytest $(BESIDE) tests/unit

test: install ## Run the tests (no network, no GPU)
	$(BIN)/pytest $(BESIDE)

test-long: install test-oldest ## Run the longer proofs too, one after another, and test-oldest
	$(BIN)/pytest -m "not gpu"

test-oldest: .venv-oldest/installed ## Run the tests of single modules with the oldest versions allowed, torch's aside
	.venv-oldest/bin/pytest $(BESIDE) tests/unit

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint constraints-oldest.txt --editable '.[demo,dev,tensorboard]'
	@touch $@

test-services: .venv/browser ## Run the tests that need Chromium, or openwandb at the path OPENWANDB
	$(BIN)/pytest -m "(browser or wandb_server) and not slow"

check: install ## Lint, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: install ## Rewrite the code in the house's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: .venv/docs ## Build the documentation site, build/docs/site/index.html, and check every link
	$(BIN)/python docs/site/build_site.py

bench: .venv/bench ## Compare images per second with other training loops on this machine; BENCH="--rounds 1" for flags
	$(BIN)/python benchmarks/throughput.py $(BENCH)

bench-pipeline: .venv/pipeline ## Compare loaders on the JPEGs of a folder of class folders: PHOTOS=folder BENCH="--rounds 1"
	@test -n "$(PHOTOS)" || { echo "error: name a folder of class folders of JPEGs by make bench-pipeline PHOTOS=..." >&2; exit 2; }
	$(BIN)/python benchmarks/pipeline.py "$(PHOTOS)" $(BENCH)

.venv/bench: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@touch $@

.venv/pipeline: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[pipeline]'
	@touch $@

.venv/docs: .venv/installed
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: the site needs Python 3.11 or newer: make clean, then make docs PYTHON=..." >&2; exit 2; }
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

.venv/browser: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[browser]'
	@touch $@

clean: ## Remove .venv, caches and build output; runs/ stays
	rm -rf .venv .venv-oldest .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
