# Two commands matter: `make demo` shows the whole model at work, `make test` checks it. Both set themselves up.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# A file of exact versions, such as tests/constraints/newest.txt; without one, the newest that pyproject.toml allows.
CONSTRAINTS ?=

BIN := $(VENV)/bin
# Newer than pyproject.toml = the environment holds what pyproject.toml asks for.
STAMP := $(VENV)/.setup-done
LOWEST := tests/constraints/lowest.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-lowest slow campaign peers bench docs lint

help:
	@echo "make setup  virtual environment in $(VENV) with everything installed"
	@echo "make demo   pretrain, fine-tune and predict on 168 real connectomes; writes runs/demo"
	@echo "make test   the tests, without the slow ones"
	@echo "make slow   the slow tests"
	@echo "make campaign   kills, flipped bits, full disks and malicious files, for half an hour; see docs/reliability.md"
	@echo "make peers  Transformers', PEFT's and scikit-learn's own tests, run on ours (downloads their sources)"
	@echo "make bench  what got slower than the recorded ratios of benchmarks/recorded.json, in two minutes"
	@echo "make docs   the documentation with its tutorials, into build/docs"
	@echo "make lint   ruff, mypy and who may import whom"
	@echo "make test-lowest   the tests with the oldest releases that pyproject.toml allows, in .venv-lowest"
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) TORCH=$(TORCH) CONSTRAINTS=$(CONSTRAINTS)"

setup: $(STAMP)

# torch goes first and pinned: resolved together with the rest, pip may pick another build (a CUDA one on a CPU machine).
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": run make again with PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip install $(CONSTRAINTS:%=-c %) -e '.[nifti,train,app,docs,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m training.demo --output runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not slow"

# The oldest releases have wheels for Python 3.11 and 3.12 only.
test-lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=$(LOWEST) TORCH="$$(grep ^torch== $(LOWEST))"

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

campaign: $(STAMP)
	$(BIN)/python -m tests.campaign --minutes 30

# Without our strict settings: their markers are not ours. What does not apply is listed in tests/peers/README.md.
peers: $(STAMP)
	$(BIN)/python -m pytest -o addopts= -W ignore -n 2 tests/peers/peer_*.py

# Needs an idle machine; ratios only, so that it need not be the one on which they were recorded.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.bench

# The tutorials run while it is built, on the shipped connectomes; no network is needed.
docs: $(STAMP)
	$(BIN)/python -m sphinx --builder html docs build/docs

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
